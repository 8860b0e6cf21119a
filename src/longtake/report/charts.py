"""Small charts: numbers to places on a small canvas; the templates draw them as SVG that follows the page's colours.

A Plot is a box of W by H units, y turned to SVG's downwards. It is shown 310 to 560 pixels wide on any screen, so that
its text keeps a readable size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

W, H = 400.0, 190.0  # canvas, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 44.0, 12.0, 10.0, 24.0  # margins for tick labels
MAX_POINTS = 240  # more are averaged in bins before drawing

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Tick:
    at: float  # SVG units
    label: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A point with its interval and the words shown when the pointer rests on it."""

    x: float
    y: float
    low: float
    high: float
    title: str


@dataclass(frozen=True, slots=True)
class Trace:
    """One line or area: `tone` is its CSS class, `path` SVG path data."""

    name: str
    tone: str
    path: str
    marks: tuple[Mark, ...] = ()
    label_y: float | None = None  # where its name stands at the right end, None = no label


@dataclass(frozen=True, slots=True)
class Text:
    """Words inside a chart, centred at a place."""

    x: float
    y: float
    text: str


@dataclass(frozen=True, slots=True)
class Plot:
    """A chart ready to draw."""

    title: str
    note: str  # under the title: unit, smoothing, first and last value
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    traces: tuple[Trace, ...]
    right: float = W - RIGHT  # where the grid ends
    texts: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear (or log2) map of a range of values to a range of places."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log2(v) if self.log else v for v in (self.low, self.high, value))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.stop - self.start)


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round values inside a range. Example: ticks(0, 0.87) -> [0, 0.2, 0.4, 0.6, 0.8]."""
    if high <= low:
        return [low]
    rough = (high - low) / most
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * m for m in (1, 2, 2.5, 5, 10) if unit * m >= rough * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def smooth(points: Points, window: int) -> list[tuple[float, float]]:
    """Centred moving mean over `window` points (cut off at the ends)."""
    half = window // 2
    out = []
    for i, (x, _) in enumerate(points):
        part = points[max(0, i - half) : i + half + 1]
        out.append((x, sum(y for _, y in part) / len(part)))
    return out


def thinned(points: Points) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that at most MAX_POINTS are left."""
    size = -(-len(points) // MAX_POINTS)
    parts = [points[i : i + size] for i in range(0, len(points), size)] if points else []
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def path(points: Points, x: Scale, y: Scale) -> str:
    """SVG path through the points."""
    return "M" + "L".join(f"{x(a):.1f} {y(b):.1f}" for a, b in points) if points else ""


def dots(points: Points, x: Scale, y: Scale) -> str:
    """SVG path that is a round dot at every point, under a round line cap."""
    return "".join(f"M{x(a):.1f} {y(b):.1f}h0" for a, b in points)


def band(low: Points, high: Points, x: Scale, y: Scale) -> str:
    """SVG path around the area between two lines."""
    return path([*high, *reversed(low)], x, y) + "Z"


def axes(
    x_low: float, x_high: float, y_low: float, y_high: float, *, log_x: bool = False, right: float = W - RIGHT
) -> tuple[Scale, Scale]:
    """The two scales of a chart."""
    return Scale(x_low, x_high, LEFT, right, log_x), Scale(y_low, y_high, H - BOTTOM, TOP)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places moved apart so that no two are nearer than `gap`, order kept, for labels at line ends."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    out = list(places)
    for before, now in pairwise(order):
        out[now] = max(out[now], out[before] + gap)
    overflow = max(0.0, max(out, default=0.0) - (H - BOTTOM))
    return [place - overflow for place in out]
