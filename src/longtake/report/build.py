"""A folder of runs to one self-contained report.html. Files are the only input: the same files give the same page."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from longtake.log import writing
from longtake.report import charts, watch, words
from longtake.report.cards import Card, card, chosen
from longtake.report.feedback import Feedback, feedback
from longtake.report.files import Difficulty, Quarantined, Run, SummaryFile
from longtake.report.head import Head, head, source
from longtake.report.read import Problems, read_folder, read_json
from longtake.report.results import Results, results
from longtake.report.strips import Strip, Strips
from longtake.report.training import Bar, Time, curves, groups, pass_rates, times

NAME = "report.html"
MAX_STRIPS = 4_000_000  # bytes of filmstrips in the page
CARDS, CARDS_BEFORE = 30, 6  # cards of the last stage that sampled answers, of each earlier one


@dataclass(frozen=True, slots=True)
class Training:
    """One stage in the section on training."""

    run: Run
    plots: tuple[charts.Plot, ...]
    more: tuple[charts.Plot, ...]
    rates: tuple[Bar, ...]  # of a difficulty run
    verdicts: tuple[words.Verdict, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """All that the template draws."""

    head: Head
    results: Results | None
    source: str
    training: tuple[Training, ...]
    times: tuple[Time, ...]
    feedback: Feedback
    cards: tuple[Card, ...]
    strips: tuple[Strip, ...]
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
    alone = any(not run.name and run.file.stage != "demo" for run in runs)  # then that file is the stage's own
    summary = None if alone else read_json(folder / "summary.json", SummaryFile, "summary.json", problems)
    found = results(runs, summary, problems)
    strips = Strips(MAX_STRIPS, problems)
    sampled = [run for run in reversed(runs) if run.steps]
    picked = [(run, chosen(run, CARDS_BEFORE if i else CARDS, problems)) for i, run in enumerate(sampled)]
    cards = tuple(card(run, group, place, strips) for run, groups in picked for place, group in enumerate(groups))
    heard = feedback(runs, strips, problems)
    if strips.left_out:
        problems.say(f"{words.plural(strips.left_out, 'filmstrip')} left out to keep the page small; see thumbs/.")
    receipts = [card.group.receipt for card in cards if card.group.receipt and card.group.receipt.cut]
    return Page(
        head=head(runs, found, summary),
        results=found,
        source=source(found) if found else "",
        training=tuple(part for run in runs if (part := _training(run))),
        times=times(runs),
        feedback=heard,
        cards=cards,
        strips=tuple(strips.held.values()),
        films_used=max((run.file.films.used for run in runs), default=0),
        films_bad=tuple(dict.fromkeys(film for run in runs for film in run.file.films.quarantined)),
        cut=tuple(dict.fromkeys(f"{receipt.path}: {receipt.cut}" for receipt in receipts)),
        notes=tuple((run.label, note) for run in runs for note in run.file.notes),
        problems=tuple(problems.said),
        summary=summary,
    )


def _training(run: Run) -> Training | None:
    """The stage's curves and groups; None for a stage that draws none (an evaluation)."""
    first, more = curves(run)
    stacked = groups(run)
    rates = pass_rates(run.summary) if isinstance(run.summary, Difficulty) else ()
    first = (*first, stacked) if stacked and run.file.stage == "ppo" else (stacked, *first) if stacked else first
    return Training(run, first, more, rates, watch.told(run)) if first or more or rates else None


def render(page: Page) -> str:
    """The HTML of a page. Its script is allowed by its hash, so that no other can run."""
    env = _environment()
    assert env.loader is not None
    script = env.loader.get_source(env, "page.js")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return env.get_template("page.html.j2").render(page=page, script=script, digest=digest)


@cache
def _environment() -> Environment:
    """Templates escape whatever they are given: answers, questions and paths are not ours."""
    loader = PackageLoader("longtake.report")
    env = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    env.filters |= {"percent": words.percent, "points": words.points, "number": words.number, "pretty": _pretty}
    env.filters |= {"seconds": words.seconds, "count": words.count, "signed": words.signed}
    env.globals |= {"plural": words.plural, "W": charts.W, "H": charts.H, "LEFT": charts.LEFT}
    return env


def _pretty(value: Any) -> str:
    """JSON for reading."""
    return json.dumps(value, indent=2, ensure_ascii=False)
