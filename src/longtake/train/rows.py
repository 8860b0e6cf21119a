"""Prompts with their answers, packed into rows of a budget: learned from, or read.

G answers of one prompt, R answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor

from longtake.maths.pack import pack
from longtake.protocols import Model
from longtake.records import AnswerRow, PrefixRow, Prompt
from longtake.runtime.prefix import Prefill
from longtake.runtime.rows import bare, cached, lead
from longtake.train.session import Session
from longtake.train.step import Goal, Sums, backward, chunks, read_out

Numbers = tuple[tuple[float, ...], ...]  # [G][R]


@dataclass(frozen=True, slots=True)
class Item:
    """A prompt, its answers, and the two columns that a loss reads. Example: Item(prompt, ((7, 2),), ((1.0, 1.0),))."""

    prompt: Prompt
    ids: tuple[tuple[int, ...], ...]  # [G][R] end token included
    weights: Numbers
    old: Numbers | None = None  # zeros without

    @property
    def tokens(self) -> int:
        return len(self.prompt.ids) + sum(map(len, self.ids))


def packed(model: Model, items: Sequence[Item]) -> PrefixRow:
    """One row of the items."""
    old = [item.old or tuple((0.0,) * len(ids) for ids in item.ids) for item in items]
    prompts, ids = [item.prompt for item in items], [item.ids for item in items]
    return pack(prompts, ids, [item.weights for item in items], old, lead=lead(model))


def backward_items(session: Session, items: Sequence[Item], objective: Goal, row_tokens: int) -> Sums:
    """Adds the gradients of the summed loss, in rows of at most `row_tokens` prefix tokens."""
    sums = Sums()
    for run, row, made in _rows(session, items, row_tokens):
        scale = session.passes.scale(session.progress.step, run[0].prompt.id)
        sums += backward(session.model, session.films.features, row, objective, session.passes, made, scale)
    return sums


def read_items(
    session: Session, items: Sequence[Item], of: Callable[[Tensor, AnswerRow], Tensor], row_tokens: int
) -> list[list[Tensor]]:
    """[N][G] of [R]: what `of` makes of the states that predict each token (train.step.read_out)."""
    found: list[list[Tensor]] = []
    for run, row, made in _rows(session, items, row_tokens):
        lengths = [len(ids) for item in run for ids in item.ids]
        answers = iter(read_out(session.model, session.films.features, row, of, session.passes, made).split(lengths))
        found += [[next(answers) for _ in item.ids] for item in run]
    return found


def _rows(
    session: Session, items: Sequence[Item], row_tokens: int
) -> Iterator[tuple[list[Item], PrefixRow, Prefill | None]]:
    """Items that share a row, the row, and its prefixes where the run keeps them: then a row holds one film."""
    kept, made = session.prefixes, None
    runs = chunks(items, lambda item: len(item.prompt.ids), row_tokens)
    if kept is not None:
        runs = (list(run) for _, run in groupby(items, lambda item: item.prompt.features or item.prompt.id))
    for run in runs:
        if kept is not None:
            prompts = [item.prompt for item in run]
            made = cached(session.model, bare(session.model, prompts), session.films.features, kept)
        yield run, packed(session.model, run), made
