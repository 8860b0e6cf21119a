"""The study's figures as SVG: differences with their intervals, accuracy by frames, accuracy by pairs.

No background and middle tones only (contrast at least 4 to 1), so that they read on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

INK, GRID = "#767d86", "#76808a"
COLOURS = ("#2f7de0", "#ab6810", "#2b8a57", "#8d63d2", "#c4487c")
WIDTH = 840


@dataclass(frozen=True, slots=True)
class Mark:
    """A difference in points. Example: Mark("GRPO − SFT on full chains", "sampled", 3.1, 1.0, 5.2)."""

    name: str
    kind: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Line:
    """Shares in per cent over a scale that doubles. Example: Line("with reasoning", (8, 16), (36.5, 56.0))."""

    name: str
    at: tuple[float, ...]
    values: tuple[float, ...]


def forest(groups: Sequence[tuple[str, Sequence[Mark]]], title: str) -> str:
    """A line for every mark with its interval, under the name of its group; kinds by colour. Same input, same bytes."""
    marks = [mark for _, own in groups for mark in own]
    kinds = list(dict.fromkeys(mark.kind for mark in marks))
    low, high = _span([edge for mark in marks for edge in (mark.low, mark.high, 0.0)])
    left, right, y = 330.0, WIDTH - 20.0, 44.0
    parts, top = [], y - 14

    def x(points: float) -> float:
        return left + (right - left) * (points - low) / (high - low)

    for name, own in groups:
        parts.append(f'<text class="name" x="8" y="{y + 5:.1f}">{escape(name)}</text>')
        y += 22
        for label, same in _by_name(own):
            parts.append(f'<text x="22" y="{y + 5 + 5 * (len(same) - 1):.1f}">{escape(label)}</text>')
            for mark in same:
                colour = COLOURS[kinds.index(mark.kind)]
                parts.append(
                    f'<line class="bar" x1="{x(mark.low):.1f}" x2="{x(mark.high):.1f}" y1="{y:.1f}" y2="{y:.1f}" '
                    f'stroke="{colour}"/><circle cx="{x(mark.value):.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>'
                )
                y += 11
            y += 9
        y += 8
    scale = []
    for points in _ticks(low, high):
        strong = ' style="stroke-opacity:.9"' if points == 0 else ""
        scale.append(f'<line class="grid"{strong} x1="{x(points):.1f}" x2="{x(points):.1f}" y1="{top}" y2="{y:.1f}"/>')
        scale.append(
            f'<text x="{x(points):.1f}" y="{y + 18:.1f}" text-anchor="middle">{points:{"+g" if points else "g"}}</text>'
        )
    scale.append(
        f'<text x="{(left + right) / 2:.1f}" y="{y + 38:.1f}" text-anchor="middle">points, 95 % interval</text>'
    )
    return _svg(y + 50, title, [*_legend(kinds, left), *scale, *parts])


def lines(panel: Sequence[Line], unit: str, title: str) -> str:
    """Curves with a point at every measured place, over a scale that doubles. Same input, same bytes."""
    left, right, top, bottom = 60.0, WIDTH - 20.0, 44.0, 300.0
    low, high = _span([value for line in panel for value in line.values])
    places = sorted({math.log2(place) for line in panel for place in line.at})

    def x(place: float) -> float:
        share = (place - places[0]) / (places[-1] - places[0]) if len(places) > 1 else 0.5
        return left + 24 + (right - left - 48) * share

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / (high - low)

    parts = []
    for value in _ticks(low, high):
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    parts += [
        f'<text x="{x(place):.1f}" y="{bottom + 20}" text-anchor="middle">{round(2**place)}</text>' for place in places
    ]
    parts.append(f'<text x="{(left + right) / 2}" y="{bottom + 42}" text-anchor="middle">{escape(unit)}</text>')
    for line, colour in zip(panel, COLOURS, strict=False):
        points = [(x(math.log2(place)), y(value)) for place, value in zip(line.at, line.values, strict=True)]
        told = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        parts.append(f'<polyline class="line" stroke="{colour}" points="{told}"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="4" fill="{colour}"/>' for a, b in points]
    return _svg(bottom + 56, title, [*_legend([line.name for line in panel], left), *parts])


def _svg(height: float, title: str, parts: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" font-size="13"'
    style = (
        f"<style>text{{fill:{INK}}} .name{{font-weight:600}} .grid{{stroke:{GRID};stroke-opacity:.28}} "
        ".bar,.line{fill:none;stroke-width:2}</style>"
    )
    family = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
    return "\n".join([f"{head} {family}>", style, f"<title>{escape(title)}</title>", *parts, "</svg>\n"])


def _legend(names: Sequence[str], x: float) -> list[str]:
    parts = []
    for name, colour in zip(names, COLOURS, strict=False):
        parts.append(f'<circle cx="{x:.1f}" cy="16" r="4" fill="{colour}"/>')
        parts.append(f'<text x="{x + 10:.1f}" y="21" style="fill:{colour}">{escape(name)}</text>')
        x += 34 + 7.4 * len(name)
    return parts


def _by_name(marks: Sequence[Mark]) -> list[tuple[str, list[Mark]]]:
    names = dict.fromkeys(mark.name for mark in marks)
    return [(name, [mark for mark in marks if mark.name == name]) for name in names]


def _step(low: float, high: float) -> float:
    return next(step for step in (1, 2, 5, 10, 20, 50, 100) if (high - low) / step <= 12)


def _span(values: Sequence[float]) -> tuple[float, float]:
    """From a tick to a tick, around all values."""
    low, high = min(values), max(values)
    step = _step(low, high)
    return math.floor(low / step) * step, max(math.ceil(high / step), math.floor(low / step) + 1) * step


def _ticks(low: float, high: float) -> list[float]:
    step = _step(low, high)
    return [low + step * n for n in range(round((high - low) / step) + 1)]
