"""Which examples a step learns from: an endless walk over a file, or its stages from easy to hard. Pure functions.

A curriculum sorts by hardness, cuts at quantiles and shuffles inside a stage; a stage has the share of the steps that
its examples are of all. VLM-RLAIF (arXiv 2402.03746) trains on short answers first: 214k of 327k rows, then the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from longtake.errors import UserError
from longtake.log import Log
from longtake.records import Example
from longtake.train.keys import batch, keyed
from longtake.train.turns import tokens_of

NAMES = {"length": "answer tokens", "pass_rate": "pass rate"}


class Learns(Protocol):
    """The config of supervised fine-tuning, as far as the order of its examples goes."""

    @property
    def rows(self) -> Path: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def batch_by(self) -> str: ...
    @property
    def shuffle(self) -> bool: ...
    @property
    def curriculum(self) -> str: ...
    @property
    def curriculum_cuts(self) -> tuple[float, ...]: ...
    @property
    def seed(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Stage:
    """Examples that are learned from step `start` (from 0) on. Example: Stage(examples, 327)."""

    examples: tuple[Example, ...]
    start: int


@dataclass(frozen=True, slots=True)
class Walk:
    """How a run goes through its examples. Example: Walk((Stage(examples, 0),), size=32, shuffle=True, seed=0)."""

    stages: tuple[Stage, ...]  # in order; one of them without a curriculum
    size: int | None  # examples a step; None = those with one value of their row's key `batch`
    shuffle: bool
    seed: int

    @property
    def fewest(self) -> int:
        """Examples of the smallest stage."""
        return min(len(stage.examples) for stage in self.stages)

    def stage(self, step: int) -> int:
        """Number (from 1) of the stage that a step (from 0) belongs to."""
        return sum(stage.start <= step for stage in self.stages)

    def take(self, step: int, taken: int) -> list[Example]:
        """The examples of a step before which `taken` were learned from."""
        number = self.stage(step)
        stage = self.stages[number - 1]
        count, seed = len(stage.examples), self.seed
        if len(self.stages) > 1:
            assert self.size is not None, "stages are no rows of one batch"
            taken, seed = taken - stage.start * self.size, keyed(self.seed, "stage", number)
        found: list[Example] = []
        for place in batch(seed, count, taken, self.size or count, self.shuffle):
            example = stage.examples[place]
            if self.size is None and found and example.question.row["batch"] != found[0].question.row["batch"]:
                break
            found.append(example)
        return found


def in_stages(
    examples: Sequence[Example], hardness_N: Sequence[float], cuts: Sequence[float], steps: int
) -> tuple[Stage, ...]:
    """Stages from easy to hard, cut at quantiles; equally hard examples stay in their order.

    Raises UserError where a stage would hold nothing or make no step.
    """
    count = len(examples)
    order = sorted(range(count), key=lambda i: hardness_N[i])
    places = [0, *(round(cut * count) for cut in cuts), count]
    starts = [round(steps * place / count) for place in places]
    for first, (what, had) in ((places, ("question", count)), (starts, ("step", steps))):
        if any(a >= b for a, b in pairwise(first)):
            why = f"{had} {what}s in all, cut at {', '.join(f'{cut:g}' for cut in cuts)}"
            raise UserError(f"a stage of the curriculum has no {what}", why=why, fix="correct --curriculum-cuts")
    return tuple(
        Stage(tuple(examples[i] for i in order[first:last]), start)
        for first, last, start in zip(places, places[1:], starts, strict=False)
    )


def open_walk(examples: Sequence[Example], learns: Learns, tokenizer: Any, end: int, log: Log) -> Walk:
    """How the run goes through its examples; a curriculum says its borders.

    Raises UserError if a step is larger than the file or a stage, or if all examples are equally hard.
    """
    order, size = learns.curriculum, learns.batch if learns.batch_by == "count" else None
    stages: tuple[Stage, ...] = (Stage(tuple(examples), 0),)
    if order != "none":
        hard = hardness(examples, order, tokenizer, end, learns.rows)
        if min(hard.values()) == max(hard.values()):
            why = f"{NAMES[order]} {abs(min(hard.values())):g} throughout"
            raise UserError("all questions are equally hard", where=str(learns.rows), why=why, fix="--curriculum none")
        stages = in_stages(examples, [hard[e.question.id] for e in examples], learns.curriculum_cuts, learns.steps)
        stops = [*(stage.start for stage in stages[1:]), learns.steps]
        for number, (stage, stop) in enumerate(zip(stages, stops, strict=True), start=1):
            own = [abs(hard[example.question.id]) for example in stage.examples]
            about = f"{len(own)} questions, {NAMES[order]} {own[0]:.4g} to {own[-1]:.4g}"
            log.note(f"stage {number} of {len(stages)}: steps {stage.start + 1} to {stop}, {about}")
    made = Walk(stages, size, learns.shuffle, learns.seed)
    if made.fewest < (size or 1):
        where = str(learns.rows) + ("" if order == "none" else ", smallest stage of the curriculum")
        raise UserError(f"only {made.fewest} questions to learn from", where=where, fix=f"--batch {made.fewest}")
    return made


def hardness(examples: Sequence[Example], order: str, tokenizer: Any, end: int, path: Path) -> dict[str, float]:
    """By question id, easy first: tokens to learn of an answer (mean where there are several), or -pass rate.

    Raises UserError for a row without a pass rate.
    """
    if order == "length":
        counts = {
            example.question.id: [sum(w != 0 for w in tokens_of(tokenizer, end, spans)[1]) for spans in example.targets]
            for example in examples
        }
        return {name: sum(own) / len(own) for name, own in counts.items()}
    rates: dict[str, Any] = {example.question.id: example.question.row.get("pass_rate") for example in examples}
    wrong = [name for name, rate in rates.items() if not isinstance(rate, int | float) or not 0 <= rate <= 1]
    if wrong:
        why = f"{len(wrong)} of {len(rates)} rows have none between 0 and 1"
        fix = "learn from files that `longtake difficulty` wrote, or use --curriculum length"
        raise UserError("a row has no pass_rate", where=f"row {wrong[0]} of {path}", why=why, fix=fix)
    return {name: -float(rate) for name, rate in rates.items()}
