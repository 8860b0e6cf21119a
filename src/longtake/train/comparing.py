"""How a reward model learns from pairs: files in stages, films on one side only, each answer read up to its one score.

P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtake.data.pairs import questions_of, sift_pairs
from longtake.errors import UserError
from longtake.log import Log
from longtake.models.adapters import NAME
from longtake.models.heads import add_head
from longtake.protocols import Model
from longtake.records import Pair, Span
from longtake.rewards.model import read_ids
from longtake.train.footage import decode
from longtake.train.preference import Pairs, check_enough, ids_of, longest_of, split
from longtake.train.ranking import Ranked
from longtake.train.rows import Item, read_items
from longtake.train.session import Session, read_rows
from longtake.train.settings import Video
from longtake.train.turns import asked_between


@dataclass(frozen=True, slots=True)
class Stage:
    """One file of pairs, and the steps that learn from it. Example: stages[1].first == stages[0].stop."""

    name: str  # "human" or "rows"
    pairs: Pairs
    first: int
    stop: int


@dataclass(frozen=True, slots=True)
class Reading:
    """How the answers of pairs become items. Example: Reading(session, suffix=(198, 7), margin=0.0)."""

    session: Session
    suffix: tuple[int, ...]  # tokens behind every answer
    margin: float  # times a pair's own: by how much the chosen answer should lead

    def items(self, stage: Stage, pairs: Sequence[Pair], log: Log) -> list[Item]:
        """Rows of the pairs; the last token of an answer, which is not read, weighs 1 and holds the pair's margin."""
        return [
            self._item(item, pair)
            for item, pair in zip(stage.pairs.items(self.session, pairs, log), pairs, strict=True)
        ]

    def _item(self, item: Item, pair: Pair) -> Item:
        ids = tuple(read_ids(own, self.suffix) for own in item.ids)
        margin = self.margin * (pair.margin or 0.0)
        weights, old = (tuple((0.0,) * (len(own) - 1) + (last,) for own in ids) for last in (1.0, margin))
        return replace(item, ids=ids, weights=weights, old=old)

    def scores(self, stage: Stage, items: Sequence[Item]) -> list[tuple[float, float]]:
        """[P] of the chosen and the rejected answer, as the model is now."""
        head, budget = self.session.model.heads[NAME], stage.pairs.row_tokens
        found = read_items(self.session, items, lambda hidden, row: head(hidden), budget)
        return [(float(chosen[-1]), float(rejected[-1])) for chosen, rejected in found]

    def rank(self, stages: Sequence[Stage], log: Log) -> list[Ranked]:
        """All held-out pairs with their scores."""
        found = []
        for stage in stages:
            held, size = stage.pairs.held, stage.pairs.size
            for start in range(0, len(held), size):
                part = held[start : start + size]
                for pair, scores in zip(part, self.scores(stage, self.items(stage, part, log)), strict=True):
                    chosen, rejected = ids_of(self.session, pair)
                    found.append(Ranked(pair, pair.source or stage.name, *scores, (len(chosen), len(rejected))))
        return found


def dress(model: Model, checkpoint: Path | None, seed: int) -> None:
    """Puts a new scalar head on a model that has none; a checkpoint brings its own, and so does a reward model."""
    assert checkpoint is None or NAME in model.heads, "checkpoints are saved with their head"
    if NAME not in model.heads:
        add_head(model, seed=seed)


def read(files: Mapping[str, Path], video: Video, log: Log) -> dict[str, list[Pair]]:
    """The pairs of the files: before a model is loaded, which may take minutes. Raises UserError."""
    return {name: read_rows(sift_pairs, path, video, log) for name, path in files.items()}


def stages_of(
    reading: Reading,
    found: Mapping[str, tuple[list[Pair], float]],
    video: Video,
    log: Log,
    *,
    share: float,
    seed: int,
    size: int,
    row_tokens: int,
) -> list[Stage]:
    """One behind another; `found`: the pairs of a setting, and epochs. A film is held out of all stages or of none.

    Raises UserError if too few pairs are left.
    """
    session = reading.session
    asked = [question for own, _ in found.values() for question in questions_of(own)]
    longest = longest_of(session, [pair for own, _ in found.values() for pair in own], len(reading.suffix))
    usable = {id(question) for question in decode(session.films, asked, video, log, answers=longest)}
    every = [pair for own, _ in found.values() for pair in own if id(pair.question) in usable]
    learned, held = ({id(pair) for pair in side} for side in split(session.films, every, video, share, seed))
    stages: list[Stage] = []
    for name, (pairs, epochs) in found.items():
        own, out = ([pair for pair in pairs if id(pair) in side] for side in (learned, held))
        check_enough(own, size, f"--{name}")
        first = stages[-1].stop if stages else 0
        steps = math.ceil(epochs * len(own) / size)
        stages.append(Stage(name, Pairs(own, out, video, seed, size, row_tokens), first, first + steps))
    return stages


def suffix_ids(model: Model, suffix: Sequence[str]) -> tuple[int, ...]:
    """Tokens of what stands behind every answer's end token: a user turn as the chat template writes it, then the
    beginning of the reply. Raises UserError where the template cannot.
    """
    if not suffix:
        return ()
    asked, *begun = suffix
    turns = [(Span("."),), (Span(asked, 0.0, "user"),), (Span("."),)]
    between = asked_between(model.tokenizer, model.end_ids[0], turns)[0]
    return (
        *between,
        *(token for text in begun for token in model.tokenizer(text, add_special_tokens=False)["input_ids"]),
    )


def check_margins(stages: Sequence[Stage], margin: float) -> None:
    """Raises UserError for a margin that no pair has a number for."""
    if margin and not any(pair.margin for stage in stages for pair in stage.pairs.learned):
        why = "no pair to learn from has a `margin`, or two scores that differ"
        raise UserError("a margin would have no effect", where="--margin", why=why, fix="leave it out")
