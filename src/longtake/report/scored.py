"""A reward model on held-out pairs: accuracy, calibration, how far its scores follow length, and its worst mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from longtake.maths.stats import Estimate, calibration, calibration_error, length_correlation, share
from longtake.report import charts, words
from longtake.report.compare import Change, Panel
from longtake.report.files import RewardFile, Run
from longtake.report.judged import Number
from longtake.report.pair_cards import Known, PairCard, scored_card
from longtake.report.pair_files import Scored
from longtake.report.strips import Strips
from longtake.report.words import DASH, Verdict

BINS = 20  # of probability; those of pairs are above a half
LENGTH_BINS = 5  # answers in as many parts of equal size, by length
BAR = 0.16  # height of the tallest bar of counts, of a chart
MOST = 400  # dots in a scatter plot
CARDS = 24
STRONG = 0.3  # a correlation with length worth a warning


@dataclass(frozen=True, slots=True)
class Rewarding:
    """One reward run in its section."""

    run: Run
    numbers: tuple[Number, ...]
    verdicts: tuple[Verdict, ...]
    plots: tuple[charts.Plot, ...]
    panels: tuple[Panel, ...]
    cards: tuple[PairCard, ...]


def rewarding(run: Run, rows: Sequence[Scored], known: Known, strips: Strips) -> Rewarding:
    """Everything the section says of a reward run; `known`: pairs as a judge's folder beside it has them."""
    told = run.summary if isinstance(run.summary, RewardFile) else RewardFile()
    accuracy = _right(rows)
    bias = _length(rows)
    worst = sorted(rows, key=lambda row: (row.lead, row.id))
    half = CARDS // 2
    shown = worst if len(worst) <= CARDS else [*worst[:half], *worst[half :: -(-(len(worst) - half) // half)]]
    return Rewarding(
        run,
        _numbers(told, rows, accuracy, bias),
        tuple(_verdicts(accuracy, bias, rows)),
        tuple(plot for plot in (_calibration(rows), _lengths(rows, bias)) if plot),
        _panels(rows),
        tuple(scored_card(run, row, i, known, strips) for i, row in enumerate(shown)),
    )


def longer_wins(rows: Sequence[Scored]) -> float | None:
    """The share of pairs that "the longer answer is better" gets right, equal lengths as half."""
    marks = [(a > b) + 0.5 * (a == b) for a, b in (row.lengths for row in rows)]
    return sum(marks) / len(marks) if marks else None


def _right(rows: Sequence[Scored]) -> Estimate | None:
    """Share of pairs put in the right order; equal scores count a half."""
    if not rows:
        return None
    won = sum((row.lead > 0) + 0.5 * (row.lead == 0) for row in rows)
    around = share(round(won), len(rows))
    return Estimate(won / len(rows), around.low, around.high, len(rows))


def _length(rows: Sequence[Scored]) -> Estimate | None:
    """Correlation of lead and length within pairs, which leaves out what a question does to both."""
    longer = [float(a - b) for a, b in (row.lengths for row in rows)]
    return length_correlation(longer, [row.lead for row in rows])


def _numbers(
    told: RewardFile, rows: Sequence[Scored], accuracy: Estimate | None, bias: Estimate | None
) -> tuple[Number, ...]:
    right = accuracy.value if accuracy else told.accuracy
    n = accuracy.n if accuracy else told.n
    sure = f"{words.percent(accuracy.low)} to {words.percent(accuracy.high)}, " if accuracy else ""
    lengths = [float(length) for row in rows for length in row.lengths]
    follows = length_correlation(lengths, [score for row in rows for score in (row.model_chosen, row.model_rejected)])
    r = follows.value if follows else told.length_correlation
    inside = f"correlation; within pairs {words.signed(bias.value)}" if bias else "correlation"
    truth = told.truth
    labels = f"labels: {words.percent(truth.labels)}, n = {words.count(truth.n)}" if truth else "no truth is known"
    error = calibration_error(calibration(*_claims(rows), BINS)) if rows else None
    return (
        Number("pairs in the right order", _percent(right), f"{sure}n = {words.count(n)} held out" if n else ""),
        Number("“the longer wins” gets", _percent(longer_wins(rows)), "of the same pairs"),
        Number("score and length", DASH if r is None else words.signed(r), inside),
        Number("calibration error", DASH if error is None else words.percent(error), "claimed against right"),
        Number("right answer first", _percent(truth.accuracy if truth else None), labels),
    )


def _percent(value: float | None) -> str:
    return DASH if value is None else words.percent(value)


def _verdicts(accuracy: Estimate | None, bias: Estimate | None, rows: Sequence[Scored]) -> list[Verdict]:
    out = []
    rule = longer_wins(rows)
    if accuracy and accuracy.low <= 0.5:
        out.append(
            Verdict("bad", f"Not clearly better than a coin on held-out pairs: {words.percent(accuracy.value)} right.")
        )
    elif accuracy and rule is not None and accuracy.low <= max(rule, 1 - rule):
        which = "longer" if rule >= 0.5 else "shorter"
        text = f"Not clearly better than “the {which} answer wins”, which gets {words.percent(max(rule, 1 - rule))}"
        out.append(Verdict("bad", f"{text} of the same pairs."))
    if bias and abs(bias.value) > STRONG and not bias.low <= 0 <= bias.high:
        way = "longer" if bias.value > 0 else "shorter"
        text = f"It favours the {way} answer: within pairs lead and length correlate at {words.signed(bias.value)}."
        out.append(Verdict("bad", f"{text} What is trained on it may learn length."))
    return out


def _claims(rows: Sequence[Scored]) -> tuple[list[float], list[bool]]:
    """What the model claims of each pair, σ of the difference's size, and whether it is right."""
    return [1 / (1 + exp(-abs(row.lead))) for row in rows], [row.lead > 0 for row in rows]


def _calibration(rows: Sequence[Scored]) -> charts.Plot | None:
    """How often it is right against how sure it claims to be, with the number of pairs."""
    if not rows:
        return None
    found = calibration(*_claims(rows), BINS)
    x, y = charts.axes(0.48, 1.02, -0.3, 1.0)
    marks = tuple(
        charts.Mark(
            x(one.predicted),
            y(one.right.value),
            y(one.right.low),
            y(one.right.high),
            f"claims {words.percent(one.predicted)}: right {words.percent(one.right.value)} "
            f"({words.percent(one.right.low)} to {words.percent(one.right.high)}), n = {words.count(one.right.n)}",
        )
        for one in found
    )
    tallest = max(one.right.n for one in found)
    tops = {one: y(y.low + BAR * one.right.n / tallest) for one in found}
    bars = "".join(
        f"M{x(one.low + 0.005):.1f} {y(y.low):.1f}V{tops[one]:.1f}H{x(one.high - 0.005):.1f}V{y(y.low):.1f}Z"
        for one in found
    )
    line = charts.path([(one.predicted, one.right.value) for one in found], x, y)
    return charts.Plot(
        "Calibration",
        "share right against what the difference of scores claims; dashed: as claimed; bars: pairs",
        tuple(charts.Tick(x(v), words.percent(v)) for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)),
        tuple(charts.Tick(y(v), words.percent(v)) for v in (0, 0.25, 0.5, 0.75, 1)),
        (
            charts.Trace("pairs", "area counts", bars),
            charts.Trace("as claimed", "chance", charts.path([(0.5, 0.5), (1.0, 1.0)], x, y)),
            charts.Trace("right", "after", line, marks),
        ),
        texts=tuple(charts.Text(x((one.low + one.high) / 2), tops[one] - 3, words.count(one.right.n)) for one in found),
    )


def _lengths(rows: Sequence[Scored], bias: Estimate | None) -> charts.Plot | None:
    """Score against length of all held-out answers, with means of parts of equal size."""
    chosen = [(float(row.lengths[0]), row.model_chosen) for row in rows]
    rejected = [(float(row.lengths[1]), row.model_rejected) for row in rows]
    both = sorted(chosen + rejected)
    if not both:
        return None
    scores = [score for _, score in both]
    wide = 0.04 * (both[-1][0] - both[0][0]) or 1.0
    high = 0.06 * (max(scores) - min(scores)) or 1.0
    x, y = charts.axes(both[0][0] - wide, both[-1][0] + wide, min(scores) - high, max(scores) + high)
    size = -(-len(both) // LENGTH_BINS)
    parts = [both[i : i + size] for i in range(0, len(both), size)]
    means = [(sum(a for a, _ in part) / len(part), sum(b for _, b in part) / len(part)) for part in parts]
    every = -(-len(rows) // (MOST // 2))
    marks = tuple(
        charts.Mark(x(a), y(b), y(b), y(b), f"about {a:.0f}: {words.number(b)}, n = {len(part)}")
        for (a, b), part in zip(means, parts, strict=True)
    )
    counted = any(row.tokens_chosen is None for row in rows)
    unit = "words" if counted else "tokens"
    r = f"; within pairs the lead correlates with it at {words.signed(bias.value)}" if bias else ""
    return charts.Plot(
        f"Score and length in {unit}",
        f"green: chosen, red: rejected; line: means of fifths{r}",
        tuple(charts.Tick(x(v), words.count(v)) for v in charts.ticks(x.low, x.high) if v == int(v) and v >= 0),
        tuple(charts.Tick(y(v), words.number(v)) for v in charts.ticks(y.low, y.high, 4)),
        (
            charts.Trace("rejected", "dots wrong", charts.dots(rejected[::every], x, y)),
            charts.Trace("chosen", "dots right", charts.dots(chosen[::every], x, y)),
            charts.Trace("mean", "after few", charts.path(means, x, y), marks),
        ),
    )


def _panels(rows: Sequence[Scored]) -> tuple[Panel, ...]:
    """Pairs in the right order by who preferred, and by kind of question; a table of one row is left out."""
    panels = []
    for title, labels in (("By source", [row.source for row in rows]), ("By kind", [row.kind for row in rows])):
        table: dict[str, list[bool]] = {}
        for label, row in zip(labels, rows, strict=True):
            table.setdefault(label or "not named", []).append(row.lead > 0)
        lines = [
            Change(label, len(marks), None, share(sum(marks), len(marks)), None)
            for label, marks in sorted(table.items())
        ]
        if len(lines) > 1:
            panels.append(Panel(title, "held-out pairs in the right order", tuple(lines)))
    return tuple(panels)
