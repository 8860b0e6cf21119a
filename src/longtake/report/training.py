"""Curves of each stage, health of its groups, and where its time went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.report import charts, words
from longtake.report.compare import mean
from longtake.report.files import Curve, Rollout, Run

SMOOTHED_OVER = 20  # the moving mean spans this fraction (1/20) of a curve
MARKS = 60  # points of a curve that tell their value under the pointer
SHARES = ("accuracy", "format")  # metrics shown in percent
SMALL = 0.02  # phases below this share of a stage are drawn together as "other"
FIRST = ("reward", "accuracy", "length", "entropy", "loss", "groups_kept")  # order of curves
NAMES = {
    "groups_kept": "groups kept",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "length": "answer length, tokens",
    "entropy": "entropy, nats a token",
}
ADVICE = {
    "decode": "films are decoded once a run; a faster disk or smaller frames (max_pixels) would help",
    "encode": "each set of frames is encoded once and kept, so longer runs on the same films spend a smaller share here",
    "prefill": "fewer frames or fewer visual tokens a frame would help most",
    "rollout": "answers are sampled token by token: shorter answers, more questions at a time or a faster engine would help",
    "generate": "answers are sampled token by token: shorter answers, more questions at a time or a faster engine would help",
    "reward": "scoring is the slow part: a cheaper reward, or scoring answers in parallel, would help",
    "update": "the backward pass is the slow part: shorter answers, fewer trained layers or an adapter would help",
    "backward": "the backward pass is the slow part: shorter answers, fewer trained layers or an adapter would help",
    "eval": "testing is the slow part: fewer held-out questions or rarer tests would help",
    "save": "writing checkpoints is the slow part: saving less often would help",
}
COLOURS = {
    "rollout": 0,
    "generate": 0,
    "update": 1,
    "backward": 1,
    "prefill": 2,
    "decode": 3,
    "encode": 4,
    "reward": 5,
    "eval": 6,
}


@dataclass(frozen=True, slots=True)
class Health:
    """The groups of one step. Example: Health(12, 0.25, 0.06, 0.31) (25 % all right, 6 % all wrong, mean reward spread)."""

    step: int
    right: float
    wrong: float
    spread: float | None


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of a histogram, `share` of the whole and `height` relative to the tallest."""

    label: str
    n: int
    share: float
    height: float


@dataclass(frozen=True, slots=True)
class Slice:
    """One phase of a stage's time. `place` picks its colour."""

    name: str
    seconds: float
    share: float
    place: int


@dataclass(frozen=True, slots=True)
class Time:
    """A stage's time by phase with a sentence of diagnosis."""

    label: str
    total: float
    slices: tuple[Slice, ...]
    diagnosis: str


def title(name: str) -> str:
    """Heading of a metric. Example: "groups_kept" -> "Groups kept"."""
    text = NAMES.get(name, name.replace("_", " "))
    return text[:1].upper() + text[1:]


def curve(line: Curve) -> charts.Plot | None:
    """A metric over steps: raw points faint, moving mean strong. None for a metric with a single value."""
    points = charts.thinned(line.points)
    if len(points) < 2:
        return None
    smooth = charts.smooth(points, max(1, len(points) // SMOOTHED_OVER))
    low, high = min(y for _, y in points), max(y for _, y in points)
    say = words.percent if line.name in SHARES else words.number
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    x, y = charts.axes(points[0][0], points[-1][0], low - pad, high + pad)
    marks = tuple(
        charts.Mark(x(a), y(b), y(b), y(b), f"step {a:.0f}: {say(b)}") for a, b in smooth[:: -(-len(smooth) // MARKS)]
    )
    note = f"{say(smooth[0][1])} → {say(smooth[-1][1])}"
    return charts.Plot(
        title(line.name),
        note,
        tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v)),
        tuple(charts.Tick(y(v), say(v)) for v in charts.ticks(y.low, y.high, 4)),
        (
            charts.Trace("raw", "raw", charts.path(points, x, y)),
            charts.Trace("mean", "after", charts.path(smooth, x, y), marks),
        ),
    )


def curves(run: Run) -> tuple[tuple[charts.Plot, ...], tuple[charts.Plot, ...]]:
    """The curves worth seeing first, then all others."""
    table = {line.name: line for line in run.curves}
    first = [plot for name in FIRST if name in table and (plot := curve(table[name]))]
    rest = [plot for name, line in table.items() if name not in FIRST and (plot := curve(line))]
    return tuple(first), tuple(rest)


def health(step: int, groups: Sequence[Rollout]) -> Health | None:
    """Shares of groups in which every answer was right or wrong: these teach nothing."""
    marks = [[answer.correct for answer in group.answers] for group in groups if group.answers]
    if not marks:
        return None
    return Health(
        step,
        sum(all(row) for row in marks) / len(marks),
        sum(not any(row) for row in marks) / len(marks),
        mean(_spread([a.reward for a in group.answers if a.reward is not None]) for group in groups if group.answers),
    )


def _spread(rewards: Sequence[float]) -> float:
    centre = mean(rewards) or 0.0
    return (mean((value - centre) ** 2 for value in rewards) or 0.0) ** 0.5


def health_plots(rows: Sequence[Health]) -> tuple[charts.Plot, ...]:
    """Shares of all-wrong, mixed and all-right groups stacked over steps, and the spread of rewards within a group."""
    if len(rows) < 2:
        return ()
    window = max(1, len(rows) // SMOOTHED_OVER)
    wrong = charts.smooth(charts.thinned([(row.step, row.wrong) for row in rows]), window)
    right = charts.smooth(charts.thinned([(row.step, 1 - row.right) for row in rows]), window)
    room = charts.W - 64
    x, y = charts.axes(wrong[0][0], wrong[-1][0], 0.0, 1.0, right=room)
    floor, roof = [(a, 0.0) for a, _ in wrong], [(a, 1.0) for a, _ in wrong]
    names = ("all right", "mixed", "all wrong")
    last = (1.0, right[-1][1], wrong[-1][1], 0.0)
    ends = charts.spread([y((above + below) / 2) for above, below in zip(last, last[1:], strict=False)], 14)
    areas = (charts.band(right, roof, x, y), charts.band(wrong, right, x, y), charts.band(floor, wrong, x, y))
    tones = ("area right", "area mixed", "area wrong")
    stacked = charts.Plot(
        "Groups",
        "only mixed ones teach",
        tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v)),
        tuple(charts.Tick(y(v), words.percent(v)) for v in (0, 0.5, 1)),
        tuple(
            charts.Trace(name, tone, area, (), end)
            for name, tone, area, end in zip(names, tones, areas, ends, strict=True)
        ),
        right=room,
    )
    spread = curve(
        Curve("reward spread within a group", tuple((row.step, row.spread) for row in rows if row.spread is not None))
    )
    return (stacked, spread) if spread else (stacked,)


def pass_rates(rates: Sequence[tuple[int, int]]) -> tuple[Bar, ...]:
    """How many questions were answered rightly 0, 1, … k times of k (k: the most common number of answers).

    rates: (right, answers) of each question.
    """
    sizes = [n for _, n in rates if n]
    if not sizes:
        return ()
    k = max(set(sizes), key=lambda size: (sizes.count(size), size))
    hits = [right for right, n in rates if n == k]
    counts = [hits.count(i) for i in range(k + 1)]
    return tuple(Bar(str(i), n, n / len(hits), n / max(counts)) for i, n in enumerate(counts))


def times(runs: Sequence[Run]) -> tuple[Time, ...]:
    """Where each stage's time went; several evaluations count as one stage."""
    tested = [run for run in runs if run.file.stage == "eval"]
    rows = [time(run.name or run.file.stage, [run]) for run in runs if len(tested) < 2 or run not in tested]
    rows += [time(f"eval, {len(tested)} models", tested)] if len(tested) > 1 else []
    return tuple(row for row in rows if row)


def time(label: str, runs: Sequence[Run]) -> Time | None:
    """Seconds by phase, from run.json or else from the steps; None where nothing was timed."""
    table: dict[str, float] = {}
    for run in runs:
        spent = run.file.seconds or {line.name: sum(value for _, value in line.points) for line in run.phases}
        for name, value in spent.items():
            table[name] = table.get(name, 0.0) + max(0.0, value)
    total = sum(table.values())
    if total <= 0:
        return None
    ranked = sorted(table.items(), key=lambda item: (-item[1], item[0]))
    shown = [(name, value) for name, value in ranked if value / total >= SMALL]
    rest = total - sum(value for _, value in shown)
    if rest > 0.0005 * total:
        shown.append(("other", rest))
    slices = tuple(Slice(name, value, value / total, COLOURS.get(name, 7)) for name, value in shown)
    top, share = ranked[0][0], ranked[0][1] / total
    advice = ADVICE.get(top)
    return Time(label, total, slices, f"{words.percent(share)} {top}" + (f": {advice}." if advice else "."))
