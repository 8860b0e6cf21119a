"""Made-up stages of learning from feedback beside the made-up demo (`python -m tests.report.fake_pairs DIR`)."""

from __future__ import annotations

import math
import random
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from tests.report.fake import Row, demo, evaluation, group, receipt, run_file, strip, write_json, write_lines

from longtake.report import build
from longtake.sim.rows import asked, chain
from longtake.sim.scenes import KINDS, SECONDS, Scene, keyed, scene

SAID = "Answer {0} names what is seen at s{1}, as the descriptions say. <answer>{0}</answer>"
NAMES = {"AB": (0, 1), "BA": (1, 0)}


def two(story: Scene, rng: random.Random) -> list[Row]:
    """Two sampled answers, as judged.jsonl has them."""
    rows = []
    for style in rng.choice([("full", "guess"), ("guess", "full"), ("skim", "full"), ("full", "full")]):
        right = rng.random() < {"full": 0.85, "skim": 0.5, "guess": 0.3}[style]
        text = chain(story, style)
        if not right:
            wrong = rng.choice([option for option in story.options if option != story.truth])
            text = text.replace(
                f"so {story.truth} </think> <answer> {story.truth}", f"so {wrong} </think> <answer> {wrong}"
            )
        rows.append({"text": text, "tokens": len(text.split()), "finish": "stop", "correct": right})
    return rows


def settled(answers: list[Row], skill: float, rng: random.Random) -> Row:
    """Verdicts in both orders and what they come to, by a judge that is right with probability `skill`."""
    if answers[0]["text"] == answers[1]["text"]:
        return {"verdicts": [], "outcome": "same", "better": None, "right": None}
    good = 0 if answers[0]["correct"] >= answers[1]["correct"] else 1
    verdicts = []
    for order, places in NAMES.items():
        named = good if rng.random() < skill else 1 - good
        letter = "AB"[places.index(named)] if rng.random() > 0.08 else "A"
        letter = rng.choice(["tie", ""]) if rng.random() < 0.05 else letter
        text = SAID.format(letter or "?", rng.randrange(1, SECONDS)) * (3 if rng.random() < 0.2 else 1)
        verdicts.append({"order": order, "said": letter, "text": text, "error": "", "finish": "stop"})
    if rng.random() < 0.02:
        verdicts[1] |= {"said": "", "text": "", "error": "429 too many requests", "finish": ""}
        return {"verdicts": verdicts, "outcome": "failed", "better": None, "right": None}
    said = [verdict["said"] for verdict in verdicts]
    if "" in said or "tie" in said:
        return {"verdicts": verdicts, "outcome": "unparsable" if "" in said else "tie", "better": None, "right": None}
    named = [NAMES[v["order"]]["AB".index(v["said"])] for v in verdicts]
    if named[0] != named[1]:
        return {"verdicts": verdicts, "outcome": "flipped", "better": None, "right": None}
    known = answers[0]["correct"] != answers[1]["correct"]
    right = answers[named[0]]["correct"] if known else None
    return {"verdicts": verdicts, "outcome": "kept", "better": named[0], "right": right}


def judged_row(folder: Path, i: int, skill: float, *, told: bool, drawn: bool) -> Row:
    """One line of judged.jsonl."""
    story = scene(KINDS[i % 4], keyed(5, i))
    answers = two(story, random.Random(f"answers {i}"))
    seen = receipt(f"rl-{i}", 32)
    if drawn:
        strip(folder / "thumbs" / f"rl-{i}.jpg", story, seen)
    third = SECONDS / 3
    parts = [story.events[round(k * third) : round((k + 1) * third)] for k in range(3)]
    narrative = [
        {"start": round(k * third, 2), "stop": round((k + 1) * third, 2), "caption": " then ".join(part)}
        for k, part in enumerate(parts)
    ]
    row: Row = {"id": f"rl-{i}#0", "question_id": f"rl-{i}", "kind": story.kind, "question": asked(story)}
    row |= {"options": list(story.options), "answer": story.letter, "evidence": [list(span) for span in story.evidence]}
    row |= {"film": f"films/rl-{i}.mp4", "strip": f"thumbs/rl-{i}.jpg" if drawn else None}
    row |= {"narrative": narrative if told else [], "answers": answers, "receipt": asdict(seen)}
    return row | settled(answers, skill, random.Random(f"{folder.name} {i}"))


def pair_row(row: Row) -> Row:
    """A kept pair as pairs.jsonl has it."""
    chosen, rejected = row["answers"][row["better"]], row["answers"][1 - row["better"]]
    content = [{"type": "video", "video": row["film"]}, {"type": "text", "text": row["question"]}]
    pair: Row = {"id": row["id"], "question_id": row["question_id"], "prompt": [{"role": "user", "content": content}]}
    pair |= {
        name: [{"role": "assistant", "content": one["text"]}]
        for name, one in (("chosen", chosen), ("rejected", rejected))
    }
    pair |= {"score_chosen": None, "score_rejected": None, "margin": None, "source": "judge"}
    pair |= {key: row[key] for key in ("options", "answer", "kind", "evidence", "narrative", "verdicts", "receipt")}
    return pair | {"correct": [chosen["correct"], rejected["correct"]]}


def judge(folder: Path, minute: int, skill: float, n: int, *, told: bool) -> list[Row]:
    """A judge run; its kept pairs."""
    rows = [judged_row(folder, i, skill, told=told, drawn=i < 24) for i in range(n)]
    write_lines(folder / "judged.jsonl", rows)
    pairs = [pair_row(row) for row in rows if row["outcome"] == "kept"]
    write_lines(folder / "pairs.jsonl", pairs)
    counts = Counter(row["outcome"] for row in rows)
    marks = [row["right"] for row in rows if row["right"] is not None]
    letters = [v["said"] for row in rows for v in row["verdicts"] if v["said"] in ("A", "B")]
    summary: Row = {"context": "narrative" if told else "none", "mode": "pair", "questions": n, "pairs": n}
    summary |= {
        "ties" if name == "tie" else name: counts[name]
        for name in ("kept", "flipped", "tie", "unparsable", "same", "failed")
    }
    summary |= {"flip_rate": counts["flipped"] / max(1, counts["kept"] + counts["flipped"]), "human": 0}
    summary |= {"slot_a": letters.count("A") / max(1, len(letters)), "accuracy": sum(marks) / max(1, len(marks))}
    summary |= {"accuracy_n": len(marks), "calls": 2 * n + 3, "retries": 3, "tokens_in": 900 * n, "tokens_out": 30 * n}
    write_json(folder / "summary.json", summary | {"cost": 0.0123 * n})
    config = {"mode": "pair", "model": "sft/model", "rows": "rows/rl.jsonl", "seed": 7}
    config |= {"context": {"kind": "narrative" if told else "none"}}
    write_json(
        folder / "run.json",
        run_file("judge", minute, {"policy": 9.0, "captioner": 14.0, "judge": 21.0}) | {"config": config},
    )
    return pairs


def reward(folder: Path, minute: int, pairs: list[Row], steps: int) -> None:
    """A reward run: curves and scores of held-out pairs, fond of length."""
    rng = random.Random(11)
    rows = []
    for pair in pairs:
        tokens = [len(pair[name][0]["content"].split()) + 1 for name in ("chosen", "rejected")]
        scores = [0.05 * (count - 18) + rng.gauss(0.5 * (place == 0), 0.8) for place, count in enumerate(tokens)]
        row = pair | {"model_chosen": scores[0], "model_rejected": scores[1], "source": rng.choice(["judge", "human"])}
        rows.append(row | {"tokens_chosen": tokens[0], "tokens_rejected": tokens[1]})
    write_lines(folder / "scores.jsonl", rows)
    write_lines(folder / "metrics.jsonl", (paired(step, steps, rng, fall=0.0) for step in range(1, steps + 1)))
    right = sum(row["model_chosen"] > row["model_rejected"] for row in rows) / max(1, len(rows))
    summary = {"steps": steps, "accuracy": right, "n": len(rows), "length_correlation": 0.5}
    summary |= {"truth": {"accuracy": 0.71, "labels": 0.83, "n": len(rows) // 2}}
    write_json(folder / "summary.json", summary)
    config = {"rows": "demo/judge/pairs.jsonl", "model": "demo/sft/model", "seed": 7}
    write_json(folder / "run.json", run_file("reward", minute, {"update": 31.0, "held_out": 4.0}) | {"config": config})


def paired(step: int, steps: int, rng: random.Random, fall: float) -> Row:
    """One line of metrics.jsonl of reward and dpo; `fall`: how far the chosen answer's reward goes down."""
    done = 1 - math.exp(-4 * step / steps)
    noise = rng.gauss(0, 0.04)
    chosen = (0.4 - fall) * done + noise
    row = {"step": step, "loss": 0.69 - 0.3 * done + noise, "accuracy": min(1.0, 0.5 + 0.4 * done + 2 * noise)}
    row |= {"margin": 1.3 * done + noise, "reward_chosen": chosen, "reward_rejected": chosen - 1.3 * done}
    row |= {"grad_norm": 1.1 + noise, "lr": 1e-4 * (1 - step / steps), "tokens": 800.0 + 100 * noise}
    held = {"held_accuracy": 0.5 + 0.3 * done, "held_margin": 0.9 * done} if step % max(1, steps // 8) == 0 else {}
    return row | held | {"seconds": {"update": 0.2}}


def dpo(folder: Path, minute: int, steps: int) -> None:
    rng = random.Random(3)
    write_lines(folder / "metrics.jsonl", (paired(step, steps, rng, fall=1.6) for step in range(1, steps + 1)))
    summary = {"steps": steps, "pairs": 300, "held_out": 31, "accuracy": 0.79, "margin": 0.88, "loss": "dpo"}
    write_json(folder / "summary.json", summary)
    config = {"rows": "demo/judge/pairs.jsonl", "model": "demo/sft/model", "seed": 7, "loss": "dpo"}
    write_json(folder / "run.json", run_file("dpo", minute, {"update": 41.0, "reference": 6.0}) | {"config": config})


def ppo(folder: Path, minute: int, steps: int, *, gamed: bool) -> None:
    """A PPO run; `gamed`: the score rises with length while the truth falls."""
    rng = random.Random(4)
    rows = []
    for step in range(1, steps + 1):
        done, noise = 1 - math.exp(-3 * step / steps), rng.gauss(0, 0.03)
        score = -0.2 + 1.6 * done + 2 * noise
        row: Row = {"step": step, "reward": score, "reward_score": score, "score": score, "score_std": 0.5 + noise}
        row |= {"accuracy": 0.52 + (-0.12 if gamed else 0.2) * done + noise, "format": 0.97, "finished": 0.99}
        row |= {
            "length": 19 + (14 if gamed else 4) * done + 20 * noise,
            "entropy": 0.4 - 0.2 * done,
            "clipped": 0.05 + noise / 9,
        }
        row |= {"kl": 0.002, "kl_ref": 3 * done, "beta": 0.05, "value_loss": 0.4 * (1 - done) + 0.1, "value": score}
        row |= {
            "explained_variance": 0.1 + 0.5 * done,
            "return": score,
            "advantage_std": 0.7,
            "reward_std": 0.4,
            "grad_norm": 0.6,
        }
        rows.append(row | {"groups_all_right": 0.1 + 0.1 * done, "groups_all_wrong": 0.2, "seconds": {"rollout": 0.3}})
    write_lines(folder / "metrics.jsonl", rows)
    for step in (1, steps):
        lines = [group(folder, step, i, 4, 0.3, drawn=True) for i in range(4)]
        write_lines(folder / "rollouts" / f"{step:06d}.jsonl", lines)
    config = {"rows": "rows/rl.jsonl", "model": "demo/sft/model", "reward_model": "demo/reward/model", "seed": 7}
    spent = {"rollout": 40.0, "score": 22.0, "update": 51.0, "reward": 8.0}
    write_json(folder / "run.json", run_file("ppo", minute, spent) | {"config": config})


def full(folder: Path, *, steps: int = 200, n: int = 600, pairs: int = 400, gamed: bool = True) -> Path:
    """`demo --full`: the demo's folder and the stages of feedback in it."""
    demo(folder, steps=steps, every=max(1, steps // 4), groups=4 if steps < 100 else 12, n=n)
    kept = judge(folder / "judge", 20, 0.83, pairs, told=True)
    judge(folder / "judge_plain", 21, 0.68, pairs, told=False)
    reward(folder / "reward", 22, kept[: len(kept) // 2], steps)
    dpo(folder / "dpo", 23, steps)
    ppo(folder / "ppo", 24, steps, gamed=gamed)
    for minute, model in enumerate(("dpo", "ppo"), 25):
        evaluation(folder / "eval" / model, model, minute, n)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{build(full(Path(sys.argv[1])))}\n")
