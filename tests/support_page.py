"""docs/support.md from docs/support.json: for every family a table of stages and engines."""

from __future__ import annotations

from collections.abc import Mapping

MARK = {"pass": "yes", "refused": "no", "not run": "–"}
ASPECTS = ("features", "shared_prefix", "lora")
HEAD = """\
# What works with what

Every cell was tried: a run of the stage on a tiny network of the family, saved and loaded as a real checkpoint is, on
real films (`python -m tests.support`, which also writes docs/support.json, of which this page is made). Three answers a
cell: **cached features** serve a second run, which comes out the same; the **shared prefix** gives what a row for every
answer gives, values and gradients where it trains, words where it answers; **LoRA**: trained, or answering. "no" is a
refusal with a sentence, listed below; "–" was not tried, for the reason listed.
"""


def page(found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, str]]]]) -> str:
    """The whole of docs/support.md."""
    parts = [HEAD]
    notes: dict[str, int] = {}
    for family, stages in found.items():
        engines = list(next(iter(stages.values())))
        parts.append(f"## {family}\n\n| stage | {' | '.join(engines)} |\n|{'---|' * (len(engines) + 1)}")
        for stage, own in stages.items():
            parts[-1] += f"\n| {stage} | {' | '.join(_cell(own[engine], notes) for engine in engines)} |"
        parts[-1] += "\n"
    listed = "\n".join(f"{number}. {why}" for why, number in notes.items())
    return "\n".join([*parts, "## Why not\n", listed, ""])


def _cell(cell: Mapping[str, str], notes: dict[str, int]) -> str:
    """The three answers, with the numbers of their reasons."""
    told = []
    for aspect in ASPECTS:
        kind, _, _ = cell[aspect].partition(":")
        if kind == "pass":
            told.append(MARK[kind])
        else:
            told.append(f"{MARK[kind]} [{notes.setdefault(cell[aspect], len(notes) + 1)}]")
    return told[0] if len(set(told)) == 1 else " · ".join(told)
