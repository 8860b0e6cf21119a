"""Accuracy against visual tokens as SVG: a line for every kind of reduction, rings for models trained under theirs.

No background and middle tones only (contrast at least 4 to 1), so that it reads on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 860, 440
LEFT, TOP, WIDE, DEEP = 50, 24, 540, 352
APART = 4.0  # pixels
INK, GRID = "#767d86", "#76808a"
LINES = (  # first words of a reduction, what it is called, colour, dashes
    ("pool:1", "fewer frames", "#2f7de0", ""),
    ("odd", "24, 48 frames, in no training", INK, ""),
    ("pool:2", "pool:2: 1 token a frame", "#ab6810", ""),
    ("time", "64 frames, time:n", "#2b8a57", ""),
    ("merge", "64 frames, merge:share", "#c4487c", ""),
    ("slowfast", "64 frames, slowfast:4,pool:1", "#8d63d2", ""),
    ("both", "64 frames, merge + pool:2", "#8d63d2", "7 4"),
)


def kind(one: Mapping[str, Any], start: str) -> str:
    """The line on which a setting lies. Example: "both" of merge:0.5,pool:2."""
    learned, _, frames = start.partition("@")
    if one["reduce"] == learned and one["trained"] == start and str(one["frames"]) not in frames.split(","):
        return "odd"
    first = next(first for first, *_ in LINES if one["reduce"].startswith(first))
    return "both" if first == "merge" and "," in one["reduce"] else first


def picture(run: Mapping[str, Any], start: str, way: str) -> str:
    """SVG of one run of reductions.json. Same input, same bytes."""
    settings = run["settings"]
    tokens = [one["tokens"] for one in settings]
    ends = math.floor(math.log2(min(tokens))), math.ceil(math.log2(max(tokens)))

    def x(count: float) -> float:
        return LEFT + WIDE * (math.log2(count) - ends[0]) / (ends[1] - ends[0])

    def y(share: float) -> float:
        return TOP + DEEP * (1 - share)

    parts = [_style(), f"<title>{escape(title(settings, start, way))}</title>", *_grid(ends, x, y)]
    whole = [one for one in settings if one["trained"] == start and one["tokens"] == max(tokens)]
    for place, (first, name, colour, dashes) in enumerate(LINES):
        own = [one for one in settings if kind(one, start) == first]
        aside = APART * (place - len(LINES) // 2)  # so that intervals of as many tokens stand beside each other
        line = [one for one in own if one["trained"] == start] + whole * (first in ("time", "merge"))
        parts += _line(line, colour, dashes, way, lambda count, aside=aside: x(count) + aside, y)
        for one in (one for one in own if one["trained"] != start):
            at = f'cx="{x(one["tokens"]) + aside:.1f}" cy="{y(one[way]["value"]):.1f}"'
            parts.append(f'<circle {at} r="7" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts += _name(place, name, colour, dashes)
    parts += [
        f'<circle cx="{LEFT + WIDE + 34}" cy="{TOP + 30 + 26 * len(LINES)}" r="7" class="ring"/>',
        f'<text x="{LEFT + WIDE + 52}" y="{TOP + 34 + 26 * len(LINES)}">after SFT under it alone</text>',
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13"'
    font = 'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif"'
    return "\n".join([f"{head} {font}>", *parts, "</svg>\n"])


def title(settings: Sequence[Mapping[str, Any]], start: str, way: str) -> str:
    """What the picture says, for those who cannot see it."""
    said = []
    for first, name, *_ in LINES:
        own = sorted(
            (one["tokens"], one[way]["value"])
            for one in settings
            if kind(one, start) == first and one["trained"] == start
        )
        if own:
            said.append(f"{name}: " + ", ".join(f"{tokens:.0f} tokens {value:.2f}" for tokens, value in own))
    return f"Accuracy ({way}) against visual tokens of a film. {'; '.join(said)}."


def _style() -> str:
    return (
        f"<style>text{{fill:{INK}}} .grid{{stroke:{GRID};stroke-opacity:.28}} .line{{fill:none;stroke-width:2}} "
        f".ring{{fill:none;stroke:{INK};stroke-width:2.5}}</style>"
    )


def _grid(ends: tuple[int, int], x: Callable[[float], float], y: Callable[[float], float]) -> list[str]:
    parts = []
    for tenth in range(0, 11, 2):
        at = y(tenth / 10)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{LEFT + WIDE}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10 * tenth} %</text>')
    for power in range(ends[0], ends[1] + 1):
        at = x(2**power)
        parts.append(f'<text x="{at:.1f}" y="{TOP + DEEP + 20}" text-anchor="middle">{2**power}</text>')
    label = "visual tokens of a film that the language model reads; bars: 95 % intervals"
    parts.append(f'<text x="{LEFT + WIDE / 2}" y="{TOP + DEEP + 44}" text-anchor="middle">{label}</text>')
    return parts


def _line(
    own: Sequence[Mapping[str, Any]],
    colour: str,
    dashes: str,
    way: str,
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[str]:
    own, parts = sorted(own, key=lambda one: one["tokens"]), []
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    points = " ".join(f"{x(one['tokens']):.1f},{y(one[way]['value']):.1f}" for one in own)
    if len(own) > 1 and colour != INK:
        parts.append(f'<polyline class="line" stroke="{colour}"{dashed} points="{points}"/>')
    for one in own:
        at, (low, high) = x(one["tokens"]), one[way]["interval"]
        bar = f'x1="{at:.1f}" x2="{at:.1f}" y1="{y(low):.1f}" y2="{y(high):.1f}"'
        parts.append(f'<line {bar} stroke="{colour}" stroke-opacity=".6"/>')
        parts.append(f'<circle cx="{at:.1f}" cy="{y(one[way]["value"]):.1f}" r="3.5" fill="{colour}"/>')
    return parts


def _name(place: int, name: str, colour: str, dashes: str) -> list[str]:
    """A stroke, or a point of those that no line joins, and a name, in a column right of the picture."""
    left, at = LEFT + WIDE + 22, TOP + 30 + 26 * place
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    stroke = f'<line class="line" stroke="{colour}"{dashed} x1="{left}" x2="{left + 24}" y1="{at}" y2="{at}"/>'
    return [
        f'<circle cx="{left + 12}" cy="{at}" r="3.5" fill="{colour}"/>' if colour == INK else stroke,
        f'<text x="{left + 30}" y="{at + 4}" style="fill:{colour}">{escape(name)}</text>',
    ]
