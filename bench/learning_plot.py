"""The learning curves as SVG: training reward by step, a panel for every seed, a line for every mode.

No background and middle tones only (contrast at least 4 to 1), so that it reads on a light and on a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any
from xml.sax.saxutils import escape

SMOOTH = 20  # steps: a point is the mean of the last so many
WIDTH, HEIGHT = 840, 400
LEFT, TOP, PANEL, GAP, DEEP = 46, 40, 352, 68, 272  # of the first panel; GAP is what lies between the two
INK, GRID = "#767d86", "#76808a"
LINES = (  # mode, what it is called, colour, dashes
    ("exact", "exact", "#2f7de0", ""),
    ("none", "none", "#ab6810", ""),
    ("quarter", "p = ¼", "#2b8a57", ""),
    ("lora", "LoRA, exact", "#8d63d2", "7 4"),
    ("alora", "aLoRA", "#c4487c", "7 4"),
    ("repeat", "exact, other draws", INK, "2 4"),
)


def picture(measured: Mapping[str, Any]) -> str:
    """SVG of the runs of learning.json. Same input, same bytes."""
    runs = measured["runs"]
    seeds = list(dict.fromkeys(run["seed"] for run in runs))
    curves = {(run["seed"], run["mode"]): smoothed(run["curve"]) for run in runs}
    low, high = (end(value for own in curves.values() for value in own) for end in (min, max))
    span = math.floor(10 * low) / 10, math.ceil(10 * high) / 10
    parts = [_style(), f"<title>{escape(title(measured))}</title>"]
    for place, seed in enumerate(seeds):
        own = {mode: curves[seed, mode] for mode, *_ in LINES if (seed, mode) in curves}
        parts += _panel(LEFT + place * (PANEL + GAP), f"seed {seed}", own, span)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13"'
    return "\n".join(
        [
            f'{head} font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">',
            *parts,
            *_legend([line for line in LINES if any(mode == line[0] for _, mode in curves)]),
            "</svg>\n",
        ]
    )


def smoothed(curve: Sequence[float]) -> list[float]:
    """Means of SMOOTH steps in a row, the first ending at step SMOOTH; of all steps where there are fewer."""
    width = min(SMOOTH, len(curve))
    return [fmean(curve[stop - width : stop]) for stop in range(width, len(curve) + 1)]


def title(measured: Mapping[str, Any]) -> str:
    """What the picture says, for those who cannot see it."""
    runs = measured["runs"]
    said = []
    for mode, name, *_ in LINES:
        own = [smoothed(run["curve"]) for run in runs if run["mode"] == mode]
        if own:
            said.append(f"{name} {fmean(c[0] for c in own):.2f} → {fmean(c[-1] for c in own):.2f}")
    seeds = len({run["seed"] for run in runs})
    return (
        f"Training reward by GRPO step, mean of {SMOOTH} steps, {seeds} seed{'s' if seeds > 1 else ''}; "
        f"first and last point, mean of the seeds: {', '.join(said)}."
    )


def _style() -> str:
    return (
        f"<style>text{{fill:{INK}}} .name{{font-weight:600;font-size:14px}} .grid{{stroke:{GRID};stroke-opacity:.28}} "
        ".line{fill:none;stroke-width:2}</style>"
    )


def _panel(left: float, name: str, curves: Mapping[str, Sequence[float]], span: tuple[float, float]) -> list[str]:
    low, high = span
    steps = max(len(curve) for curve in curves.values()) - 1
    first = SMOOTH if steps else 1

    def y(reward: float) -> float:
        return TOP + DEEP * (high - reward) / (high - low)

    def x(place: float) -> float:
        return left + PANEL * place / max(steps, 1)

    parts = [f'<text class="name" x="{left}" y="20">{escape(name)}</text>']
    for tenth in range(round(10 * low), round(10 * high) + 1):
        at = y(tenth / 10)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + PANEL}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{at + 4:.1f}" text-anchor="end">{tenth / 10:.1f}</text>')
    for place in sorted({0, *range((-first) % 40, steps + 1, 40)}):
        parts.append(f'<text x="{x(place):.1f}" y="{TOP + DEEP + 20}" text-anchor="middle">{first + place}</text>')
    label = f"step (each point: mean reward of the last {SMOOTH})"
    parts.append(f'<text x="{left + PANEL / 2}" y="{TOP + DEEP + 42}" text-anchor="middle">{label}</text>')
    for mode, _, colour, dashes in reversed(LINES):  # exact is drawn last, on top
        if mode in curves:
            points = " ".join(f"{x(place):.1f},{y(value):.1f}" for place, value in enumerate(curves[mode]))
            dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
            parts.append(f'<polyline class="line" stroke="{colour}"{dashed} points="{points}"/>')
    return parts


def _legend(lines: Sequence[tuple[str, str, str, str]]) -> list[str]:
    """A stroke and a name for every mode, in one row below the panels."""
    x, y, parts = float(LEFT), HEIGHT - 14, []
    room = (WIDTH - LEFT - 42 * len(lines)) / sum(len(name) for _, name, *_ in lines)  # for a letter
    for _, name, colour, dashes in lines:
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        parts.append(f'<line class="line" stroke="{colour}"{dashed} x1="{x:.1f}" x2="{x + 24:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{x + 30:.1f}" y="{y + 5}" style="fill:{colour}">{escape(name)}</text>')
        x += 42 + room * len(name)
    return parts
