"""Prompts with their answers, packed into rows of a budget: learned from, or read.

G answers of one prompt, R answer tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

from torch import Tensor

from longtake.engines.local import of_one_film
from longtake.maths.pack import pack
from longtake.parallel.fsdp import learning, most_rows, whole
from longtake.protocols import Model
from longtake.records import AnswerRow, PrefixRow, Prompt
from longtake.runtime.prefix import Prefill
from longtake.runtime.rows import bare, cached, lead
from longtake.train.session import Session
from longtake.train.step import Goal, Sums, backward, read_out

Numbers = tuple[tuple[float, ...], ...]  # [G][R]
Some = TypeVar("Some")


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
    """Adds the gradients of the summed loss, in rows of at most `row_tokens` prefix tokens; over several ranks this
    one's share of them. The sums returned are those of all.
    """
    sums, model, features, ranks = Sums(), session.model, session.films.features, session.ranks
    mine = _runs(session, items, row_tokens)[ranks.data.index :: ranks.data.size]
    with learning(model.layers):
        attended = rows_of_others(session, objective, len(mine))
        for run in mine:
            session.at(f"question {run[0].prompt.id}")
            scale = session.passes.scale(session.progress.step, run[0].prompt.prefix)
            row, made = packed(model, run), _kept(session, run)
            sums += backward(model, features, row, objective, session.passes, made, scale, ranks)
        attended()
    return summed(session, sums)


def rows_of_others(session: Session, objective: Goal, own: int) -> Callable[[], None]:
    """Before a rank learns from its `own` rows: what to do after them, so that it takes part in those of ranks that
    have more.
    """
    model, ranks = session.model, session.ranks
    most = most_rows(model.layers, ranks.world, own)

    def attend() -> None:
        for _ in range(own, most):
            backward(model, session.films.features, None, objective, session.passes, ranks=ranks)

    return attend


def summed(session: Session, sums: Sums) -> Sums:
    """Over all ranks."""
    return sum(session.ranks.world.gather(sums), Sums())


def read_items(
    session: Session, items: Sequence[Item], of: Callable[[Tensor, AnswerRow], Tensor], row_tokens: int
) -> list[list[Tensor]]:
    """[N][G] of [R]: what `of` makes of the states that predict each token (train.step.read_out)."""
    model, features, ranks = session.model, session.films.features, session.ranks

    def read(run: list[Item]) -> list[list[Tensor]]:
        session.at(f"question {run[0].prompt.id}")
        lengths = [len(ids) for item in run for ids in item.ids]
        found_R = read_out(model, features, packed(model, run), of, session.passes, _kept(session, run), ranks)
        answers = iter(found_R.split(lengths))
        return [[next(answers) for _ in item.ids] for item in run]

    with whole(model.layers):
        return [own for run in ranks.data.deal(_runs(session, items, row_tokens), read) for own in run]


def _runs(session: Session, items: Sequence[Item], row_tokens: int) -> list[list[Item]]:
    """Items that share a row: one film's where the run keeps prefixes, or draws which of them have a gradient;
    something for every sequence of ranks.
    """
    films = [list(run) for _, run in groupby(items, lambda item: item.prompt.prefix)]
    if session.prefixes is not None:
        return films
    most = -(-len(items) // session.ranks.data.size)
    alike = [items] if session.passes.prefix_gradient in (0, 1) else films
    return [
        run for own in alike for run in chunks(own, lambda item: len(item.prompt.ids), row_tokens, most, _of_one_film)
    ]


def _of_one_film(one: Item, other: Item) -> bool:
    return of_one_film(one.prompt, other.prompt)


def _kept(session: Session, run: Sequence[Item]) -> Prefill | None:
    """The prefixes of a row where the run keeps them."""
    if session.prefixes is None:
        return None
    row = bare(session.model, [item.prompt for item in run])
    return cached(session.model, row, session.films.features, session.prefixes, session.ranks)


def chunks(
    items: Sequence[Some],
    length: Callable[[Some], int],
    budget: int,
    most: int | None = None,
    together: Callable[[Some, Some], bool] = lambda one, other: False,
) -> Iterable[list[Some]]:
    """Runs whose lengths add up to at most `budget` tokens (a longer item stands alone), of at most `most` items and
    those that belong `together` with the last.
    """
    run: list[Some] = []
    for item in items:
        full = most is not None and len(run) >= most and not together(run[-1], item)
        if run and (full or sum(map(length, run)) + length(item) > budget):
            yield run
            run = []
        run.append(item)
    if run:
        yield run
