"""Preference cards: the film, the narrative, two answers side by side, what a judge said of them, what they score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from longtake.report import words
from longtake.report.cards import LONG, MAX_TEXT, spoken, truth
from longtake.report.files import Run
from longtake.report.film import Bit, Film, anchored, film
from longtake.report.pair_files import Answer, Clip, Judged, Ruling, Scored, said
from longtake.report.strips import Strips

ORDERS = {"AB": (0, 1), "BA": (1, 0)}  # which answer stood in slot A, which in slot B
Scores = Mapping[
    tuple[str, str], tuple[float, float]
]  # (pair id, chosen answer) → a reward model's scores of the chosen and the rejected answer
Known = Mapping[tuple[str, frozenset[str]], tuple[Run, Judged]]  # `key` of a pair → the judge run that knows it


@dataclass(frozen=True, slots=True)
class Part:
    """A clip of the narrative. Example: Part("0.00–2.67 s", bits)."""

    when: str
    text: tuple[Bit, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two answers."""

    name: str
    think: tuple[Bit, ...]
    final: tuple[Bit, ...]
    folded: bool  # thinking is long
    cut: int  # characters left out
    answer: Answer
    chosen: bool | None  # None where neither was
    model: float | None  # the reward model's score


@dataclass(frozen=True, slots=True)
class Told:
    """One verdict. Example: Told("A: answer 1, B: answer 2", "A", "answer 1", bits, False, "")."""

    order: str  # what was asked
    said: str  # "A" | "B" | "tie" | a score | "" where it could not be read
    means: str
    text: tuple[Bit, ...]
    folded: bool
    error: str


@dataclass(frozen=True, slots=True)
class PairCard:
    """One pair, ready to draw. `gap` and `longer` are what cards can be sorted by."""

    run: str
    pair: Judged
    state: str  # outcome of judging, or "right" | "wrong" | "tie" of a reward model
    truth: str
    film: Film
    narrative: tuple[Part, ...]
    sides: tuple[Side, ...]
    told: tuple[Told, ...]
    gap: float | None  # the reward model's score of the chosen answer above that of the other
    longer: int  # tokens (or words) of the chosen answer, else of the first, above those of the other


def pick(rows: Sequence[Judged], most: int) -> list[Judged]:
    """Pairs worth a look, as different as possible: with a filmstrip, judged wrongly, then others."""
    order = ("flipped", "tie", "unparsable", "kept", "failed")
    seen: dict[tuple[object, ...], int] = {}
    ranked = []
    told = [row for row in rows if row.answers and row.outcome != "same"]
    for row in sorted(told, key=lambda row: (row.strip is None, row.id)):
        key = row.outcome, row.right, row.kind
        seen[key] = seen.get(key, 0) + 1
        place = order.index(row.outcome) if row.outcome in order else len(order)
        ranked.append((row.strip is None, seen[key], row.right is not False, place, row.kind, row.id, row))
    return [row[-1] for row in sorted(ranked, key=lambda row: row[:-1])[:most]]


def key(pair: Judged) -> tuple[str, frozenset[str]]:
    """The same for the same two answers to the same question, in any order."""
    return pair.id, frozenset(answer.text.strip() for answer in pair.answers)


def judged_card(run: Run, pair: Judged, place: int, scores: Scores, strips: Strips) -> PairCard:
    """The card of a judged pair, with the scores of a reward model that knows it."""
    known = pair.better is not None and pair.better < len(pair.answers)
    model = scores.get((pair.id, pair.answers[pair.better or 0].text.strip())) if known else None
    return _card(run, run, f"j{place}", pair, pair.outcome, model, strips)


def scored_card(run: Run, row: Scored, place: int, known: Known, strips: Strips) -> PairCard:
    """The card of a pair that a reward model scored, with what a judge's folder beside it knows of the pair."""
    texts, counts = (said(row.chosen), said(row.rejected)), (row.tokens_chosen, row.tokens_rejected)
    nobody = run, Judged(row.id, "kept")
    home, judged = known.get((row.id, frozenset(text.strip() for text in texts)), nobody)
    found = {answer.text.strip(): answer for answer in judged.answers}
    answers = tuple(
        replace(found.get(text.strip(), Answer(text, count, correct=correct)), score=score)
        for text, count, correct, score in zip(
            texts, counts, row.correct, (row.score_chosen, row.score_rejected), strict=True
        )
    )
    pair = replace(
        judged,
        answers=answers,
        better=0,
        verdicts=_turned(row.verdicts or judged.verdicts),
        question=judged.question or said(row.prompt),
        options=row.options or judged.options,
        answer=row.answer or judged.answer,
        kind=row.kind or judged.kind,
        evidence=row.evidence or judged.evidence,
        narrative=row.narrative or judged.narrative,
        receipt=row.receipt or judged.receipt,
        strip=row.strip or judged.strip,
    )
    state = "right" if row.lead > 0 else "wrong" if row.lead < 0 else "tie"
    return _card(
        run, run if row.strip else home, f"s{place}", pair, state, (row.model_chosen, row.model_rejected), strips
    )


def _turned(verdicts: Sequence[Ruling]) -> tuple[Ruling, ...]:
    """Verdicts of a kept pair as if the chosen answer had been the first of the two."""
    told = {one.order: one.said for one in verdicts}  # both orders name the same answer
    second = told.get("AB") == "B" or told.get("BA") == "A" or told.get("1", "") > told.get("0", "")
    names = {"AB": "BA", "BA": "AB", "0": "1", "1": "0"} if second else {}
    return tuple(replace(one, order=names.get(one.order, one.order)) for one in verdicts)


def _card(
    run: Run, home: Run, place: str, pair: Judged, state: str, model: tuple[float, float] | None, strips: Strips
) -> PairCard:
    """home: the run folder that holds the strip. model: scores of the chosen and of the other answer."""
    seen = film(home, anchored(run, place), pair.receipt, pair.strip, pair.evidence, strips)
    lengths = [len(answer.text.split()) if answer.tokens is None else answer.tokens for answer in pair.answers]
    first = pair.better or 0
    return PairCard(
        run=run.label,
        pair=pair,
        state=state,
        truth=truth(pair.options, pair.answer),
        film=seen,
        narrative=tuple(_part(seen, clip) for clip in pair.narrative or ()),
        sides=tuple(_side(seen, pair, i, model) for i in range(len(pair.answers))),
        told=tuple(_told(seen, ruling) for ruling in pair.verdicts),
        gap=None if model is None else model[0] - model[1],
        longer=lengths[first] - lengths[1 - first] if len(lengths) == 2 else 0,
    )


def _part(seen: Film, clip: Clip) -> Part:
    length = max([clip.stop or 0.0, *(seen.receipt.seconds if seen.receipt else ())])
    if clip.start is None or clip.stop is None:
        return Part("", seen.bits(clip.caption))
    when = f"{words.clock(clip.start, length)}–{words.clock(clip.stop, length)}"
    return Part(when + (" s" if length < 60 else ""), seen.bits(clip.caption))


def _side(seen: Film, pair: Judged, place: int, model: tuple[float, float] | None) -> Side:
    answer = pair.answers[place]
    think, final, cut = spoken(answer.text)
    chosen = None if pair.better is None else pair.better == place
    score = None if model is None else model[not chosen]
    return Side(
        f"answer {place + 1}", seen.bits(think), seen.bits(final), len(think) > LONG, cut, answer, chosen, score
    )


def _told(seen: Film, ruling: Ruling) -> Told:
    text, folded = seen.bits(ruling.text[:MAX_TEXT]), len(ruling.text) > LONG
    if ruling.order not in ORDERS:
        which = f"answer {int(ruling.order) + 1}" if ruling.order.isdigit() else ruling.order
        return Told(f"{which} by itself", ruling.said, "", text, folded, ruling.error)
    first, second = ORDERS[ruling.order]
    means = {"A": f"answer {first + 1}", "B": f"answer {second + 1}"}.get(ruling.said, "")
    return Told(f"A: answer {first + 1}, B: answer {second + 1}", ruling.said, means, text, folded, ruling.error)
