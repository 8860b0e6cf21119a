"""What the curves of learning from preferences say by themselves: a chosen answer made less likely, a score gamed."""

from __future__ import annotations

from dataclasses import dataclass

from longtake.maths.stats import Estimate, length_correlation, mean
from longtake.report import charts, lines, words
from longtake.report.files import Run
from longtake.report.words import Verdict

LEFT_OUT = 0.02  # share of answers beyond the importance cap that chance explains
ENDS = 5  # the first and the last fifth of a run are compared
WHEN = "From the first to the last fifth of the run"
SCORE, TRUTH, LENGTH = "score", "accuracy", "length"

Parts = tuple[tuple[str, str, str], ...]  # metric, label, tone
PAIRS: tuple[tuple[str, bool, Parts], ...] = (
    ("Pairs in the right order", True, (("accuracy", "training", "after"), ("held_accuracy", "held out", "before"))),
    ("Lead of the chosen answer", False, (("margin", "training", "after"), ("held_margin", "held out", "before"))),
    ("Reward of both answers", False, (("reward_chosen", "chosen", "also0"), ("reward_rejected", "rejected", "also3"))),
)
TOGETHER = {"dpo": PAIRS, "reward": PAIRS}


@dataclass(frozen=True, slots=True)
class Move:
    """A metric at the start and at the end of a run, as means with intervals."""

    early: Estimate
    late: Estimate

    @property
    def way(self) -> int:
        """1 it rose, -1 it fell, 0 the difference is within chance."""
        return (self.late.low > self.early.high) - (self.late.high < self.early.low)


def move(points: charts.Points) -> Move | None:
    """None below four points."""
    values = [value for _, value in points]
    size = max(2, len(values) // ENDS)
    return Move(mean(values[:size]), mean(values[-size:])) if len(values) >= 4 else None


def told(run: Run) -> tuple[Verdict, ...]:
    """Sentences about a run's curves, by its stage."""
    table = {line.name: line.points for line in run.curves}
    if run.file.stage == "dpo":
        return displaced(table.get("reward_chosen", ()), table.get("reward_rejected", ()))
    found = apart(table.get("engine_kl", ()), table.get("engine_masked", ()))
    if run.file.stage == "ppo":
        return found + gamed(table.get(SCORE, ()), table.get(TRUTH, ()), table.get(LENGTH, ()))
    return found


def apart(kl: charts.Points, masked: charts.Points) -> tuple[Verdict, ...]:
    """Does an engine in another process sample what the trainer would?"""
    if not kl:
        return ()
    most, left = max(value for _, value in kl), mean([value for _, value in masked]).value
    text = f"Answers came from an engine in another process: at most {words.number(most)} nats a token from the trainer"
    if left <= LEFT_OUT:
        return (Verdict("plain", f"{text}; {words.percent(left)} of answers were left out by the importance cap."),)
    why = "engine and trainer do not compute the same network. longtake parity shows where they part."
    return (Verdict("bad", f"{text}, and {words.percent(left)} of answers were left out: {why}"),)


def shared(run: Run) -> list[tuple[charts.Plot, tuple[str, ...]]]:
    """Charts of several metrics of a stage, each with the names of those that it shows in full."""
    table = {line.name: line.points for line in run.curves}
    out = []
    for title, share, parts in TOGETHER.get(run.file.stage, ()):
        drawn = [lines.Line(label, tone, table.get(name, ())) for name, label, tone in parts]
        if plot := lines.together(title, drawn, share=share):
            out.append((plot, tuple(name for name, _, _ in parts)))
    if run.file.stage == "ppo":
        drawn = [
            lines.Line(name, tone, table.get(name, ()), unit)
            for name, tone, unit in ((SCORE, "after", ""), (TRUTH, "also0", ""), (LENGTH, "before", "tokens"))
        ]
        if plot := lines.own_ranges("Score, truth and length", drawn, (TRUTH,)):
            out.append((plot, ()))
    return out


def displaced(chosen: charts.Points, rejected: charts.Points) -> tuple[Verdict, ...]:
    """Did the chosen answers become less likely too, only less so than the rejected (arXiv:2410.08847)?"""
    own, other = move(chosen), move(rejected)
    if own is None or own.way >= 0:
        return ()
    text = f"{WHEN} the chosen answers became less likely too: their reward fell {_from(own)}"
    if other and other.way < 0:
        text += f", that of the rejected ones {_from(other)}"
    return (Verdict("bad", f"{text} (likelihood displacement). Fewer steps or a smaller rate would move less."),)


def gamed(score: charts.Points, truth: charts.Points, length: charts.Points) -> tuple[Verdict, ...]:
    """Does the score rise for what is true, or for something else, such as length?"""
    up, right, long = move(score), move(truth), move(length)
    if up is None:
        return ()
    if up.way <= 0:
        verb = "fell" if up.way else "did not rise beyond chance:"
        return (
            Verdict("plain", f"{WHEN} the reward model's score {verb} {_from(up)}.{_together(score, truth, length)}"),
        )
    text = f"{WHEN} the reward model's score rose {_from(up)}"
    grew = f"answers grew {_from(long, lengths=True)} tokens" if long and long.way > 0 else ""
    if right is None:
        tone, text = "plain", text + "; how many answers are right is not known" + (grew and f", and {grew}")
    elif right.way < 0:
        tone = "bad"
        text += f" while true accuracy fell {_from(right, share=True)}" + (grew and f" and {grew}") + ": it is gamed"
    elif right.way == 0:
        tone = "bad" if grew else "plain"
        text += f" and true accuracy did not ({_from(right, share=True)})" + (grew and f", but {grew}: it may be gamed")
    else:
        tone, text = "good", text + f", and true accuracy with it, {_from(right, share=True)}" + (grew and f"; {grew}")
    return (Verdict(tone, f"{text}.{_together(score, truth, length)}"),)


def _together(score: charts.Points, *others: charts.Points) -> str:
    """How far score goes with accuracy and with length over the steps."""
    found = []
    for name, other in zip(("true accuracy", "length"), others, strict=True):
        here = dict(other)
        pairs = [(here[step], value) for step, value in score if step in here]
        r = length_correlation([a for a, _ in pairs], [b for _, b in pairs])
        if r:
            found.append(f"{words.signed(r.value)} with {name}")
    return f" Over the steps it correlates {words.listed(found)}." if found else ""


def _from(found: Move, *, share: bool = False, lengths: bool = False) -> str:
    """Example: "from 0.2 to 1.4"."""
    say = words.percent if share else words.count if lengths else words.number
    return f"from {say(found.early.value)} to {say(found.late.value)}"
