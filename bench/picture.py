"""README's picture as SVG: accuracy by number of frames before and after RL, a dot for every seed, lines through means.

No background and middle tones only (contrast at least 4 to 1), so that it reads on a light and on a dark page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 840, 330
LEFT, TOP, PANEL, GAP, DEEP = 46, 44, 324, 92, 226  # of the first panel; GAP is what lies between the two
INK, GRID = "#767d86", "#76808a"
PANELS = (("sampled", "one answer, sampled at temperature 1"), ("greedy", "the likeliest answer (greedy)"))
MODELS = (("sft", "after SFT", "#b87012", "6 5"), ("grpo", "after GRPO", "#2f7de0", ""))
SPREAD = 5.0  # pixels between the dots of the two models
APART = 16.0  # pixels between two numbers above one another


def picture(runs: Sequence[Mapping[str, Any]], chance: float) -> str:
    """SVG of `runs`, summaries of demos; `chance` is what guessing gets. Same input, same bytes."""
    frames = sorted(runs[0]["grpo"]["by_frames"], key=int)
    parts = [_style(), f"<title>{escape(title(runs))}</title>"]
    for place, (way, name) in enumerate(PANELS):
        parts += _panel(LEFT + place * (PANEL + GAP), way, name, frames, runs, chance)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" font-size="13"'
    return "\n".join(
        [f'{head} font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">', *parts, "</svg>\n"]
    )


def title(runs: Sequence[Mapping[str, Any]]) -> str:
    """What the picture says, for those who cannot see it."""
    frames = sorted(runs[0]["grpo"]["by_frames"], key=int)
    said = [f"Held-out accuracy by frames a film, mean of {len(runs)} seed{'s' if len(runs) > 1 else ''}."]
    for way, _ in PANELS:
        told = (
            f"{name} " + ", ".join(f"{_mean(runs, model, n, way):.0%} at {n}" for n in frames)
            for model, name, _, _ in MODELS
        )
        said.append(f"{way.capitalize()}: {'; '.join(told)}.")
    return " ".join(said)


def _mean(runs: Sequence[Mapping[str, Any]], model: str, frames: str, way: str) -> float:
    return fmean(run[model]["by_frames"][frames][way] for run in runs)


def _style() -> str:
    return (
        f"<style>text{{fill:{INK}}} .name{{font-weight:600;font-size:14px}} .grid{{stroke:{GRID};stroke-opacity:.28}} "
        f".chance{{stroke:{INK};stroke-dasharray:2 4}} .line{{fill:none;stroke-width:2.5}}</style>"
    )


def _y(accuracy: float) -> float:
    return TOP + DEEP * (1 - accuracy)


def _panel(
    left: float, way: str, name: str, frames: Sequence[str], runs: Sequence[Mapping[str, Any]], chance: float
) -> list[str]:
    step = PANEL / len(frames)
    x = {n: left + (place + 0.5) * step for place, n in enumerate(frames)}
    parts = [f'<text class="name" x="{left}" y="20">{escape(name)}</text>']
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + PANEL}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{10 * tenth}%</text>')
    parts.append(f'<line class="chance" x1="{left}" x2="{left + PANEL}" y1="{_y(chance):.1f}" y2="{_y(chance):.1f}"/>')
    parts.append(f'<text x="{left + PANEL}" y="{_y(chance) + 17:.1f}" text-anchor="end">chance {chance:.0%}</text>')
    for n in frames:
        parts.append(f'<text x="{x[n]:.1f}" y="{TOP + DEEP + 20}" text-anchor="middle">{n}</text>')
    parts.append(f'<text x="{left + PANEL / 2}" y="{TOP + DEEP + 42}" text-anchor="middle">frames a film</text>')
    for side, (model, label, colour, dashes) in zip((-1, 1), MODELS, strict=True):
        parts += _curve(x, way, side * SPREAD / 2, model, colour, dashes, runs)
        parts.append(_label(x, way, model, label, colour, runs))
    return [*parts, *_ends(left + PANEL + 6, way, frames[-1], runs)]


def _ends(at: float, way: str, frames: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The means at most frames as numbers beside the panel, kept apart where they nearly agree."""
    told = sorted((_mean(runs, model, frames, way), colour) for model, _, colour, _ in MODELS)
    low, high = (_y(mean) + 5 for mean, _ in told)
    push = max(0.0, APART - (low - high)) / 2
    return [
        f'<text class="name" x="{at}" y="{y:.1f}" style="fill:{colour}">{mean:.0%}</text>'
        for y, (mean, colour) in zip((low + push, high - push), told, strict=True)
    ]


def _curve(
    x: Mapping[str, float],
    way: str,
    shift: float,
    model: str,
    colour: str,
    dashes: str,
    runs: Sequence[Mapping[str, Any]],
) -> list[str]:
    points = " ".join(f"{at:.1f},{_y(_mean(runs, model, n, way)):.1f}" for n, at in x.items())
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    parts = [f'<polyline class="line" stroke="{colour}"{dashed} points="{points}"/>']
    for n, at in x.items():
        for run in runs:
            y = _y(run[model]["by_frames"][n][way])
            parts.append(f'<circle cx="{at + shift:.1f}" cy="{y:.1f}" r="4" fill="{colour}" fill-opacity=".75"/>')
    return parts


def _label(
    x: Mapping[str, float], way: str, model: str, label: str, colour: str, runs: Sequence[Mapping[str, Any]]
) -> str:
    """The model's name at the second-last number of frames: above the higher curve, below the lower one."""
    n = list(x)[-2]
    heights = {name: _mean(runs, name, n, way) for name, *_ in MODELS}
    above = heights[model] == max(heights.values()) and (heights["sft"] != heights["grpo"] or model == "grpo")
    spots = [run[model]["by_frames"][n][way] for run in runs]
    y = _y(max(spots)) - 12 if above else _y(min(spots)) + 24
    anchor, at = ("end", x[n] - 8) if above else ("start", x[n] + 8)
    return f'<text x="{at:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="name" style="fill:{colour}">{label}</text>'
