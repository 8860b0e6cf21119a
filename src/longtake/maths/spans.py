"""Which queries read which keys of a packed row: spans for the kernel calls of `attention`, of a row or a share of it.

T tokens of a row, C of them asking, U of inner segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Literal

from longtake.maths import varlen

if TYPE_CHECKING:
    import torch

    from longtake.maths.share import Run
    from longtake.records import Layout, Segment

Asked = Literal["all", "ends", "answers"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Kernel calls. The first ones give every query its output, the others join theirs to it."""

    queries: int
    own: tuple[varlen.Call, ...]  # segments on themselves: every query is in one call, and every key of the row
    cross: tuple[varlen.Call, ...]  # what continues a segment on its keys
    covers: bool = True  # whether `own` reads every key of the row


@lru_cache(maxsize=8)  # layers ask for the same one in turn; a long row has megabytes of places
def plan_row(layout: Layout, asked: Asked, ragged: bool, device: torch.device) -> Plan:
    """`asked`: whose outputs are computed. For "answers" inner segments have keys in a row of their own."""
    segments, total, apart = layout.segments, layout.total, asked == "answers"
    of_inner = {"all": total, "ends": 1, "answers": 0}[asked]
    asking = [min(segment.length, of_inner) if segment.inner else segment.length for segment in segments]
    before, count = {}, 0  # queries before each place where a segment begins, or the last one ends
    for segment, queries in zip(segments, asking, strict=True):
        before[segment.start] = count
        count += queries
    before[total] = count
    own: list[varlen.Span] = []
    last: list[varlen.Span] = []
    cross: list[list[varlen.Span]] = []  # one per depth: within one, none overlap
    open_until: list[int] = []  # where the segments that this one continues stop
    for segment, queries in zip(segments, asking, strict=True):
        start, length = segment.start, segment.length
        while open_until and open_until[-1] <= start:
            open_until.pop()
        key = (start - before[start] if segment.inner else before[start]) if apart else start
        (own if queries == length else last).append((before[start], queries, key, length))
        if segment.inner and length:
            first = before[start + length]
            if len(open_until) == len(cross):
                cross.append([])
            cross[len(open_until)].append((first, before[segment.stop] - first, key, length))
            open_until.append(segment.stop)
    calls = partial(varlen.plan, ragged=ragged, device=device)
    crossing = [call for spans in cross for call in calls(spans, causal=False)]
    return Plan(count, (*calls(own, causal=True), *calls(last, causal=False)), tuple(crossing))


@lru_cache(maxsize=8)
def plan_share(layout: Layout, runs: tuple[Run, ...], ragged: bool, device: torch.device) -> Plan:
    """For the tokens of some runs of a row of inner segments, whose own keys are at hand and those of the row beside
    them: `own` reads the former, `cross` the latter.
    """
    own: list[varlen.Span] = []
    cross: list[list[varlen.Span]] = []
    before = 0
    for start, stop in runs:  # each by itself: two runs of one segment read keys of the same beginning
        earlier: list[varlen.Span] = []
        for segment in layout.segments:
            first, last = max(start, segment.start), min(stop, segment.start + segment.length)
            if first < last:
                own.append((before + first - start, last - first, before + first - start, last - first))
            if first < last and segment.start < first:
                earlier.append((before + first - start, last - first, segment.start, first - segment.start))
        cross += [earlier, *_above(layout.segments, [(before - start, start, stop)])]
        before += stop - start
    calls = partial(varlen.plan, ragged=ragged, device=device)
    crossing = [call for spans in cross for call in calls(spans, causal=False)]
    return Plan(before, calls(own, causal=True), tuple(crossing))


@lru_cache(maxsize=8)
def plan_ends(layout: Layout, mine: tuple[int, ...], ragged: bool, device: torch.device) -> Plan:
    """For the last tokens of some inner segments (their numbers), with the keys of the whole row."""
    segments = layout.segments
    own = [(query, 1, segments[number].start, segments[number].length) for query, number in enumerate(mine)]
    places = [segments[number].start + segments[number].length - 1 for number in mine]
    asking = [(query - place, place, place + 1) for query, place in enumerate(places)]
    calls = partial(varlen.plan, ragged=ragged, device=device)
    crossing = [call for spans in _above(segments, asking) for call in calls(spans, causal=False)]
    return Plan(len(mine), calls(own, causal=False), tuple(crossing), covers=False)


def _above(segments: Sequence[Segment], asking: Sequence[tuple[int, int, int]]) -> list[list[varlen.Span]]:
    """By depth, the keys of inner segments that the queries at some places continue.

    asking: (what to add to a place for its query, start, stop), in row order and neighbours as queries.
    """
    cross: list[list[varlen.Span]] = []
    open_until: list[int] = []
    for segment in segments:
        while open_until and open_until[-1] <= segment.start:
            open_until.pop()
        below = segment.start + segment.length
        reads = [(add + max(start, below), min(stop, segment.stop) - max(start, below)) for add, start, stop in asking]
        reads = [(query, count) for query, count in reads if count > 0]
        if segment.length and reads:
            while len(cross) <= len(open_until):
                cross.append([])
            count = sum(count for _, count in reads)
            cross[len(open_until)].append((reads[0][0], count, segment.start, segment.length))
        open_until.append(segment.stop)
    return cross
