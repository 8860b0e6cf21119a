"""A made-up demo folder: for tests of the report, and for looking at it (`python -m tests.report.fake DIR`)."""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longtake.records import Receipt
from longtake.report import build
from longtake.sim.render import pictures
from longtake.sim.rows import asked, chain
from longtake.sim.scenes import FPS, KINDS, SECONDS, Scene, keyed, scene

Row = dict[str, Any]
FRAMES = (8, 16, 32, 64)
CEILING = {8: 0.42, 16: 0.62, 32: 0.88, 64: 1.0}  # accuracy falls with fewer frames
SKILL = {"spatial": 1.03, "temporal": 1.02, "goal": 1.05, "plot": 0.78}
LENGTHS = {"guess": 7, "skim": 15, "full": 29}
MACHINE = {"system": "Linux x86_64", "processors": 2, "memory_gib": 7.8, "gpus": []}
VERSIONS = {
    "python": "3.11.9",
    "longtake": "0.1.0",
    "torch": "2.13.0+cpu",
    "transformers": "5.23.0",
    "av": "18.1.0",
    "numpy": "2.3.1",
}


@dataclass(frozen=True, slots=True)
class Skill:
    """How good a made-up model is: accuracy at 64 frames by how it answers, and the share of careful chains."""

    sampled: float
    greedy: float
    careful: float


MODELS = {"base": Skill(0.03, 0.02, 0.0), "sft": Skill(0.52, 0.84, 0.45), "grpo": Skill(0.86, 0.87, 0.97)}
LATER = {"dpo": Skill(0.63, 0.83, 0.70), "ppo": Skill(0.71, 0.85, 0.80)}  # of fake_pairs


def write_json(path: Path, value: Row) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_file(stage: str, minute: int, seconds: Row, **more: Any) -> Row:
    """run.json as a stage writes it."""
    model = "demo/sft/model" if stage in ("grpo", "difficulty") else "demo/base/model"
    config = {"rows": f"rows/{stage}.jsonl", "model": model, "seed": 7, "steps": 200, "optim": {"lr": 3e-4}}
    run = {"stage": stage, "config": config, "versions": VERSIONS, "machine": MACHINE, "notes": [], "status": "done"}
    run |= {
        "started": f"2026-11-22T10:{minute:02d}:00+00:00",
        "seconds": seconds,
        "films": {"used": 1000, "quarantined": []},
    }
    return run | more


def receipt(name: str, frames: int) -> Receipt:
    """What the model saw of film `name`."""
    indices = tuple(int((i + 0.5) * FPS * SECONDS / frames) for i in range(frames))
    times = tuple(round(i / FPS, 4) for i in indices)
    return Receipt(f"films/{name}.mp4", "9f" * 16, indices, times, 32, 32, "pyav 18.1.0", 0, frames // 2, "")


def strip(path: Path, story: Scene, seen: Receipt) -> None:
    """The frames seen, side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    film = pictures(story)[list(seen.indices)]
    Image.fromarray(np.concatenate(list(film), axis=1)).save(path, quality=75)


def sample(story: Scene, skill: float, careful: float, rng: random.Random) -> Row:
    """One sampled answer: careful chains are right, careless ones guess."""
    style = "full" if rng.random() < careful else rng.choice(["guess", "skim"])
    right = rng.random() < (skill if style == "full" else 0.36)
    text = chain(story, style)
    if not right:
        wrong = rng.choice([option for option in story.options if option != story.truth])
        text = text.replace(
            f"so {story.truth} </think> <answer> {story.truth}", f"so {wrong} </think> <answer> {wrong}"
        )
    tagged = rng.random() > 0.01
    parts = {"accuracy": float(right and tagged), "format": float(tagged)}
    text = text if tagged else text[: text.index("</think>")]
    row = {
        "text": text,
        "tokens": len(text.split()),
        "finish": "stop" if tagged else "length",
        "correct": right and tagged,
    }
    return row | {"reward": parts["accuracy"] + 0.1 * parts["format"], "parts": parts}


def group(folder: Path, step: int, place: int, answers: int, strength: float, *, drawn: bool) -> Row:
    """One line of a rollouts file, with its filmstrip."""
    rng = random.Random(f"{folder.name}-{step}-{place}")
    story = scene(KINDS[place % 4], keyed(7, step, place))
    name = f"{story.kind}-{step}-{place}"
    seen = receipt(name, rng.choice([16, 32, 64]))
    level = min(0.98, (0.55 + 0.4 * strength) * SKILL[story.kind] * CEILING[len(seen.indices)] ** 0.4) * rng.choice(
        [0.25, 1, 1, 1, 1.1]
    )
    rows = [sample(story, level, 0.45 + 0.52 * strength, rng) for _ in range(answers)]
    rewards = [row["reward"] for row in rows]
    spread = float(np.std(rewards)) + 1e-4
    for row in rows:
        row["advantage"] = (row["reward"] - float(np.mean(rewards))) / spread if spread > 1e-3 else 0.0
    if drawn:
        strip(folder / "thumbs" / f"{name}.jpg", story, seen)
    line = {
        "step": step,
        "id": name,
        "kind": story.kind,
        "hops": story.hops,
        "question": asked(story),
        "answer": story.letter,
    }
    line |= {
        "options": list(story.options),
        "evidence": [list(span) for span in story.evidence],
        "receipt": asdict(seen),
    }
    return line | {"strip": f"thumbs/{name}.jpg" if drawn else None, "answers": rows}


def metric(step: int, steps: int, stage: str, rng: random.Random) -> Row:
    """One line of metrics.jsonl."""
    done = 1 - math.exp(-4 * step / steps)
    noise = rng.gauss(0, 0.03)
    if stage == "grpo":
        accuracy = 0.5 + 0.36 * done + noise
        row: Row = {"step": step, "reward": accuracy + 0.1, "accuracy": accuracy, "format": 0.96 + 0.035 * done}
        row |= {
            "length": 19 + 10 * done + 10 * noise,
            "entropy": 0.42 - 0.3 * done + noise / 3,
            "grad_norm": 0.6 + noise,
        }
        right, wrong = max(0.0, 0.02 + 0.4 * done + noise), max(0.0, 0.05 - 0.03 * done + noise / 2)
        row |= {"groups_all_right": right, "groups_all_wrong": wrong, "groups_kept": 1 - right - wrong}
        row |= {"reward_std": 0.45 - 0.2 * done + noise / 3, "finished": 0.99, "clipped": 0.0, "kl": None}
        return row | {"seconds": {"rollout": 0.29 + noise, "update": 0.14, "encode": 0.02}}
    row = {
        "step": step,
        "loss": 2.2 * (1 - done) + 0.25 + noise,
        "entropy": 1.5 * (1 - done) + 0.2,
        "grad_norm": 1 + noise,
    }
    row |= {"lr": 1.5e-3 * (1 - step / steps), "seconds": {"update": 0.2 + noise, "data": 0.01}}
    return row | (
        {"accuracy": min(1, 0.3 + 0.55 * done + noise)} if step % max(1, steps // 8) == 0 and stage == "sft" else {}
    )


def outcomes(model: str, frames: int, how: str, control: str, n: int) -> list[Row]:
    """One line a held-out question; the same questions for every model."""
    skill, rows = (MODELS | LATER)[model], []
    for i in range(n):
        story = scene(KINDS[i % 4], keyed(99, i))
        rng = random.Random(f"{i}-{how}-{frames}-{control}")
        hard = random.Random(f"{i}").random()  # of the question, shared by the models
        level = (skill.sampled if how == "sampled" else skill.greedy) * CEILING[frames] * SKILL[story.kind] / 0.97
        careful = skill.careful if how == "sampled" else 1.0
        style = "full" if rng.random() < careful else rng.choice(["guess", "skim"])
        level *= (
            1.25 if style == "full" and skill.careful < 0.9 and how == "sampled" else 0.92 if how == "sampled" else 1
        )
        level = {"no_video": 0.27, "shuffled": level * 0.5, "one_frame": 0.31}.get(control, level)
        right = 0.6 * hard + 0.4 * rng.random() < 0.5 + 0.62 * (level - 0.5)
        seen = asdict(receipt(f"test-{i}", frames)) if i < 2 else None
        row = {
            "id": f"test-{i}",
            "kind": story.kind,
            "hops": story.hops,
            "correct": right and model != "base",
            "format": model != "base",
        }
        row |= {"tokens": LENGTHS[style], "text": chain(story, style), "extracted": story.letter}
        rows.append(row | {"receipt": seen})
    return rows


def shares(rows: list[Row], key: str) -> Row:
    """by_kind or by_hops of eval.json."""
    table: dict[str, list[bool]] = {}
    for row in rows:
        table.setdefault(str(row[key]), []).append(row["correct"])
    return {label: {"accuracy": sum(marks) / len(marks), "n": len(marks)} for label, marks in sorted(table.items())}


def evaluation(folder: Path, model: str, minute: int, n: int) -> None:
    """One eval folder with its outcomes."""
    settings = []
    wanted = [(frames, how, "") for frames in FRAMES for how in ("sampled", "greedy")]
    wanted += [(64, "sampled", control) for control in ("no_video", "shuffled", "one_frame")] if model == "grpo" else []
    for frames, how, control in wanted:
        rows = outcomes(model, frames, how, control, n)
        write_lines(folder / "outcomes" / f"{frames}-{how}-{control or 'none'}.jsonl", rows)
        rate = sum(row["correct"] for row in rows) / n
        half = 1.96 * math.sqrt(max(0.0004, rate * (1 - rate)) / n)
        setting = {
            "frames": frames,
            "temperature": float(how == "sampled"),
            "control": control,
            "accuracy": rate,
            "n": n,
        }
        setting |= {
            "interval": [max(0, rate - half), min(1, rate + half)],
            "by_kind": shares(rows, "kind"),
            "by_hops": shares(rows, "hops"),
        }
        settings.append(setting | {"chain_length": sum(row["tokens"] for row in rows) / n, "format": 0.99})
    write_json(folder / "eval.json", {"model": f"demo/{model}/model", "rows": n, "settings": settings})
    write_json(folder / "run.json", run_file("eval", minute, {"answer": 20.0, "encode": 3.1, "load": 0.6}))


def demo(folder: Path, *, steps: int = 200, every: int = 10, groups: int = 12, n: int = 600) -> Path:
    """A whole demo folder. Small numbers make it quick for tests."""
    rng = random.Random(7)
    for stage, length in (("base", 3 * steps), ("sft", 2 * steps), ("grpo", steps)):
        write_lines(
            folder / stage / "metrics.jsonl", (metric(step, length, stage, rng) for step in range(1, length + 1))
        )
    seconds = {"films": 62.0, "decode": 12.0, "base": 115.0, "sft": 78.4, "difficulty": 14.5, "grpo": 102.0}
    seconds |= {"eval_base": 14.0, "eval_sft": 13.1, "eval_grpo": 18.2}
    write_json(folder / "run.json", run_file("demo", 0, seconds, status="running"))
    write_json(folder / "base" / "run.json", run_file("sft", 2, {"update": 101.0, "encode": 12.0, "data": 2.0}))
    note = "held-out greedy accuracy 0.840 reached 0.8 at step 400"
    write_json(
        folder / "sft" / "run.json", run_file("sft", 4, {"update": 61.0, "gate": 9.0, "encode": 8.0}, notes=[note])
    )
    bad = [
        {"path": "films/412.mp4", "reason": "moov atom not found"},
        {"path": "films/7.mp4", "reason": "no video stream"},
    ]
    films = {"used": 998, "quarantined": bad}
    write_json(
        folder / "difficulty" / "run.json", run_file("difficulty", 6, {"rollout": 9.5, "encode": 2.0}, films=films)
    )
    rates = (8, 25, 61, 90, 122, 140, 133, 101, 66, 38, 16)
    histogram = {f"{i / 10:.2f}": rate for i, rate in enumerate(rates)}
    write_json(folder / "difficulty" / "summary.json", {"questions": 800, "answers": 10, "histogram": histogram})
    spent = {"rollout": 58.0, "update": 27.0, "encode": 1.9, "load": 0.3}
    write_json(folder / "grpo" / "run.json", run_file("grpo", 8, spent, films={"used": 640, "quarantined": []}))
    for step in (1, *range(every, steps + 1, every)):
        done = 1 - math.exp(-4 * step / steps)
        lines = [group(folder / "grpo", step, i, 8, done, drawn=True) for i in range(groups)]
        write_lines(folder / "grpo" / "rollouts" / f"{step:06d}.jsonl", lines)
    for minute, model in enumerate(MODELS, 11):
        evaluation(folder / "eval" / model, model, minute, n)
    blind = {"no_video": 0.27, "shuffled": 0.44, "one_frame": 0.31, "chance": 0.27}
    summary = {"seed": 7, "seconds": seconds, "blind": blind, "max_decodes_per_film": 1, "max_encodes_per_set": 1}
    write_json(folder / "summary.json", summary)
    return folder


if __name__ == "__main__":
    sys.stdout.write(f"{build(demo(Path(sys.argv[1])))}\n")
