"""When every frame of a film is shown, and where decoding can begin: what the packets say, before any pixel.

N frames in the film. Ticks are the container's unit of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SAVES = 8  # frames that a jump must save: emptying and refilling the decoder costs as much as decoding about six
STEADY = 0.25  # of a frame: containers round times, a film that keeps closer to its rate than this has a constant one


@dataclass(frozen=True, slots=True, order=True)
class Stamp:
    """One frame. Example: Stamp(1024, False, 512)."""

    pts: int  # presentation time in ticks
    key: bool  # decoding can begin here
    length: int  # ticks, 0 = unknown


@dataclass(frozen=True, slots=True)
class Timeline:
    """All frames of a film in the order of presentation."""

    pts_N: np.ndarray | None  # int64 ticks, increasing; None = no usable times, frames are counted
    key_N: np.ndarray  # bool
    seconds_N: np.ndarray  # float64, from 0
    steady: bool  # frame i is at i / fps
    fps: float
    duration: float  # seconds


def usable(stamps: Sequence[Stamp | None]) -> bool:
    """Every frame has a time and no two the same: then the time names the frame."""
    return None not in stamps and len({stamp.pts for stamp in stamps if stamp}) == len(stamps)


def timeline(stamps: Sequence[Stamp | None], base: Fraction, stated: Fraction | None) -> Timeline:
    """Stamps in any order, None where a frame has no time; `base` seconds a tick; `stated` frames a second.

    Raises ValueError if there are neither usable times nor a rate.
    """
    known = sorted(stamp for stamp in stamps if stamp)
    if usable(stamps):
        pts_N = np.array([stamp.pts for stamp in known], np.int64)
        seconds_N = (pts_N - pts_N[0]) * base.numerator / base.denominator
        fps, duration, steady = _rate(seconds_N, stated, known[-1].length * float(base))
        return Timeline(pts_N, np.array([stamp.key for stamp in known]), seconds_N, steady, fps, duration)
    if not stated:
        raise ValueError("the film says neither times nor a frame rate")
    count, fps = len(stamps), float(stated)
    return Timeline(None, np.zeros(count, bool), np.arange(count) / fps, True, fps, count / fps)


def _rate(seconds_N: np.ndarray, stated: Fraction | None, last: float) -> tuple[float, float, bool]:
    """Frames a second, duration, and whether every frame is where that rate puts it; `last` frame's length or 0."""
    count, span = len(seconds_N), float(seconds_N[-1])
    if count == 1:
        length = last or 1 / float(stated or 1)
        return 1 / length, length, True
    for fps in (float(stated or 0), (count - 1) / span):
        if fps and np.abs(seconds_N * fps - np.arange(count)).max() < STEADY:
            return fps, count / fps, True
    duration = span + (last or span / (count - 1))
    return count / duration, duration, False


def stretches(line: Timeline, wanted: Sequence[int], jumping: bool) -> list[tuple[int, list[int]]]:
    """Wanted frames (increasing) as stretches to decode: (frame to begin at, a key frame or 0; wanted frames).

    A new stretch begins where its key frame lies more than SAVES frames behind the last wanted one.
    """
    runs: list[tuple[int, list[int]]] = [(0, [])]
    keys, at = np.flatnonzero(line.key_N), 0
    for i in wanted:
        before = int(np.searchsorted(keys, i, side="right"))
        key = int(keys[before - 1]) if before else 0
        if jumping and line.pts_N is not None and key - at > SAVES:
            runs.append((key, []))
        runs[-1][1].append(i)
        at = i
    return [run for run in runs if run[1]]
