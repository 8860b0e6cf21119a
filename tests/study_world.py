"""A demo of --full and recipes that only pretend, for the tests of the study: every number in them is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.world import write

from longtake.cli.demo_stages import Plan
from longtake.log import read_jsonl
from longtake.sim import judging, make

SEED = 3
HELD = 3  # pairs that a pretended reward model holds out
PROMPT, ANSWER = 100, 20  # tokens
LEADS = {"reward": 1.0}


def dumped(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def judged_row(number: int, right: int, better: int | None, *, outcome: str, said: str = "AB") -> dict[str, Any]:
    """`said`: what the judge names when asked in the orders AB and BA."""
    return {
        "id": f"rl-{number}#0", "question_id": f"rl-{number // 2}", "outcome": outcome, "better": better,
        "answers": [{"text": f"one {number}", "correct": right == 0}, {"text": f"two {number}", "correct": right == 1}],
        "verdicts": [{"order": order, "said": word} for order, word in zip(("AB", "BA"), said, strict=True)],
    }  # fmt: skip


CONSISTENT = [judged_row(n, 0, 0, outcome="kept") for n in range(4)]


def judge(folder: Path, rows: list[dict[str, Any]]) -> None:
    numbers = {"accuracy_all": 0.75, "accuracy_verdicts": 0.8, "accuracy": 0.9, "accuracy_all_n": 4, "flip_rate": 0.1}
    counts = {
        "slot_a": None,
        "pairs": 4,
        "kept": 3,
        "written": 3,
        "ties": 0,
        "flipped": 1,
        "tokens_in": 1000,
        "tokens_out": 200,
    }
    dumped(folder / "summary.json", numbers | counts)
    dumped(folder / "run.json", {"seconds": {"judge": 10.0}})
    write(folder / "judged.jsonl", rows)
    asked = {"tokens_in": PROMPT, "said": [{"tokens": ANSWER}] * 4}
    write(folder / "asked" / "policy.jsonl", [asked] * 8)


def sort(folder: Path, questions: Path) -> None:
    asked = read_jsonl(questions)
    for name, part, rate in (("hard", asked[:2], 0.0), ("medium", asked[2:6], 0.5), ("easy", asked[6:], 1.0)):
        write(folder / f"{name}.jsonl", [row | {"pass_rate": rate} for row in part])
    answer = {"role": "assistant", "content": "<think> so red </think> <answer> red </answer>"}
    told = [row | {"messages": [*row["messages"], answer]} for row in asked]
    write(folder / "right.jsonl", told)
    dumped(folder / "summary.json", {"questions": 8, "answers": 10, "medium": 4})


def evaluated(folder: Path, frames: int, right: int, count: int = 8) -> None:
    for way, more in (("sampled", 0), ("greedy", 1)):
        told = {"tokens": ANSWER, "format": True}
        rows = [{"id": f"test-{n}", "correct": n < right + more} | told for n in range(count)]
        write(folder / "outcomes" / f"{frames}-{way}-none.jsonl", rows)


def demo(out: Path) -> Plan:
    """What `longtake demo --full` leaves behind, but films and models."""
    plan = Plan(out / str(SEED), SEED, 0.01, 1)
    folder = plan.out
    make.make_rows(folder, SEED, plan.films(), 2)
    sort(folder / "difficulty", plan.rows("rl"))
    judge(folder / "judge", CONSISTENT)
    judge(
        folder / "judge_plain",
        [
            judged_row(0, 0, 0, outcome="kept"),
            judged_row(1, 0, 1, outcome="kept", said="BA"),
            judged_row(2, 0, None, outcome="flipped", said="AA"),
            judged_row(3, 0, 0, outcome="kept"),
        ],
    )
    stories = make.scenes(SEED, "rl", 8)
    films = [{"film": f"../films/rl-{n}.mp4", "clips": clips(judging.narrative(s))} for n, s in enumerate(stories)]
    write(folder / "judge" / "narratives.jsonl", films)
    dumped(folder / "sft" / "summary.json", {"steps": 7})
    pretended = Pretended()
    for stage in ("difficulty", "sft", "reward"):
        pretended.leave(folder / stage, stage, {"batch": 2}, 7)
    for name, right in (("sft", 4), ("base", 0)):
        for frames in (8, 16, 32, 64):
            evaluated(folder / "eval" / name, frames, right)
    return plan


def clips(narrative: str) -> list[dict[str, str]]:
    """Two captions: four seconds each."""
    words = narrative.split()
    return [{"caption": " ".join(words[:8])}, {"caption": " ".join(words[8:])}]


@dataclass
class Pretended:
    """Recipes that leave run folders as if they had learned; like the real ones they go on, or return what is there."""

    right: dict[str, int] = field(default_factory=dict)  # of eight questions, by the arm's name; 5 without
    asked: dict[Path, Any] = field(default_factory=dict)  # configs by run folder, every time that one was asked for
    made: list[Path] = field(default_factory=list)  # folders in the order in which they were made
    killed_at: str = ""  # the arm that a kill falls into

    def train(self, stage: str, config: Any) -> dict[str, Any]:
        self.asked[config.out] = config
        if not (config.out / "summary.json").exists():
            if self.killed_at and self.killed_at == config.out.parent.name:
                raise KeyboardInterrupt
            if stage == "judge":
                judge(config.out, CONSISTENT)
                return {}
            if stage == "difficulty":
                sort(config.out, config.rows)
            values = config.model_dump(mode="json")
            self.leave(config.out, stage, values, values.get("steps", 5))
            self.made.append(config.out)
        return json.loads((config.out / "summary.json").read_text())

    def leave(self, folder: Path, stage: str, config: dict[str, Any], steps: int) -> None:
        dumped(folder / "run.json", {"stage": stage, "config": config, "seconds": {"update": 2.0, "load": 1.0}})
        rows = [{"step": n + 1, "tokens": 60.0, "length": ANSWER, "groups_kept": 0.5} for n in range(steps)]
        write(folder / "metrics.jsonl", rows)
        if stage == "dpo":
            write(folder / "reference.jsonl", [{"logprobs": {"rl-0": [0, 0], "rl-1": [0, 0]}}])
        if stage == "reward" and "rows" in config:
            lead = LEADS["reward"]
            every = read_jsonl(Path(config["rows"]))
            held = [one for one in every if int(one["id"].split("-")[1]) < HELD]
            scored = [
                {"id": one["id"], "question_id": one["id"], "model_chosen": lead, "model_rejected": 0.0} for one in held
            ]
            write(folder / "scores.jsonl", scored)
        if not (folder / "summary.json").exists():
            dumped(folder / "summary.json", {"steps": steps, "accuracy": 1.0, "n": HELD, "truth": {"accuracy": 1.0}})

    def evaluate(self, config: Any) -> None:
        self.asked[config.out] = config
        for frames in config.video.frames:
            evaluated(config.out, frames, self.right.get(config.out.parent.name, 5))
