"""One evaluated model against the one it was trained from: overall, by kind and hops, and where the difference lies."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.maths.stats import Estimate
from longtake.report.compare import Change, Flips, Gain, Panel, Turned, by, change, flips, gain, turned
from longtake.report.files import Outcome, Setting
from longtake.report.models import GREEDY, SAMPLED, Model, estimate, share_of, shown
from longtake.report.read import Problems, read_lines

EXAMPLES = 5  # questions shown that turned right, and that turned wrong


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
class Against:
    """Everything the accuracy section says of one model and the one before it."""

    label: str
    tone: str
    headline: Headline
    panels: tuple[Panel, ...] = ()
    flips: tuple[tuple[str, Flips], ...] = ()  # (sampled or greedy, counts)
    gain: Gain | None = None
    turned: tuple[Turned, ...] = ()  # sampled, or greedy where nothing was sampled


def against(before: Model | None, after: Model, frames: int, problems: Problems) -> Against | None:
    """At `frames` frames; None if `after` was not evaluated at so many."""
    main = after.find(SAMPLED, frames) or after.find(GREEDY, frames)
    if main is None:
        return None
    new = {how: _outcomes(after, how, frames, problems) for how in (SAMPLED, GREEDY)}
    old = {how: _outcomes(before, how, frames, problems) if before else [] for how in (SAMPLED, GREEDY)}
    overall = {how: _overall(how, before, after, frames, old[how], new[how]) for how in (SAMPLED, GREEDY)}
    past = (before.find(SAMPLED, frames) or before.find(GREEDY, frames)) if before else None
    shared = SAMPLED if after.find(SAMPLED, frames) else GREEDY
    return Against(
        after.label,
        after.tone,
        Headline(
            frames,
            main.n or after.eval.rows,
            overall[SAMPLED],
            overall[GREEDY],
            (past.chain_length if past else None, main.chain_length),
            (past.format if past else None, main.format),
        ),
        panels=_panels(before, after, frames, old, new),
        flips=tuple((how, flips(old[how], new[how])) for how in (SAMPLED, GREEDY) if old[how] and new[how]),
        gain=gain(old[SAMPLED], new[SAMPLED]),
        turned=turned(old[shared], new[shared], EXAMPLES),
    )


def _outcomes(model: Model, how: str, frames: int, problems: Problems) -> list[Outcome]:
    path = model.run.folder / "outcomes" / f"{frames}-{how}-none.jsonl"
    named = f"{model.run.name}/outcomes/{path.name}".lstrip("/")
    return list(read_lines(path, Outcome, named, problems)) if path.is_file() else []


def _overall(
    how: str, before: Model | None, after: Model, frames: int, old: list[Outcome], new: list[Outcome]
) -> Change | None:
    """The row of all questions: intervals from eval.json, the difference from paired outcomes where both exist."""
    now = after.find(how, frames)
    if now is None:
        return None
    was = before.find(how, frames) if before else None
    delta = change(how, old, new).delta if new else None
    return Change(how, now.n, estimate(was) if was else None, estimate(now), delta)


def _panels(
    before: Model | None,
    after: Model,
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


def _stored(table: str, how: str, before: Model | None, after: Model, frames: int) -> tuple[Change, ...]:
    """Before/after rows from eval.json: without single answers the differences have no paired interval."""
    now, was = after.find(how, frames), before.find(how, frames) if before else None

    def shares(setting: Setting | None) -> dict[str, Estimate]:
        rows = (setting.by_kind if table == "by_kind" else setting.by_hops) if setting else {}
        return {label: share_of(row.accuracy, row.n) for label, row in rows.items()}

    past = shares(was)
    sizes = (now.by_kind if table == "by_kind" else now.by_hops) if now else {}
    return tuple(Change(label, sizes[label].n, past.get(label), row, None) for label, row in shares(now).items())
