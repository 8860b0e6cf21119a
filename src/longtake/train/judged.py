"""What became of judged pairs: rows for pairs.jsonl and judged.jsonl, and the numbers of a run."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from longtake.records import Pair
from longtake.train.asking import Spent
from longtake.train.judging import OUTCOMES, Judged
from longtake.train.narrative import Narrative

SOURCE = "judge"
PER = 1e6  # tokens that a price is for
OF_KIND = ("pairs", "kept", "flip_rate", "accuracy", "accuracy_all", "accuracy_all_n")


def pair_of(one: Judged) -> Pair:
    """A kept match as a preference; how it came about is in its row."""
    assert one.better is not None, "kept"
    match, worse = one.match, 1 - one.better
    scores = one.scores and (one.scores[one.better], one.scores[worse])
    row = {
        "correct": [match.correct[one.better], match.correct[worse]],
        "narrative": told_row(match.narrative),
        "verdicts": [asdict(verdict) for verdict in one.verdicts],
        "receipt": match.receipt and asdict(match.receipt),
    }
    texts = match.answers[one.better].text, match.answers[worse].text
    margin = scores and scores[0] - scores[1]
    return Pair(match.id, match.look.question, *texts, margin=margin, scores=scores or None, source=SOURCE, row=row)


def judged_row(one: Judged, strip: str | None) -> dict[str, Any]:
    """A line of judged.jsonl, whatever the outcome; `strip`: a filmstrip inside the run folder."""
    match, question = one.match, one.match.look.question
    answers: list[dict[str, Any]] = [
        {"text": said.text, "tokens": said.tokens, "finish": said.finish, "correct": right}
        for said, right in zip(match.answers, match.correct, strict=True)
    ]
    for answer, value in zip(answers, one.scores or (), strict=False):
        answer["score"] = value
    return {
        "id": match.id,
        "question_id": question.id,
        "kind": question.kind,
        "question": question.text,
        "options": question.options,
        "answer": question.answer,
        "evidence": question.evidence,
        "film": question.video,
        "strip": strip,
        "narrative": told_row(match.narrative),
        "answers": answers,
        "verdicts": [asdict(verdict) for verdict in one.verdicts],
        "outcome": one.outcome,
        "better": one.better,
        "right": chose_right(one),
        "receipt": match.receipt and asdict(match.receipt),
    }


def told_row(narrative: Narrative | None) -> list[dict[str, Any]] | None:
    """Captions with their times."""
    if narrative is None:
        return None
    return [{"start": one.start, "stop": one.stop, "caption": one.text} for one in narrative]


def narrative_row(film: str, narrative: Narrative) -> dict[str, Any]:
    """A line of narratives.jsonl: captions with their times and the frames that were seen."""
    clips = zip(told_row(narrative) or [], narrative, strict=True)
    return {"film": film, "clips": [row | {"receipt": one.receipt and asdict(one.receipt)} for row, one in clips]}


def chose_right(one: Judged) -> bool | None:
    """Whether the judge chose the right answer of a kept pair with exactly one; None where that cannot be said."""
    return None if one.better is None or one.match.right is None else one.better == one.match.right


def numbers(judged: Sequence[Judged], *, orders: bool) -> dict[str, Any]:
    """Counts of outcomes, flip rate, slot prior, accuracy; null where nothing can be said.

    `orders`: both orders were judged. `accuracy` is of kept pairs with exactly one right answer; `accuracy_all` of all
    such pairs that were judged, half for those not kept; `accuracy_verdicts` of single verdicts that name an answer.
    """
    counts = Counter(one.outcome for one in judged)
    named = {"ties" if name == "tie" else name: counts[name] for name in OUTCOMES}
    told = [verdict for one in judged for verdict in one.verdicts if verdict.said in ("A", "B")]
    known = [one for one in judged if one.match.right is not None and one.outcome not in ("same", "failed")]
    chosen = [right for one in known if (right := chose_right(one)) is not None]
    single = [v.names == one.match.right for one in known for v in one.verdicts if orders and v.names is not None]
    return {
        "pairs": len(judged),
        **named,
        "flip_rate": _share(counts["flipped"], counts["kept"] + counts["flipped"]) if orders else None,
        "slot_a": _share(sum(verdict.said == "A" for verdict in told), len(told)) if orders else None,
        "accuracy": _share(sum(chosen), len(chosen)),
        "accuracy_n": len(chosen),
        "accuracy_all": _share(sum(chosen) + 0.5 * (len(known) - len(chosen)), len(known)),
        "accuracy_all_n": len(known),
        "accuracy_verdicts": _share(sum(single), len(single)),
        "accuracy_verdicts_n": len(single),
    }


def by_kind(judged: Sequence[Judged], *, orders: bool) -> dict[str, Any]:
    """The main numbers of each kind of question."""
    kinds = defaultdict(list)
    for one in judged:
        kinds[one.match.look.question.kind].append(one)
    found = {kind: numbers(kinds[kind], orders=orders) for kind in sorted(kinds) if kind}
    return {kind: {name: own[name] for name in OF_KIND} for kind, own in found.items()}


def took(local: Spent, remote: Spent, price: tuple[float, float]) -> dict[str, Any]:
    """What captions and verdicts took, of models here and of the endpoint; the latter's requests may fail and cost."""
    whole = local + remote
    cost = (remote.tokens_in * price[0] + remote.tokens_out * price[1]) / PER
    return {
        "calls": whole.calls,
        "retries": whole.retries,
        "tokens_in": whole.tokens_in,
        "tokens_out": whole.tokens_out,
        "cost": cost if any(price) else None,
        "requests": remote.asks,
        "requests_failed": remote.failed,
        "failures": dict(remote.failures),
        "last_error": remote.last_error,
    }


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None
