"""Accuracy before and after, of any number of models: by frames, kind and hops, and the blind controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from longtake.maths.stats import Estimate
from longtake.report import charts, words
from longtake.report.against import Against, against
from longtake.report.compare import Change, Panel
from longtake.report.files import Run, SummaryFile
from longtake.report.models import GREEDY, SAMPLED, Model, by_frames, estimate, family, shown
from longtake.report.read import Problems
from longtake.report.words import Verdict

CHANCE_MARGIN = 0.05  # a model without the film may be this much above chance before we call it a leak
CONTROLS = {"no_video": "no film at all", "shuffled": "frames shuffled", "one_frame": "one frame only"}


@dataclass(frozen=True, slots=True)
class BlindRow:
    label: str
    estimate: Estimate
    n: int


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the accuracy section draws."""

    before: str  # label of the earlier model, "" if there is one model only
    main: Against  # the first of those trained from it
    rivals: tuple[Against, ...] = ()  # the others
    models: tuple[Panel, ...] = ()  # all of them against the earlier one, if there are several
    plots: tuple[charts.Plot, ...] = ()
    legend: tuple[tuple[str, str], ...] = ()  # (tone, label)
    blind: tuple[BlindRow, ...] = ()
    verdict: Verdict | None = None  # on looking at the film
    watched: str = ""  # label of the model that the controls are of
    chance: float | None = None
    ceiling: bool = False  # whether an ideal observer's accuracy is drawn


def results(runs: Sequence[Run], summary: SummaryFile | None, problems: Problems) -> Results | None:
    """Compare the last model evaluated, and all others of the same origin, with that; None if nothing was evaluated."""
    found = family(runs)
    if found is None:
        return None
    first = found.after[0]
    frames = max(row.frames for row in first.eval.settings if not row.control)
    chance = first.eval.chance if first.eval.chance is not None else summary.blind.chance if summary else None
    ceiling = {int(n): value for n, value in summary.ceiling.items()} if summary else {}
    compared = [row for model in found.after if (row := against(found.before, model, frames, problems))]
    shared = SAMPLED if first.find(SAMPLED, frames) else GREEDY
    rows, watched = _blind(first, frames, shared), first
    for model in found.after[1:]:
        if not rows:
            rows, watched = _blind(model, frames, shared), model
    return Results(
        before=found.before.label if found.before else "",
        main=compared[0],  # it has a setting of `frames`
        rivals=tuple(compared[1:]),
        models=_models(compared, frames),
        plots=tuple(plot for how in (SAMPLED, GREEDY) if (plot := by_frames(how, found.all, chance, ceiling))),
        legend=tuple((model.tone, model.label) for model in reversed(found.all)),
        blind=rows,
        watched=watched.label,
        chance=chance,
        ceiling=bool(ceiling),
        verdict=_verdict(rows, chance),
    )


def _models(compared: Sequence[Against], frames: int) -> tuple[Panel, ...]:
    """A table of models, sampled and greedy; none for one model."""
    if len(compared) < 2:
        return ()

    def rows(how: str) -> tuple[Change, ...]:
        lines = [(one.label, one.headline.sampled if how == SAMPLED else one.headline.greedy) for one in compared]
        return tuple(replace(line, label=label) for label, line in lines if line)

    panels = [Panel("By model", f"{how}, at {shown(frames)}", rows(how)) for how in (SAMPLED, GREEDY)]
    return tuple(panel for panel in panels if panel.rows)


def _blind(model: Model, frames: int, how: str) -> tuple[BlindRow, ...]:
    """The full film, then each control, at the frames and temperature nearest to the headline's."""
    whole = model.find(how, frames)
    rows = [BlindRow(f"whole film, {shown(frames)}", estimate(whole), whole.n)] if whole else []
    for control, label in CONTROLS.items():
        found = [row for row in model.eval.settings if row.control == control]
        found.sort(key=lambda row: ((row.temperature > 0) != (how == SAMPLED), abs(row.frames - frames)))
        rows += [BlindRow(label, estimate(row), row.n) for row in found[:1]]
    return tuple(rows) if len(rows) > 1 else ()


def _verdict(rows: Sequence[BlindRow], chance: float | None) -> Verdict:
    """Does the model look at the film?"""
    table = {row.label: row.estimate for row in rows}
    blind, whole = table.get(CONTROLS["no_video"]), rows[0].estimate if rows else None
    if blind is None or whole is None:
        return Verdict(
            "plain", "No control without the film was run, so nothing here shows that the model looks at it."
        )
    lost = f"without the film accuracy is {words.percent(blind.value)}, with it {words.percent(whole.value)}"
    if chance is not None:
        lost += f", chance is {words.percent(chance)}"
    if whole.low <= blind.high:
        return Verdict("bad", f"It answers blind: {lost}. The film changes nothing that these questions can measure.")
    if chance is not None and blind.value > chance + CHANCE_MARGIN:
        return Verdict("bad", f"It looks, but the questions leak: {lost}. Part of the score needs no film.")
    if chance is None:
        return Verdict(
            "good", f"It looks: {lost}. Chance is not known here, so a leak in the questions cannot be excluded."
        )
    cost = [
        f"{what} costs {words.points(whole.value - table[label].value).lstrip('+')} points"
        for what, label in (
            ("shuffling the frames", CONTROLS["shuffled"]),
            ("showing one frame only", CONTROLS["one_frame"]),
        )
        if label in table
    ]
    more = words.listed(cost)
    return Verdict("good", f"It trains with eyes open: {lost}." + (f" {more[:1].upper()}{more[1:]}." if more else ""))
