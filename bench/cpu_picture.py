"""README's picture of speed as SVG: seconds of an update by prefix, peak memory by number of answers.

A line is a mode, all axes are logarithmic. No background and middle tones only, so that it reads on a light and on a
dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any
from xml.sax.saxutils import escape

from bench.cpu_page import GROUP, figures, short
from bench.picture import GRID, INK

WIDTH, HEIGHT = 1010, 360
TOP, DEEP, WIDE = 44, 250, 262  # of a panel
LEFTS = (56, 556)
APART = 15.0  # pixels between two names at the right end of lines
LONG = 8192  # the longest prefix in the picture, and that of the panel on memory


@dataclass(frozen=True, slots=True)
class Line:
    """How a mode is drawn. Example: Line("exact", "#2f7de0", "")."""

    name: str
    colour: str
    dashes: str


LINES = {
    "trl": Line("TRL", "#7d7468", "2 4"),
    "per_answer_3pass": Line("row an answer, 3 passes", "#b5552a", "6 5"),
    "per_answer": Line("row an answer", "#b87012", "6 5"),
    "prefix_grouper": Line("PrefixGrouper", "#b1489a", "6 5"),
    "exact": Line("exact", "#2f7de0", ""),
    "exact_layers": Line("exact, recomputed", "#6a6fe0", ""),
    "no_prefix_gradient": Line("no prefix gradient", "#2a8f5c", ""),
    "alora": Line("aLoRA", "#12878f", ""),
}
Points = Mapping[str, Sequence[tuple[float, float]]]  # mode → (x, y), x rising


def picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """SVG of the rows of bench/results/cpu.json. Same input, same bytes."""
    updates, memory = curves(rows)
    parts = [_style(), f"<title>{escape(title(rows))}</title>"]
    parts += _panel(LEFTS[0], "seconds of one update", "tokens of the prefix", updates)
    parts += _panel(LEFTS[1], f"peak memory at {short(LONG)}, MB", "answers to a question", memory)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13"'
    family = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    return "\n".join([f"{head} {family}", *parts, "</svg>\n"])


def curves(rows: Sequence[Mapping[str, Any]]) -> tuple[Points, Points]:
    """Update seconds by prefix at GROUP answers; peak memory by answers at the prefix LONG."""
    updates: dict[str, list[tuple[float, float]]] = {}
    memory: dict[str, list[tuple[float, float]]] = {}
    for mode in LINES:
        own = [row for row in rows if row["mode"] == mode]
        timed = sorted((row["prefix"], row["update_s"]) for row in own if row["G"] == GROUP and row["prefix"] <= LONG)
        held = sorted((row["G"], row["peak_mb"]) for row in own if row["prefix"] == LONG)
        if timed:
            updates[mode] = timed
        if len(held) > 1:
            memory[mode] = held
    return updates, memory


def title(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the picture says, for those who cannot see it."""
    updates, memory = curves(rows)
    told = [f"{LINES[mode].name} " + _spoken(points, "s") for mode, points in updates.items()]
    held = [f"{LINES[mode].name} " + _spoken(points, "MB") for mode, points in memory.items()]
    memory_said = f"Peak memory at {short(LONG)} by answers: {'; '.join(held)}."
    return f"Seconds of one update by prefix: {'; '.join(told)}. {memory_said}"


def _spoken(points: Sequence[tuple[float, float]], unit: str) -> str:
    return ", ".join(f"{figures(y)} {unit} at {short(int(x))}" for x, y in points)


def _style() -> str:
    return (
        f"<style>text{{fill:{INK}}} .name{{font-weight:600}} .head{{font-weight:600;font-size:14px}} "
        f".grid{{stroke:{GRID};stroke-opacity:.28}} .line{{fill:none;stroke-width:2.5}}</style>"
    )


def _panel(left: float, name: str, below: str, points: Points) -> list[str]:
    """Frame, lines and their names."""
    parts = [f'<text class="head" x="{left}" y="20">{escape(name)}</text>']
    flat = [point for line in points.values() for point in line]
    if not flat:
        return parts
    xs = sorted({x for x, _ in flat})
    low, high = min(y for _, y in flat), max(y for _, y in flat)
    ticks = _ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (log10(x) - log10(xs[0])) / (log10(xs[-1]) - log10(xs[0])) if len(xs) > 1 else 0.5
        up = (log10(y) - log10(low)) / (log10(high) - log10(low)) if high > low else 0.5
        return left + WIDE * across, TOP + DEEP * (1 - up)

    for tick in ticks:
        y = place(xs[0], tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{left + WIDE}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in xs:
        at = place(x, low)[0]
        parts.append(f'<text x="{at:.1f}" y="{TOP + DEEP + 20}" text-anchor="middle">{short(int(x))}</text>')
    parts.append(f'<text x="{left + WIDE / 2}" y="{TOP + DEEP + 44}" text-anchor="middle">{escape(below)}</text>')
    ends = {}
    for mode, line in points.items():
        spots = [place(*point) for point in line]
        parts += _curve(LINES[mode], spots)
        if line[-1][0] == xs[-1]:
            ends[mode] = spots[-1]
        else:
            parts.append(_name(mode, spots[-1][0] + 8, spots[-1][1] + 12))
    return [*parts, *_names(left + WIDE + 10, ends)]


def _curve(line: Line, spots: Sequence[tuple[float, float]]) -> list[str]:
    dashed = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
    drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
    parts = [f'<polyline class="line" stroke="{line.colour}"{dashed} points="{drawn}"/>']
    return parts + [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{line.colour}"/>' for x, y in spots]


def _names(x: float, ends: Mapping[str, tuple[float, float]]) -> list[str]:
    """Every line's name at the height of its end; neighbours that would overlap are spread around their middle."""
    modes = sorted(ends, key=lambda mode: ends[mode][1])
    runs: list[list[float]] = []  # names that touch: their wanted heights
    for mode in modes:
        runs.append([ends[mode][1]])
        while len(runs) > 1 and _top(runs[-2]) + APART * len(runs[-2]) > _top(runs[-1]):
            last = runs.pop()
            runs[-1] += last
    heights = [_top(run) + APART * place for run in runs for place in range(len(run))]
    return [_name(mode, x, y) for mode, y in zip(modes, heights, strict=True)]


def _name(mode: str, x: float, y: float) -> str:
    """The mode's name from x on, its middle at y."""
    line = LINES[mode]
    return f'<text class="name" x="{x:.1f}" y="{y + 4:.1f}" style="fill:{line.colour}">{escape(line.name)}</text>'


def _top(wanted: Sequence[float]) -> float:
    """Height of the first of these names, APART from each other around their mean."""
    return sum(wanted) / len(wanted) - APART * (len(wanted) - 1) / 2


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten around low … high, or 1, 2 and 5 times them within less than two decades."""
    first, last = floor(log10(low)), ceil(log10(high))
    if log10(high / low) > 1.7:
        return [10.0**power for power in range(first, last + 1)]
    steps = [factor * 10.0**power for power in range(first, last + 1) for factor in (1, 2, 5)]
    inside = [step for step in steps if low <= step <= high]
    below, above = [s for s in steps if s < low], [s for s in steps if s > high]
    return [*below[-1:], *inside, *above[:1]]
