"""What an arm of the study came to, and differences between two arms on the same questions or pairs.

Everything is read from run folders: outcomes of single questions, judged pairs, scores of a reward model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.study_arms import MOST
from bench.study_cost import Tokens, seconds
from bench.study_stats import clustered, slope
from longtake.cli.demo import FRAMES
from longtake.log import read_json, read_jsonl
from longtake.maths.stats import Estimate, mean, paired_difference
from longtake.train.judging import ORDERS

WAYS = ("sampled", "greedy")
Numbers = dict[str, float]  # of an arm, as the JSON has them


@dataclass(frozen=True, slots=True)
class Difference:
    """`arm` - `against`. Example: Difference("grpo", "full", "sampled", Estimate(0.03, 0.01, 0.05, 600))."""

    arm: str
    against: str
    measure: str
    estimate: Estimate

    def row(self) -> dict[str, Any]:
        """For the JSON."""
        one = self.estimate
        named = {"arm": self.arm, "against": self.against, "measure": self.measure}
        return named | {"value": one.value, "low": one.low, "high": one.high, "n": one.n}


@dataclass(slots=True)
class Found:
    """What one row of the study came to under one seed."""

    arms: dict[str, Numbers] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # on the row as a whole

    def row(self) -> dict[str, Any]:
        """For the JSON."""
        return {"arms": self.arms, "differences": [one.row() for one in self.differences], "facts": self.facts}


def outcomes(folder: Path, way: str, frames: int = MOST) -> list[dict[str, Any]]:
    """Of an evaluation's run folder, a line a question."""
    return read_jsonl(folder / "outcomes" / f"{frames}-{way}-none.jsonl")


def accuracy(folder: Path) -> Numbers:
    """Shares of right answers, tokens of a sampled answer, questions."""
    rows = {way: outcomes(folder, way) for way in WAYS}
    shares = {way: fmean(row["correct"] for row in own) for way, own in rows.items()}
    sampled = rows["sampled"]
    return {
        **shares, "length": fmean(row["tokens"] for row in sampled), "format": fmean(row["format"] for row in sampled),
        "n": float(len(sampled)),
    }  # fmt: skip


def took(tokens: Tokens, *folders: Path, before: str = "") -> Numbers:
    """Wall seconds of these runs, and their tokens by kind."""
    return {f"{before}seconds": round(seconds(*folders), 1)} | tokens.row(before)


def differences(folders: Mapping[str, Path], pairs: Sequence[tuple[str, str]]) -> list[Difference]:
    """In sampled and greedy accuracy at 64 frames, of evaluations by the arm's name."""
    return [
        Difference(arm, against, way, paired_difference(*_both(folders[against], folders[arm], way, MOST)))
        for arm, against in pairs
        for way in WAYS
    ]


def _both(before: Path, after: Path, way: str, frames: int) -> tuple[list[float], list[float]]:
    old, new = outcomes(before, way, frames), outcomes(after, way, frames)
    assert [row["id"] for row in old] == [row["id"] for row in new], "the same questions in the same order"
    return [float(row["correct"]) for row in old], [float(row["correct"]) for row in new]


def by_frames(folder: Path) -> Numbers:
    """Accuracy at every number of frames, and its slope per doubling."""
    found: Numbers = {}
    for way in WAYS:
        shares = [fmean(row["correct"] for row in outcomes(folder, way, frames)) for frames in FRAMES]
        found |= {f"{way}_{frames}": share for frames, share in zip(FRAMES, shares, strict=True)}
        found[f"{way}_slope"] = slope(shares)
    return found


def slopes(arm: str, against: str, folders: Mapping[str, Path]) -> list[Difference]:
    """In the slope of accuracy per doubling of the frames: of every question the slope of right and wrong."""
    found = []
    for way in WAYS:
        sides = [_both(folders[against], folders[arm], way, frames) for frames in FRAMES]
        old = [slope(own) for own in zip(*(side[0] for side in sides), strict=True)]
        new = [slope(own) for own in zip(*(side[1] for side in sides), strict=True)]
        each = mean([b - a for a, b in zip(old, new, strict=True)])
        found.append(Difference(arm, against, f"{way}_slope", each))
    return found


def judged(folder: Path) -> dict[str, dict[str, Any]]:
    """Judged pairs of which exactly one answer is known to be right, by id, each with

    question; texts; all: 1 right, 0 wrong, ½ not kept; verdicts: share of those that name an answer and are right.
    """
    found = {}
    for row in read_jsonl(folder / "judged.jsonl"):
        correct = [answer["correct"] for answer in row["answers"]]
        if set(correct) != {True, False} or row["outcome"] in ("same", "failed"):
            continue
        right = correct.index(True)
        named = [
            ORDERS[one["order"]]["AB".index(one["said"])] == right
            for one in row["verdicts"]
            if one["said"] in ("A", "B")
        ]
        found[row["id"]] = {
            "question": row["question_id"], "texts": [answer["text"] for answer in row["answers"]],
            "all": 0.5 if row["better"] is None else float(row["better"] == right),
            "verdicts": fmean(named) if named else None,
        }  # fmt: skip
    return found


def judges(arm: str, against: str, folders: Mapping[str, Path]) -> list[Difference]:
    """Between judges of the same answers, over pairs; those of one question may depend on each other.

    Empty where neither can be told right from wrong: of a small study.
    """
    old, new = judged(folders[against]), judged(folders[arm])
    shared = [(one, new[name]) for name, one in old.items() if name in new and new[name]["texts"] == one["texts"]]
    found = []
    for measure in ("all", "verdicts"):
        told = [pair for pair in shared if None not in (pair[0][measure], pair[1][measure])]
        each = grouped((one["question"], other[measure] - one[measure]) for one, other in told)
        if len(each) > 1:
            found.append(Difference(arm, against, f"accuracy_{measure}", clustered(each)))
    return found


def scored(arm: str, against: str, folders: Mapping[str, Path]) -> Difference:
    """Between reward models, over the same held-out pairs: how often the chosen answer has the higher score."""
    old, new = ({row["id"]: row for row in read_jsonl(folders[name] / "scores.jsonl")} for name in (against, arm))
    assert old.keys() == new.keys(), "the same pairs are held out"
    each = grouped((row["question_id"], _won(new[name]) - _won(row)) for name, row in old.items())
    return Difference(arm, against, "reward", clustered(each))


def ranked(folder: Path) -> Numbers:
    """What a reward model's run says of held-out pairs; `truth`: where one answer is right and the other wrong."""
    told = read_json(folder / "summary.json")
    truth = {"truth": told["truth"]["accuracy"]} if told["truth"] else {}
    return {"reward": told["accuracy"], "held_out": told["n"]} | truth


def _won(row: Mapping[str, Any]) -> float:
    lead = row["model_chosen"] - row["model_rejected"]
    return 0.5 if lead == 0 else float(lead > 0)


def grouped(numbers: Iterable[tuple[str, float]]) -> dict[str, list[float]]:
    """By the name before each."""
    found: dict[str, list[float]] = defaultdict(list)
    for name, value in numbers:
        found[name].append(value)
    return found
