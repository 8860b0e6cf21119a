"""Several curves in one chart: on one scale, or each over its own range to see what moves together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.report import charts, words

SMOOTHED_OVER = 20  # the moving mean spans this fraction (1/20) of a curve
FEW = 25  # points of a curve up to which each is marked
MARKS = 60  # points of a curve that tell their value under the pointer
LABELS = 68.0  # SVG units kept free for names at the right end


@dataclass(frozen=True, slots=True)
class Line:
    """One curve of a chart. Example: Line("held out", "before", ((25, 0.7), (50, 0.8)))."""

    name: str
    tone: str  # CSS class
    points: charts.Points
    unit: str = ""

    @property
    def smooth(self) -> list[tuple[float, float]]:
        points = charts.thinned(self.points)
        return charts.smooth(points, max(1, len(points) // SMOOTHED_OVER))

    def told(self, share: bool) -> str:
        """Its first and last value. Example: "held out 70 % → 80 %"."""
        say, smooth = words.percent if share else words.number, self.smooth
        return f"{self.name} {say(smooth[0][1])} → {say(smooth[-1][1])}{self.unit and ' ' + self.unit}"


def together(title: str, lines: Sequence[Line], *, share: bool = False) -> charts.Plot | None:
    """Lines of one unit, moving means, on one scale; None where none has two points."""
    lines = [line for line in lines if len(line.points) > 1]
    if not lines:
        return None
    values = [value for line in lines for _, value in line.smooth]
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    say = words.percent if share else words.number
    x, y = _axes(lines, low - pad, high + pad)
    return _plot(
        title,
        ", ".join(line.told(share) for line in lines),
        x,
        tuple(charts.Tick(y(v), say(v)) for v in charts.ticks(y.low, y.high, 4)),
        [(line, line.smooth, y, share) for line in lines],
    )


def own_ranges(title: str, lines: Sequence[Line], shares: Sequence[str]) -> charts.Plot | None:
    """Lines of different units, each from its lowest to its highest; None where fewer than two have points.

    shares: names of those told in percent.
    """
    lines = [line for line in lines if len(line.points) > 1]
    if len(lines) < 2:
        return None
    x, y = _axes(lines, -0.06, 1.06)
    drawn = []
    for line in lines:
        values = [value for _, value in line.smooth]
        low, high = min(values), max(values)
        pad = 0.06 * (high - low) or 1.0
        own = charts.Scale(low - pad, high + pad, y.start, y.stop)
        drawn.append((line, line.smooth, own, line.name in shares))
    note = ", ".join(line.told(line.name in shares) for line in lines)
    ticks = tuple(charts.Tick(y(at), word) for at, word in ((0.0, "low"), (1.0, "high")))
    return _plot(title, f"each over its own range: {note}", x, ticks, drawn)


def _axes(lines: Sequence[Line], low: float, high: float) -> tuple[charts.Scale, charts.Scale]:
    steps = [step for line in lines for step, _ in line.points]
    return charts.axes(min(steps), max(steps), low, high, right=charts.W - LABELS)


def _plot(
    title: str,
    note: str,
    x: charts.Scale,
    y_ticks: tuple[charts.Tick, ...],
    drawn: Sequence[tuple[Line, list[tuple[float, float]], charts.Scale, bool]],
) -> charts.Plot:
    """Every line on its own scale of y, its name at its end."""
    ends = charts.spread([y(points[-1][1]) for _, points, y, _ in drawn], 13)
    traces = []
    for (line, points, y, share), end in zip(drawn, ends, strict=True):
        say = words.percent if share else words.number
        marks = tuple(
            charts.Mark(x(a), y(b), y(b), y(b), f"{line.name}, step {a:.0f}: {say(b)}")
            for a, b in points[:: -(-len(points) // MARKS)]
        )
        few = " few" if len(points) <= FEW else ""
        traces.append(charts.Trace(line.name, line.tone + few, charts.path(points, x, y), marks, end))
    steps = tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v))
    return charts.Plot(title, note, steps, y_ticks, tuple(traces), right=charts.W - LABELS)
