"""Evaluated models: which was trained from which, who is compared with whom, and their accuracy by frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from longtake.maths.stats import Estimate, share
from longtake.report import charts, words
from longtake.report.files import EvalFile, Run, Setting

SAMPLED, GREEDY = "sampled", "greedy"
TONES = 5  # colours of models beside the first that is compared


@dataclass(frozen=True, slots=True)
class Model:
    """One evaluated model; `tone` is its colour: "before", "after", "also0" …, "older"."""

    run: Run
    eval: EvalFile
    tone: str = "older"

    @property
    def label(self) -> str:
        return self.run.label

    def find(self, how: str, frames: int, control: str = "") -> Setting | None:
        wanted = (row for row in self.eval.settings if row.frames == frames and row.control == control)
        return next((row for row in wanted if (row.temperature > 0) == (how == SAMPLED)), None)


@dataclass(frozen=True, slots=True)
class Family:
    """Whom a page compares: `after` were all trained from `before`; `older` are drawn beside them."""

    before: Model | None
    after: tuple[Model, ...]  # by start of their evaluation
    older: tuple[Model, ...]

    @property
    def all(self) -> tuple[Model, ...]:
        return (*self.older, *((self.before,) if self.before else ()), *self.after)


def family(runs: Sequence[Run]) -> Family | None:
    """The last model evaluated, the one it was trained from, and all others trained from that; None if there is none.

    Where that is not known or was not evaluated, the last two evaluations are compared.
    """
    models = [Model(run, run.eval) for run in runs if run.eval and any(not row.control for row in run.eval.settings)]
    if not models:
        return None
    parents = [_parent(model, models, runs) for model in models]
    place = parents[-1]
    after = [i for i, parent in enumerate(parents) if parent == place] if place is not None else [len(models) - 1]
    if place is None and len(models) > 1:
        place = len(models) - 2
    tones = ["after", *(f"also{i % TONES}" for i in range(len(after) - 1))]
    return Family(
        replace(models[place], tone="before") if place is not None else None,
        tuple(replace(models[i], tone=tone) for i, tone in zip(after, tones, strict=True)),
        tuple(model for i, model in enumerate(models) if i != place and i not in after),
    )


def _parent(model: Model, models: Sequence[Model], runs: Sequence[Run]) -> int | None:
    """Place of the model that this one was trained from, None if it is not among them."""
    made = _maker(model.eval.model, runs)
    start = str(made.file.config.get("model") or "") if made else ""
    if not start or made is None:
        return None
    maker = _maker(start, runs)
    for place, other in enumerate(models):
        same = _maker(other.eval.model, runs)
        if other is not model and (other.eval.model == start or (same is not None and same is maker)):
            return place
    return None


def _maker(model: str, runs: Sequence[Run]) -> Run | None:
    """The run whose model/ this is, by the end of its path: folders are moved."""
    parts = Path(model).parts
    made = [run for run in runs if run.name and parts[-1:] == ("model",) and _ends(parts[:-1], Path(run.name).parts)]
    return max(made, key=lambda run: len(run.name), default=None)


def _ends(parts: tuple[str, ...], end: tuple[str, ...]) -> bool:
    return parts[-len(end) :] == end


def shown(frames: int) -> str:
    """Example: 64 -> "64 frames"; 0 -> "the rows' own frames"."""
    return words.plural(frames, "frame") if frames else "the rows' own frames"


def estimate(setting: Setting) -> Estimate:
    if setting.interval:
        return Estimate(setting.accuracy, *setting.interval, setting.n)
    return share_of(setting.accuracy, setting.n)


def share_of(accuracy: float, n: int) -> Estimate:
    return share(round(accuracy * n), n) if n > 0 else Estimate(accuracy, 0.0, 1.0, 0)


def by_frames(
    how: str, models: Sequence[Model], chance: float | None, ceiling: Mapping[int, float]
) -> charts.Plot | None:
    """Accuracy over frames (log2) with intervals, one line a model; chance and an ideal observer beside them."""
    table = {
        id(m): [
            row
            for row in m.eval.settings
            if row.frames and not row.control and (row.temperature > 0) == (how == SAMPLED)
        ]
        for m in models
    }
    frames = sorted({row.frames for rows in table.values() for row in rows} - {0})
    if not frames:
        return None
    room = charts.W - 52
    x, y = charts.axes(frames[0] / 1.12, frames[-1] * 1.12, 0.0, 1.0, log_x=True, right=room)
    lines = [(m, sorted(table[id(m)], key=lambda row: row.frames)) for m in models if table[id(m)]]
    ends = charts.spread([y(rows[-1].accuracy) for _, rows in lines], 12)
    traces = (
        [charts.Trace("chance", "chance", charts.path([(x.low, chance), (x.high, chance)], x, y))]
        if chance is not None
        else []
    )
    if bound := [(n, ceiling[n]) for n in frames if n in ceiling]:
        traces.append(charts.Trace("ideal observer", "ceiling", charts.path(bound, x, y)))
    for (model, rows), end in zip(lines, ends, strict=True):
        estimates = [(row, estimate(row)) for row in rows]
        marks = tuple(
            charts.Mark(
                x(row.frames),
                y(e.value),
                y(e.low),
                y(e.high),
                f"{model.run.label}, {words.plural(row.frames, 'frame')}: {words.percent(e.value)} "
                f"({words.percent(e.low)} to {words.percent(e.high)}), n = {words.count(row.n)}",
            )
            for row, e in estimates
        )
        line = charts.path([(row.frames, row.accuracy) for row in rows], x, y)
        traces.append(charts.Trace(model.run.label, model.tone, line, marks, end))
    return charts.Plot(
        title=how.capitalize(),
        note=f"temperature {lines[-1][1][0].temperature:g}" if how == SAMPLED else "the most likely token each time",
        x_ticks=tuple(charts.Tick(x(f), str(f)) for f in frames),
        y_ticks=tuple(charts.Tick(y(v), words.percent(v)) for v in (0, 0.25, 0.5, 0.75, 1)),
        traces=tuple(traces),
        right=room,
    )
