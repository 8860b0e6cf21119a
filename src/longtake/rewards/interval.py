"""Temporal grounding: overlap of the seconds an answer names with the seconds that are right."""

from __future__ import annotations

import re
from collections.abc import Sequence

from longtake.rewards.extract import answer_span

Interval = tuple[float, float]  # seconds, start before stop
TIME = r"(?<![\d.])(?:(?:\d{1,3}:)?\d{1,3}:\d{1,2}(?:\.\d{1,9})?|\d{1,7}(?:\.\d{1,9})?)(?!\d)"
UNIT = r"\s*(?:s|sec|secs|second|seconds)?\b"
PAIR = re.compile(rf"({TIME}){UNIT}\s*(?:-|–|—|,|;|to|and|until|till)\s*({TIME})", re.IGNORECASE)


def read_intervals(text: str) -> tuple[Interval, ...]:
    """All "a-b" of a text in seconds: "12.5-15 seconds", "from 0:12 to 0:20", "[1.2, 3.4]", "1:02:03 – 1:02:09"."""
    pairs = [(_seconds(match[1]), _seconds(match[2])) for match in PAIR.finditer(text)]
    return tuple((start, stop) for start, stop in pairs if start < stop)


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60 + float(part)
    return total


def interval_reward(text: str, truth: Sequence[Interval]) -> float:
    """Intersection over union, in [0, 1], of what the answer names and what is right; several intervals are united.

    Raises ValueError where `truth` covers no time.
    """
    right = _united(truth)
    if not right:
        raise ValueError(f"the right intervals {list(truth)} cover no time")
    said = _united(read_intervals(answer_span(text)[0]))
    common = sum(max(0.0, min(b, d) - max(a, c)) for a, b in said for c, d in right)
    return common / (_length(said) + _length(right) - common)


def _united(intervals: Sequence[Interval]) -> list[Interval]:
    """Disjoint intervals that cover the same time."""
    united: list[Interval] = []
    for start, stop in sorted(intervals):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(stop, united[-1][1]))
        elif start < stop:
            united.append((start, stop))
    return united


def _length(intervals: Sequence[Interval]) -> float:
    return sum(stop - start for start, stop in intervals)
