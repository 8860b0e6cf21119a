"""What judging came to: outcomes, agreement with the truth, flips and the slot prior, calls and cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from longtake.maths.stats import Estimate, mean, paired_difference, share
from longtake.report import words
from longtake.report.compare import Change, Panel
from longtake.report.files import JudgeFile, Run
from longtake.report.pair_cards import PairCard, Scores, judged_card, key, pick
from longtake.report.pair_files import Judged
from longtake.report.strips import Strips
from longtake.report.words import DASH, Verdict

OUTCOMES = {  # outcome: words, tone
    "kept": ("kept", "right"),
    "flipped": ("flipped with the order", "flipped"),
    "tie": ("tie", "tied"),
    "unparsable": ("verdict not readable", "broken"),
    "same": ("same answers", "neither"),
    "failed": ("request failed", "gone"),
}
CARDS, FEWEST = 30, 6  # cards in all; of each judge run at least
SLOT = 0.1  # a judge that names slot A by more than this above or below a half has a bias worth a word
FAILED = 0.05  # share of failed requests worth a word


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of the bar of outcomes. Example: Part("kept", "right", 310)."""

    name: str
    tone: str
    n: int


@dataclass(frozen=True, slots=True)
class Number:
    """A number with its name and a note. Example: Number("flip rate", "12 %", "of 400 pairs")."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Judging:
    """One judge run in the section on preferences."""

    run: Run
    how: str  # "both orders, with a narrative of the film"
    total: int
    parts: tuple[Part, ...]
    numbers: tuple[Number, ...]
    verdicts: tuple[Verdict, ...]
    kinds: Panel | None


@dataclass(frozen=True, slots=True)
class Preferences:
    """The section: judge runs in the order they were started, compared, and cards."""

    runs: tuple[Judging, ...]
    compared: Panel | None  # several judges
    cards: tuple[PairCard, ...]


def preferences(runs: Sequence[tuple[Run, list[Judged]]], scores: Scores, strips: Strips) -> Preferences | None:
    """None if nothing was judged. `scores`: of pairs that a reward model scored."""
    if not runs:
        return None
    cards: list[PairCard] = []
    for run, pairs in runs:
        chosen = pick(pairs, max(FEWEST, CARDS // len(runs)))
        cards += [judged_card(run, pair, i, scores, strips) for i, pair in enumerate(chosen)]
    return Preferences(tuple(judging(run, rows) for run, rows in runs), compared(runs), tuple(cards))


def compared(runs: Sequence[tuple[Run, list[Judged]]]) -> Panel | None:
    """Several judges on pairs of one right and one wrong answer; each against the one before, on pairs both judged."""
    rows, before = [], dict[tuple[str, frozenset[str]], float]()
    for run, pairs in runs:
        now = {key(pair): worth for pair in pairs if (worth := pair.worth) is not None}
        if len(now) < 2:
            continue
        both = [one for one in now if one in before]
        delta = paired_difference([before[one] for one in both], [now[one] for one in both]) if len(both) > 1 else None
        how = _seen(run)
        label = f"{run.label}: {how}" if how else run.label
        rows.append(Change(label, len(now), None, mean(list(now.values())), delta))
        before = now
    if len(rows) < 2:
        return None
    return Panel("Judges compared", "pairs of one right and one wrong answer; not kept counts a half", tuple(rows))


def judging(run: Run, rows: Sequence[Judged]) -> Judging:
    """The numbers of one judge run: from its rows, else from its summary."""
    told = run.summary if isinstance(run.summary, JudgeFile) else JudgeFile()
    counts = Counter(row.outcome for row in rows) or Counter(
        kept=told.kept, flipped=told.flipped, tie=told.ties, unparsable=told.unparsable, same=told.same,
        failed=told.failed,
    )  # fmt: skip
    marks = [row.right for row in rows if row.right is not None]
    accuracy = share(sum(marks), len(marks)) if marks else None
    first = [ruling.said for row in rows for ruling in row.verdicts if ruling.order in ("AB", "BA")]
    named = [letter for letter in first if letter in ("A", "B")]
    slot = share(named.count("A"), len(named)) if named else None
    return Judging(
        run,
        _how(run),
        counts.total(),
        tuple(
            Part(*OUTCOMES.get(name, (name, "neither")), counts[name])
            for name in (*OUTCOMES, *sorted(counts.keys() - OUTCOMES))
            if counts[name]
        ),
        _numbers(told, counts, accuracy, slot, _longer(rows)),
        tuple(_verdicts(counts, accuracy, slot)),
        _kinds(rows),
    )


def _kinds(rows: Sequence[Judged]) -> Panel | None:
    """Right by kind of question; None where there is one kind."""
    table: dict[str, list[bool]] = {}
    for row in rows:
        if row.kind and row.right is not None:
            table.setdefault(row.kind, []).append(row.right)
    lines = [Change(kind, len(m), None, share(sum(m), len(m)), None) for kind, m in sorted(table.items())]
    return Panel("By kind", "kept pairs whose chosen answer is the right one", tuple(lines)) if len(lines) > 1 else None


def _longer(rows: Sequence[Judged]) -> float | None:
    """In which share of kept pairs the longer answer was chosen."""
    pairs = [(row.better, [len(a.text.split()) if a.tokens is None else a.tokens for a in row.answers]) for row in rows]
    marks = [n[better] > n[1 - better] for better, n in pairs if better is not None and len(n) == 2 and n[0] != n[1]]
    return sum(marks) / len(marks) if marks else None


def _how(run: Run) -> str:
    """How it was judged, from the run's settings. Example: "both orders, film and narrative"."""
    mode = {"pair": "both orders", "rubric": "answers scored 1 to 5"}.get(str(run.file.config.get("mode")), "")
    return ", ".join(part for part in (mode, _seen(run)) if part)


def _seen(run: Run) -> str:
    """What the judge was shown."""
    context = run.file.config.get("context")
    kind = context.get("kind") if isinstance(context, dict) else None
    return {"narrative": "film and narrative", "none": "film alone"}.get(str(kind), "")


def _numbers(
    told: JudgeFile, counts: Counter[str], accuracy: Estimate | None, slot: Estimate | None, longer: float | None
) -> tuple[Number, ...]:
    """What stands in tiles; a dash where it is not known."""
    both = counts["kept"] + counts["flipped"]
    flips = told.flip_rate if told.flip_rate is not None else counts["flipped"] / both if both else None
    right = told.accuracy if accuracy is None else accuracy.value
    first = told.slot_a if slot is None else slot.value
    n = accuracy.n if accuracy else told.accuracy_n
    sure = f"{words.percent(accuracy.low)} to {words.percent(accuracy.high)}, " if accuracy else ""
    people = f" and {words.count(told.human)} of people" if told.human else ""
    spent = [] if told.retries is None else [words.plural(told.retries, "retry", "retries")]
    spent += [f"{words.count(n)} tokens {way}" for n, way in ((told.tokens_in, "in"), (told.tokens_out, "out")) if n]
    spent.append(f"cost {DASH if told.cost is None else words.number(told.cost)}")
    return (
        Number("pairs kept", words.count(counts["kept"]), f"of {words.count(counts.total())} judged{people}"),
        Number(
            "right, of those kept",
            _percent(right),
            f"{sure}n = {words.count(n)}" if n else "none where the truth is known",
        ),
        Number("flip rate", _percent(flips), "another answer in the other order"),
        Number("verdicts for slot A", _percent(first), "half of them without a slot prior"),
        Number("longer one chosen", _percent(longer), "of pairs kept, equal lengths left out"),
        Number("calls", DASH if told.calls is None else words.count(told.calls), ", ".join(spent)),
    )


def _percent(value: float | None) -> str:
    return DASH if value is None else words.percent(value)


def _verdicts(counts: Counter[str], accuracy: Estimate | None, slot: Estimate | None) -> list[Verdict]:
    """What in these numbers should worry."""
    out = []
    if accuracy and accuracy.low <= 0.5:
        said = f"{words.percent(accuracy.value)} right ({words.percent(accuracy.low)} to {words.percent(accuracy.high)}"
        out.append(
            Verdict("bad", f"Not clearly better than a coin where the truth is known: {said}, n = {accuracy.n}).")
        )
    if slot and abs(slot.value - 0.5) > SLOT and not slot.low <= 0.5 <= slot.high:
        more = "first" if slot.value > 0.5 else "second"
        text = f"The judge leans to the answer that stands {more}: {words.percent(slot.value)} of verdicts name slot A."
        out.append(Verdict("bad", f"{text} Pairs that flip with the order are not kept."))
    gone = counts["failed"] / max(1, counts.total())
    if gone > FAILED:
        out.append(Verdict("bad", f"{words.percent(gone)} of the pairs were never judged: requests failed."))
    return out
