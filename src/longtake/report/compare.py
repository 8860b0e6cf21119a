"""Before and after: accuracies with 95 % intervals, differences question by question, and where a gain comes from."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from longtake.maths.stats import Estimate, paired_difference, share
from longtake.report.files import Outcome

LENGTH_BINS = 4  # chain lengths are compared in quarters of what the earlier model wrote


@dataclass(frozen=True, slots=True)
class Change:
    """One row of a before/after table; `delta` is None where the questions cannot be paired."""

    label: str
    n: int
    before: Estimate | None
    after: Estimate
    delta: Estimate | None


@dataclass(frozen=True, slots=True)
class Panel:
    """A table of before/after rows. Example: Panel("By kind", "sampled, 64 frames", rows)."""

    title: str
    note: str
    rows: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Flips:
    """The same questions answered twice: counts."""

    both: int
    fixed: int
    broken: int
    neither: int


@dataclass(frozen=True, slots=True)
class Turned:
    """A question whose outcome changed, or (`before` None) that one model got wrong."""

    before: Outcome | None
    after: Outcome


@dataclass(frozen=True, slots=True)
class Gain:
    """A gain in accuracy, split: `longer` by writing other chain lengths, `same` by being right more often at each."""

    longer: float
    same: float


def flips(before: Sequence[Outcome], after: Sequence[Outcome]) -> Flips:
    """Counts over the questions that both answered (by id; of several answers to one id the first counts)."""
    old = {row.id: row.correct for row in reversed(before)}
    new = {row.id: row.correct for row in reversed(after)}
    pairs = [(old[key], new[key]) for key in old if key in new]
    return Flips(
        pairs.count((True, True)), pairs.count((False, True)), pairs.count((True, False)), pairs.count((False, False))
    )


def turned(before: Sequence[Outcome], after: Sequence[Outcome], most: int) -> tuple[Turned, ...]:
    """Up to `most` questions that turned wrong and as many that turned right, by id; of one model, wrong ones."""
    old = {row.id: row for row in reversed(before)}
    rows = sorted(after, key=lambda row: row.id)
    if not before:
        return tuple(Turned(None, row) for row in rows if not row.correct)[:most]
    pairs = [Turned(old[row.id], row) for row in rows if row.id in old and old[row.id].correct != row.correct]
    return tuple(p for p in pairs if not p.after.correct)[:most] + tuple(p for p in pairs if p.after.correct)[:most]


def change(label: str, before: Sequence[Outcome], after: Sequence[Outcome]) -> Change:
    """One before/after row from outcomes; `after` must not be empty. The difference is over questions both answered."""
    old = {row.id: row.correct for row in reversed(before)}
    pairs = [(float(old[row.id]), float(row.correct)) for row in after if row.id in old]
    delta = paired_difference([was for was, _ in pairs], [now for _, now in pairs]) if len(pairs) > 1 else None
    return Change(label, len(after), _rate(before) if before else None, _rate(after), delta)


def by(key: Callable[[Outcome], str], before: Sequence[Outcome], after: Sequence[Outcome]) -> tuple[Change, ...]:
    """A before/after row for each value of `key` in `after`, sorted (numbers as numbers)."""
    labels = sorted({key(row) for row in after} - {""}, key=lambda text: (len(text) if text.isdigit() else 99, text))
    return tuple(change(label, _only(key, label, before), _only(key, label, after)) for label in labels)


def gain(before: Sequence[Outcome], after: Sequence[Outcome]) -> Gain | None:
    """Split the gain by chain length (Kitagawa 1955): lengths are cut at the quartiles of `before`.

    longer = Σ (share after - share before) · accuracy before,
    same = Σ share after · (accuracy after - accuracy before). The two add up to the whole
    gain. None where `before` has one length only, or nothing.
    """
    lengths = sorted(row.tokens for row in before)
    if not after or not lengths or lengths[0] == lengths[-1]:
        return None
    cuts = {lengths[len(lengths) * i // LENGTH_BINS] for i in range(1, LENGTH_BINS)}
    edges = sorted(cut for cut in cuts if cut < lengths[-1]) or [max(size for size in lengths if size < lengths[-1])]
    longer = same = 0.0
    for was, now in zip(_binned(edges, before), _binned(edges, after), strict=True):  # every `was` holds its upper edge
        rate_was = sum(was) / len(was)
        longer += (len(now) / len(after) - len(was) / len(before)) * rate_was
        same += (sum(now) - len(now) * rate_was) / len(after)
    return Gain(longer, same)


def _rate(rows: Sequence[Outcome]) -> Estimate:
    return share(sum(row.correct for row in rows), len(rows))


def _only(key: Callable[[Outcome], str], label: str, rows: Sequence[Outcome]) -> list[Outcome]:
    return [row for row in rows if key(row) == label]


def _binned(edges: Sequence[int], rows: Sequence[Outcome]) -> list[list[bool]]:
    """Right or wrong, by bin of length: at most edges[0], at most edges[1], …, longer."""
    table: list[list[bool]] = [[] for _ in range(len(edges) + 1)]
    for row in rows:
        table[bisect_left(edges, row.tokens)].append(row.correct)
    return table
