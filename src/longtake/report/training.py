"""Curves of each stage, health of its groups, and where its time went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from longtake.report import charts, watch, words
from longtake.report.files import Curve, Difficulty, Run
from longtake.report.lines import FEW, MARKS, SMOOTHED_OVER

IN_GROUPS = ("groups_all_right", "groups_all_wrong")  # drawn together
SHARES = (  # metrics shown in percent
    *("accuracy", "held_accuracy", "format", "finished", "groups_kept", "clipped"),
    *("features_hit", "engine_masked"),
)
WITHOUT = ("eval", "judge")  # their steps are settings and parts of the work
SMALL = 0.02  # phases below this share of a stage are drawn together as "other"
FIRST = ("reward", "accuracy", "length", "entropy", "loss", "groups_kept", "reward_std")  # order of curves
FIRST_OF = {
    "ppo": ("score", "accuracy", "length", "kl_ref", "entropy", "explained_variance", "value_loss"),
    "dpo": ("loss", "entropy"),
    "reward": ("loss",),
}
NAMES = {
    "reward_std": "reward spread in a group",
    "grad_norm": "gradient norm",
    "lr": "learning rate",
    "length": "answer length, tokens",
    "entropy": "entropy, nats a token",
    "score": "score of the reward model",
    "score_std": "spread of the scores",
    "kl_ref": "distance to the start (KL), nats an answer",
    "beta": "weight of the KL",
    "explained_variance": "explained variance of the returns",
    "shaped": "score after penalties and scale",
    "return": "mean return",
    "value": "mean value",
    "engine_kl": "engine and trainer apart (KL), nats a token",
    "engine_gap": "largest gap between engine and trainer, nats",
    "engine_masked": "answers left out by the importance cap",
    "features_hit": "sets of frames that were encoded already",
}
SAMPLING = "answers are sampled token by token; shorter answers or more questions at a time would help"
ADVICE = {
    "decode": "films are decoded once a run; smaller frames or more processes would help",
    "encode": "each set of frames is encoded once and kept; a longer run on the same films spends a smaller share here",
    "rollout": SAMPLING,
    "answer": SAMPLING,
    "reward": "a cheaper reward would help",
    "update": "forward and backward are the work itself; shorter rows or fewer trained weights would help",
    "policy": SAMPLING,
    "captioner": "each clip is described once for all questions of its film; fewer or shorter captions would help",
    "judge": "verdicts are the work here; shorter ones, or fewer pairs of a question, would help",
    "score": "value model and reference read every answer; shorter answers would help",
    "reference": "it is computed once; a longer run on the same pairs spends a smaller share here",
    "held_out": "looks at held-out pairs are the work here; fewer of them or rarer looks would help",
    "gate": "held-out tests are the work here; fewer questions or rarer tests would help",
    "engine": "the run is so short that starting the engine outweighs it",
    "load": "the run is so short that loading the model outweighs it",
}
COLOURS = {
    "rollout": 0,
    "answer": 0,
    "update": 1,
    "decode": 3,
    "encode": 4,
    "reward": 5,
    "gate": 6,
    "held_out": 6,
    "policy": 0,
    "captioner": 2,
    "judge": 5,
    "reference": 3,
    "score": 3,
}


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


def curve(line: Curve, named: str) -> charts.Plot | None:
    """A metric over steps: raw points faint, moving mean strong. None for a metric with a single value."""
    points = charts.thinned(line.points)
    if len(points) < 2:
        return None
    smooth = charts.smooth(points, max(1, len(points) // SMOOTHED_OVER))
    low, high = min(y for _, y in points), max(y for _, y in points)
    share = line.name in SHARES and max(y for _, y in points) <= 1
    say = words.percent if share else words.number
    pad = 0.06 * (high - low) or 0.1 * abs(high) or (0.1 if share else 1.0)
    x, y = charts.axes(points[0][0], points[-1][0], low - pad, high + pad)
    marks = tuple(
        charts.Mark(x(a), y(b), y(b), y(b), f"step {a:.0f}: {say(b)}") for a, b in smooth[:: -(-len(smooth) // MARKS)]
    )
    note = f"{say(smooth[0][1])} → {say(smooth[-1][1])}"
    return charts.Plot(
        title(named),
        note,
        tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v)),
        tuple(charts.Tick(y(v), say(v)) for v in charts.ticks(y.low, y.high, 4)),
        (
            charts.Trace("raw", "raw", charts.path(points, x, y)),
            charts.Trace("mean", "after few" if len(points) <= FEW else "after", charts.path(smooth, x, y), marks),
        ),
    )


def curves(run: Run) -> tuple[tuple[charts.Plot, ...], tuple[charts.Plot, ...]]:
    """The curves worth seeing first, then all others. Steps of evaluating and judging are parts: there is no curve."""
    shared, drawn = watch.shared(run), set(IN_GROUPS)
    score = next((line.points for line in run.curves if line.name == watch.SCORE), None)
    drawn |= {line.name for line in run.curves if line.points == score and line.name != watch.SCORE}  # the same twice
    for _, names in shared:
        drawn.update(names)
    table = {line.name: line for line in run.curves if line.name not in drawn and run.file.stage not in WITHOUT}
    gate = "held-out greedy accuracy" if run.file.stage == "sft" else "accuracy"
    order = FIRST_OF.get(run.file.stage, FIRST)
    first = [
        plot for name in order if name in table and (plot := curve(table[name], gate if name == "accuracy" else name))
    ]
    rest = [plot for name, line in table.items() if name not in order and (plot := curve(line, name))]
    return (*(plot for plot, _ in shared), *first), tuple(rest)


def groups(run: Run) -> charts.Plot | None:
    """Shares of all-wrong, mixed and all-right groups stacked over steps; None for a stage that has no groups."""
    table = {line.name: dict(line.points) for line in run.curves}
    right, wrong = table.get("groups_all_right", {}), table.get("groups_all_wrong", {})
    steps = sorted(right.keys() & wrong.keys())
    if len(steps) < 2:
        return None
    window = max(1, len(steps) // SMOOTHED_OVER)
    low = charts.smooth(charts.thinned([(step, wrong[step]) for step in steps]), window)
    high = charts.smooth(charts.thinned([(step, 1 - right[step]) for step in steps]), window)
    room = charts.W - 64
    x, y = charts.axes(low[0][0], low[-1][0], 0.0, 1.0, right=room)
    floor, roof = [(a, 0.0) for a, _ in low], [(a, 1.0) for a, _ in low]
    edges = (1.0, high[-1][1], low[-1][1], 0.0)
    ends = charts.spread([y((above + below) / 2) for above, below in pairwise(edges)], 14)
    parts = (("all right", "right", high, roof), ("mixed", "mixed", low, high), ("all wrong", "wrong", floor, low))
    return charts.Plot(
        "Groups",
        "only mixed ones teach",
        tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v)),
        tuple(charts.Tick(y(v), words.percent(v)) for v in (0, 0.5, 1)),
        tuple(
            charts.Trace(name, f"area {tone}", charts.band(under, over, x, y), (), end)
            for (name, tone, under, over), end in zip(parts, ends, strict=True)
        ),
        right=room,
    )


def pass_rates(found: Difficulty) -> tuple[Bar, ...]:
    """How many questions were answered rightly 0, 1, … k times of k."""
    counts = (
        [found.histogram.get(f"{i / found.answers:.2f}", 0) for i in range(found.answers + 1)] if found.answers else []
    )
    total = sum(counts)
    return tuple(Bar(str(i), n, n / total, n / max(counts)) for i, n in enumerate(counts)) if total else ()


def times(runs: Sequence[Run]) -> tuple[Time, ...]:
    """Where each stage's time went; several evaluations count as one stage."""
    tested = [run for run in runs if run.file.stage == "eval"]
    stages = [run for run in runs if run.name or len(runs) == 1]
    rows = [time(run.name or run.file.stage, [run]) for run in stages if len(tested) < 2 or run not in tested]
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
    said = f"{words.percent(share)} {top}" + (f": {advice}." if advice else ".")
    return Time(label, total, slices, " ".join((said, *caches(runs))))


def caches(runs: Sequence[Run]) -> Iterator[str]:
    """A sentence for each cache that was asked: how often it had what was wanted."""
    for name in dict.fromkeys(name for run in runs for name in run.file.counts):
        sums = Counter[str]()
        for run in runs:
            sums.update(run.file.counts.get(name, {}))
        had, made = sums["ram"] + sums["disk"], sums["made"] + sums["remade"]
        if had + made:
            again = f", {words.count(sums['remade'])} of them again" if sums["remade"] else ""
            parts = [f"{words.count(sums['ram'])} times from memory", f"{words.count(sums['disk'])} from disk"]
            parts.append(f"{words.count(made)} computed{again}")
            parts += [f"{words.count(sums[key])} files {key}" for key in ("evicted", "damaged") if sums[key]]
            yield f"{name.capitalize()}: {words.percent(had / (had + made))} found ({', '.join(parts)})."
