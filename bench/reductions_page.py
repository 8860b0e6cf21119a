"""docs/reductions.md and its figure, from reductions.json: every number on the page is one of the file."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from bench import demo, reductions_plot

PAGE = demo.RESULTS.parents[1] / "docs" / "reductions.md"
FIGURE = PAGE.with_suffix(".svg")
WAYS = ("sampled", "greedy")
HEAD = """\
# Fewer visual tokens: what it costs

`--context.reduce` makes a film's visual tokens fewer: patches of a frame are pooled (`pool:2`), neighbouring frames
averaged (`time:4`) or, where they are most alike, joined (`merge:0.25` leaves a quarter of them). A LLaVA-NeXT-Video
network of {parameters} parameters, made from a config, learned the demo's world from scratch: {base} steps on clips
and stories, {sft} steps of SFT at 8 to 64 frames with {each:.0f} tokens a frame. LLaVA's prompt tells no times, so the
films carry a bar that shows the second. Then it answered {n} held-out questions under every reduction, sampled and
greedily; a guess among the options is right in {chance}. Shares are percent with 95 % intervals. Written by
`python -m bench.reductions`.

![accuracy against visual tokens](reductions.svg)
"""

OWN = """\
Each model after as many steps of SFT at that number of frames alone: to be compared with each other, not with the
model above, which saw other numbers as well."""


def page(found: Mapping[str, Any]) -> str:
    """The whole of docs/reductions.md."""
    about, ran, run = found["machine"], found["versions"], found["runs"][0]
    settings, start = run["settings"], found["start"]
    frames = start.partition("@")[2].replace(",", ", ")
    head = HEAD.format(
        **found["steps"], parameters=f"{found['parameters']:,}", n=settings[0]["n"], each=_each(settings, start),
        chance=_percent(found["chance"]),
    )  # fmt: skip
    lines = [head, *_reading(run, start), ""]
    for title, own in (
        (
            f"## Only while answering\n\nOne model, after SFT at {frames} frames with nothing reduced.",
            [s for s in settings if s["trained"] == start],
        ),
        (f"## Trained under the reduction\n\n{OWN}", [s for s in settings if s["trained"] != start]),
    ):
        lines += [title, "", *_table(own), ""]
    lines += [
        "## At equal tokens",
        "",
        "64 frames reduced − fewer frames with as many tokens, in points over the same questions, with 95 % intervals",
        "of pairs.",
        "",
        "| reduction | tokens | against | trained | sampled | greedy |",
        "|---|---|---|---|---|---|",
    ]
    for one in run["differences"]:
        trained = "no" if one["trained"] == start else "both"
        cells = [f"`{one['reduce']}`", f"{one['tokens']:.0f}", f"{one['against']} frames", trained]
        lines.append(f"| {' | '.join([*cells, *(_points(one[way]) for way in WAYS)])} |")
    cores = f"{about['processors']} CPU cores, torch {ran['torch']}, transformers {ran['transformers']}"
    return "\n".join([*lines, "", f"One seed ({run['seed']}). {cores}, {found['date']}."]) + "\n"


def write(found: Mapping[str, Any]) -> None:
    """Page and figure."""
    PAGE.write_text(page(found))
    FIGURE.write_text(reductions_plot.picture(found["runs"][0], found["start"], "greedy"))


def _reading(run: Mapping[str, Any], start: str) -> list[str]:
    """Four sentences."""
    own = [one for one in run["settings"] if one["trained"] == start]
    plain = sorted((one for one in own if reductions_plot.kind(one, start) == start.partition("@")[0]), key=_tokens)
    odd = [one for one in own if reductions_plot.kind(one, start) == "odd"]
    least, most = plain[0], plain[-1]
    kept = max((one for one in own if one["tokens"] < most["tokens"] and one["frames"] == most["frames"]), key=_greedy)
    known = {one["frames"] for one in plain}
    asked = [one for one in run["differences"] if one["trained"] == start and one["against"] in known]
    beside = [one for one in run["differences"] if one["trained"] == start and one["against"] not in known]
    taught = [one for one in run["differences"] if one["trained"] != start]
    sentences = [
        f"All {most['frames']} frames are {most['tokens']:.0f} tokens and give {_percent(_greedy(most))} greedy, "
        f"{least['frames']} frames are {least['tokens']:.0f} tokens and give {_percent(_greedy(least))}; of the "
        f"reductions of {most['frames']} frames `{kept['reduce']}` keeps most, {_percent(_greedy(kept))} with "
        f"{kept['tokens']:.0f} tokens.",
        f"Only while answering, {_counted(asked)} than fewer frames with as many tokens (greedy, interval without 0).",
        "A length that was in no training costs by itself: "
        + " and ".join(
            f"{one['frames']} frames, unreduced but in no training, give {_percent(_greedy(one))}" for one in odd
        )
        + "".join(
            f", and `{one['reduce']}` minus {one['against']} frames is {_points(one['greedy'])}" for one in beside
        )
        + ".",
        "With SFT on both sides, each model under its own reduction alone, 64 frames reduced minus fewer frames is "
        + ", ".join(f"`{one['reduce']}` {_points(one['greedy'])}" for one in taught)
        + " points greedy.",
    ]
    return textwrap.wrap(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def _counted(differences: Sequence[Mapping[str, Any]]) -> str:
    """Example: "2 of 8 reductions of 64 frames do better and 1 worse"."""
    better = sum(one["greedy"]["interval"][0] > 0 for one in differences)
    worse = sum(one["greedy"]["interval"][1] < 0 for one in differences)
    return f"{better} of {len(differences)} reductions of 64 frames do better and {worse} worse"


def _table(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| tokens | frames | reduction | sampled | greedy |", "|---|---|---|---|---|"]
    for one in sorted(settings, key=lambda one: (-one["tokens"], one["reduce"])):
        cells = [f"{one['tokens']:.0f}", str(one["frames"]), f"`{one['reduce']}`", *(_share(one[way]) for way in WAYS)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _each(settings: Sequence[Mapping[str, Any]], start: str) -> float:
    one = next(s for s in settings if s["trained"] == start and s["reduce"] == start.partition("@")[0])
    return float(one["tokens"] / one["frames"])


def _tokens(one: Mapping[str, Any]) -> float:
    return float(one["tokens"])


def _greedy(one: Mapping[str, Any]) -> float:
    return float(one["greedy"]["value"])


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _share(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{100 * one['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _points(one: Mapping[str, Any]) -> str:
    low, high = one["interval"]
    return f"{100 * one['difference']:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
