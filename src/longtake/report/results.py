"""Accuracy before and after: by number of frames, kind and hops, where the gain comes from, and the blind controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from longtake.maths.stats import Estimate, share
from longtake.report import charts, words
from longtake.report.compare import Change, Flips, Gain, Turned, by, change, flips, gain, turned
from longtake.report.files import EvalFile, Outcome, Run, Setting, SummaryFile
from longtake.report.read import Problems, read_lines

CHANCE_MARGIN = 0.05  # a model without the film may be this much above chance before we call it a leak
EXAMPLES = 5  # questions shown that turned right, and that turned wrong
SAMPLED, GREEDY = "sampled", "greedy"
CONTROLS = {"no_video": "no film at all", "shuffled": "frames shuffled", "one_frame": "one frame only"}


@dataclass(frozen=True, slots=True)
class Panel:
    """A table of before/after rows. Example: Panel("By kind", "sampled, 64 frames", rows)."""

    title: str
    note: str
    rows: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """A sentence and how it should look: "good", "bad" or "plain"."""

    tone: str
    text: str


@dataclass(frozen=True, slots=True)
class BlindRow:
    label: str
    estimate: Estimate
    n: int


@dataclass(frozen=True, slots=True)
class Headline:
    """The numbers of the first sentence, at the largest number of frames. Before is None for a single evaluation."""

    frames: int
    n: int
    sampled: Change | None
    greedy: Change | None
    length: tuple[float | None, float | None]  # tokens before, after
    format: tuple[float | None, float | None]


@dataclass(frozen=True, slots=True)
class Results:
    """Everything the accuracy section draws."""

    before: str  # label of the earlier model, "" if there is one model only
    after: str
    headline: Headline
    plots: tuple[charts.Plot, ...]
    legend: tuple[tuple[str, str], ...]  # (tone, label)
    panels: tuple[Panel, ...]
    flips: tuple[tuple[str, Flips], ...]  # (sampled or greedy, counts)
    gain: Gain | None
    turned: tuple[Turned, ...]  # sampled, or greedy where nothing was sampled
    blind: tuple[BlindRow, ...]
    chance: float | None
    ceiling: bool  # whether an ideal observer's accuracy is drawn
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class _Model:
    """One evaluated model."""

    run: Run
    eval: EvalFile
    tone: str

    def find(self, how: str, frames: int, control: str = "") -> Setting | None:
        wanted = (row for row in self.eval.settings if row.frames == frames and row.control == control)
        return next((row for row in wanted if (row.temperature > 0) == (how == SAMPLED)), None)


def results(runs: Sequence[Run], summary: SummaryFile | None, problems: Problems) -> Results | None:
    """Compare the last two evaluations (by start time), earlier ones drawn in grey; None if nothing was evaluated."""
    tested = [(run, run.eval) for run in runs if run.eval and any(not row.control for row in run.eval.settings)]
    if not tested:
        return None
    tones = ["older"] * (len(tested) - 2) + ["before", "after"]
    models = [_Model(run, file, tone) for (run, file), tone in zip(tested, tones[-len(tested) :], strict=True)]
    after, before = models[-1], models[-2] if len(models) > 1 else None
    plain = [row for row in after.eval.settings if not row.control]
    frames = max(row.frames for row in plain)
    chance = after.eval.chance if after.eval.chance is not None else summary.blind.chance if summary else None
    ceiling = {int(n): value for n, value in summary.ceiling.items()} if summary else {}
    new = {how: _outcomes(after, how, frames, problems) for how in (SAMPLED, GREEDY)}
    old = {how: _outcomes(before, how, frames, problems) if before else [] for how in (SAMPLED, GREEDY)}
    overall = {how: _overall(how, before, after, frames, old[how], new[how]) for how in (SAMPLED, GREEDY)}
    main = after.find(SAMPLED, frames) or after.find(GREEDY, frames)
    past = (before.find(SAMPLED, frames) or before.find(GREEDY, frames)) if before else None
    assert main is not None  # frames was taken from a setting without control
    shared = SAMPLED if after.find(SAMPLED, frames) else GREEDY
    return Results(
        before=before.run.label if before else "",
        after=after.run.label,
        headline=Headline(
            frames,
            main.n or after.eval.rows,
            overall[SAMPLED],
            overall[GREEDY],
            (past.chain_length if past else None, main.chain_length),
            (past.format if past else None, main.format),
        ),
        plots=tuple(plot for how in (SAMPLED, GREEDY) if (plot := _by_frames(how, models, chance, ceiling))),
        legend=tuple((model.tone, model.run.label) for model in reversed(models)),
        panels=_panels(before, after, frames, old, new),
        flips=tuple((how, flips(old[how], new[how])) for how in (SAMPLED, GREEDY) if old[how] and new[how]),
        gain=gain(old[SAMPLED], new[SAMPLED]),
        turned=turned(old[shared], new[shared], EXAMPLES),
        blind=(rows := _blind(after, frames, shared)),
        chance=chance,
        ceiling=bool(ceiling),
        verdict=_verdict(rows, chance),
    )


def shown(frames: int) -> str:
    """Example: 64 -> "64 frames"; 0 -> "the rows' own frames"."""
    return words.plural(frames, "frame") if frames else "the rows' own frames"


def _outcomes(model: _Model, how: str, frames: int, problems: Problems) -> list[Outcome]:
    path = model.run.folder / "outcomes" / f"{frames}-{how}-none.jsonl"
    named = f"{model.run.name}/outcomes/{path.name}".lstrip("/")
    return list(read_lines(path, Outcome, named, problems)) if path.is_file() else []


def _estimate(setting: Setting) -> Estimate:
    if setting.interval:
        return Estimate(setting.accuracy, *setting.interval, setting.n)
    return _share(setting.accuracy, setting.n)


def _share(accuracy: float, n: int) -> Estimate:
    return share(round(accuracy * n), n) if n > 0 else Estimate(accuracy, 0.0, 1.0, 0)


def _overall(
    how: str, before: _Model | None, after: _Model, frames: int, old: list[Outcome], new: list[Outcome]
) -> Change | None:
    """The row of all questions: intervals from eval.json, the difference from paired outcomes where both exist."""
    now = after.find(how, frames)
    if now is None:
        return None
    was = before.find(how, frames) if before else None
    delta = change(how, old, new).delta if new else None
    return Change(how, now.n, _estimate(was) if was else None, _estimate(now), delta)


def _by_frames(
    how: str, models: Sequence[_Model], chance: float | None, ceiling: Mapping[int, float]
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
        estimates = [(row, _estimate(row)) for row in rows]
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


def _panels(
    before: _Model | None,
    after: _Model,
    frames: int,
    old: dict[str, list[Outcome]],
    new: dict[str, list[Outcome]],
) -> tuple[Panel, ...]:
    """By kind and by hops, sampled and greedy; from outcomes, or from eval.json where there are none."""
    seen = f"at {shown(frames)}"
    panels = []
    for how in (SAMPLED, GREEDY):
        kinds = by(lambda row: row.kind, old[how], new[how]) or _stored("by_kind", how, before, after, frames)
        panels.append(Panel("By kind", f"{how}, {seen}", kinds))
    for how in (SAMPLED, GREEDY):
        hops = by(lambda row: str(row.hops or ""), old[how], new[how]) or _stored("by_hops", how, before, after, frames)
        panels.append(Panel("By reasoning hops", f"{how}, {seen}", hops))
    return tuple(panel for panel in panels if panel.rows)


def _stored(table: str, how: str, before: _Model | None, after: _Model, frames: int) -> tuple[Change, ...]:
    """Before/after rows from eval.json: without single answers the differences have no paired interval."""
    now, was = after.find(how, frames), before.find(how, frames) if before else None

    def shares(setting: Setting | None) -> dict[str, Estimate]:
        rows = (setting.by_kind if table == "by_kind" else setting.by_hops) if setting else {}
        return {label: _share(row.accuracy, row.n) for label, row in rows.items()}

    past = shares(was)
    sizes = (now.by_kind if table == "by_kind" else now.by_hops) if now else {}
    return tuple(Change(label, sizes[label].n, past.get(label), row, None) for label, row in shares(now).items())


def _blind(model: _Model, frames: int, how: str) -> tuple[BlindRow, ...]:
    """The full film, then each control, at the frames and temperature nearest to the headline's."""
    whole = model.find(how, frames)
    rows = [BlindRow(f"whole film, {shown(frames)}", _estimate(whole), whole.n)] if whole else []
    for control, label in CONTROLS.items():
        found = [row for row in model.eval.settings if row.control == control]
        found.sort(key=lambda row: ((row.temperature > 0) != (how == SAMPLED), abs(row.frames - frames)))
        rows += [BlindRow(label, _estimate(row), row.n) for row in found[:1]]
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
