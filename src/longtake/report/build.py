"""A folder of runs to one self-contained report.html; files are the only input, and the same files give the same page."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from longtake.log import writing
from longtake.report import charts, words
from longtake.report.cards import Card, Stage, card, read_stage
from longtake.report.files import Quarantined, Run, SummaryFile
from longtake.report.head import Head, head, source
from longtake.report.read import Problems, read_folder, read_json
from longtake.report.results import Results, results
from longtake.report.strips import Strip, Strips
from longtake.report.training import Bar, Time, curves, health_plots, pass_rates, times

NAME = "report.html"
MAX_STRIPS = 4_000_000  # bytes of filmstrips in the page
CARDS, CARDS_BEFORE = 30, 6  # cards of the last stage that sampled answers, of each earlier one


@dataclass(frozen=True, slots=True)
class Training:
    """One stage in the section on training."""

    run: Run
    plots: tuple[charts.Plot, ...]
    more: tuple[charts.Plot, ...]
    health: tuple[charts.Plot, ...]
    rates: tuple[Bar, ...]  # of a difficulty run


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template draws."""

    head: Head
    results: Results | None
    source: str
    training: tuple[Training, ...]
    times: tuple[Time, ...]
    cards: tuple[Card, ...]
    strips: tuple[Strip, ...]
    groups: int  # groups in all rollout files that were read
    films_used: int
    films_bad: tuple[Quarantined, ...]
    cut: tuple[str, ...]  # what receipts say was left out
    notes: tuple[tuple[str, str], ...]  # (stage, sentence)
    problems: tuple[str, ...]
    summary: SummaryFile | None


def build(folder: Path) -> Path:
    """Write `report.html` into a run folder (or a folder of run folders) and return its path.

    Raises UserError if the folder holds no run, or the page cannot be written.
    """
    problems = Problems()
    runs = read_folder(folder, problems)
    html = render(_page(folder, runs, problems))
    target = folder / NAME
    with writing(target):
        beside = folder / f".{NAME}.{os.getpid()}"
        try:
            beside.write_text(html, encoding="utf-8")
            os.replace(beside, target)
        finally:
            beside.unlink(missing_ok=True)
    return target


def _page(folder: Path, runs: Sequence[Run], problems: Problems) -> Page:
    summary = read_json(folder / "summary.json", SummaryFile, "summary.json", problems)
    sampled = [run for run in runs if run.steps]
    stages = {run.name: read_stage(run, CARDS if run is sampled[-1] else CARDS_BEFORE, problems) for run in sampled}
    found = results(runs, summary, problems)
    strips = Strips(MAX_STRIPS, problems)
    cards = tuple(
        card(run, group, i, strips) for run in reversed(sampled) for i, group in enumerate(stages[run.name].groups)
    )
    if strips.left_out:
        problems.say(
            f"{words.plural(strips.left_out, 'filmstrip')} left out to keep the page small; they are in thumbs/."
        )
    for run in runs:
        if run.steps_all > len(run.steps):
            problems.say(
                f"{run.label}: group health is drawn from {len(run.steps)} of {words.count(run.steps_all)} steps."
            )
    difficulty = [rate for run in sampled if run.file.stage == "difficulty" for rate in stages[run.name].rates]
    bad = tuple(dict.fromkeys(film for run in runs for film in run.file.films.quarantined))
    receipts = (c.group.receipt for c in cards if c.group.receipt and c.group.receipt.cut)
    return Page(
        head=head(runs, found, difficulty, summary),
        results=found,
        source=source(found) if found else "",
        training=tuple(part for run in runs if (part := _training(run, stages.get(run.name)))),
        times=times(runs),
        cards=cards,
        strips=tuple(strips.held.values()),
        groups=sum(len(stage.rates) for stage in stages.values()),
        films_used=max((run.file.films.used for run in runs), default=0),
        films_bad=bad,
        cut=tuple(dict.fromkeys(f"{receipt.path}: {receipt.cut}" for receipt in receipts)),
        notes=tuple((run.label, note) for run in runs for note in run.file.notes),
        problems=tuple(problems.said),
        summary=summary,
    )


def _training(run: Run, stage: Stage | None) -> Training | None:
    """The stage's curves and groups; None for a stage that draws none (an evaluation)."""
    first, more = curves(run)
    rates = pass_rates(stage.rates) if stage and run.file.stage == "difficulty" else ()
    health = health_plots(stage.health) if stage and not rates else ()
    return Training(run, first, more, health, rates) if first or more or health or rates else None


def render(page: Page) -> str:
    """The HTML of a page."""
    env = Environment(
        loader=PackageLoader("longtake.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters |= {
        "percent": words.percent, "points": words.points, "number": words.number, "seconds": words.seconds, "count": words.count,
        "pretty": _pretty,
    }  # fmt: skip
    env.globals |= {
        "plural": words.plural,
        "W": charts.W,
        "H": charts.H,
        "LEFT": charts.LEFT,
        "BOTTOM": charts.BOTTOM,
        "TOP": charts.TOP,
    }
    assert env.loader is not None
    script = env.loader.get_source(env, "page.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return env.get_template("page.html.j2").render(page=page, script=script, digest=digest)


def _pretty(value: Any) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False)
