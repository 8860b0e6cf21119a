"""`longtake eval --blind rows`: what a multiple-choice file gives away to someone who never sees a film.

Four guessers: by chance, always the most frequent letter, the longest option (ties split), and the surface model of
`eval.surface` (5-fold, three seeds). No model and no torch. Needed because the field's benchmarks leak: the gold
letter of LongVideo-Reason-eval is B in 44 % of the rows, and its gold options are long.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from longtake.data.choices import LETTERS
from longtake.data.readers import Draft
from longtake.data.rows import Bad, read_drafts
from longtake.errors import UserError
from longtake.eval.surface import Choice, guesses
from longtake.maths.stats import share

SEEDS = 3
FEWEST = 50  # rows below which a 5-fold model says nothing


@dataclass(frozen=True, slots=True)
class _Guessed:
    """Credit in [0, 1] of each guesser on each row, the surface model's once a seed."""

    chance_N: np.ndarray
    majority_N: np.ndarray
    longest_N: np.ndarray
    surface_SN: np.ndarray | None  # None = too few rows


def report(path: Path, seed: int = 0) -> dict[str, Any]:
    """Blind scores of a file of rows, JSON-ready: fractions, with 95 % Wilson intervals.

    "all" keeps malformed rows that have options and an answer, as published numbers do; "clean" leaves them out.
    "by_position" is there when a row lists options out of the order of their letters: the scores of a tool that takes
    its first option for A whatever it is labelled. Raises UserError where no row has options and an answer.
    """
    found, bad = read_drafts(path)
    rows: list[tuple[Choice, str]] = []
    excluded: Counter[str] = Counter()
    unread = len(bad)
    for place, draft in found:
        reason = _unfit(draft)
        if reason:
            excluded[reason] += 1
            continue
        flaw = draft.choices.flaw(draft.answer)
        if flaw:
            bad.append(Bad(place, draft.id, flaw))
        rows.append((Choice(draft.stem, draft.choices.options, draft.choices.labels, draft.answer, draft.kind), flaw))
    if not rows:
        why = "; ".join([f"{count} rows with {reason}" for reason, count in excluded.items()] + [f"{unread} malformed"])
        raise UserError("no multiple-choice row with an answer", where=str(path), why=why, fix="give rows with options")
    every = [choice for choice, _ in rows]
    moved = sum(choice.labels != tuple(sorted(choice.labels)) for choice in every)
    return {
        "path": str(path),
        "seed": seed,
        "rows": len(found) + unread,
        "excluded": dict(excluded),
        "malformed": [
            {"row": row.place, "id": row.id, "reason": row.reason} for row in sorted(bad, key=lambda row: row.place)
        ],
        "same_option_twice": sum(draft.choices.twins() for _, draft in found if not _unfit(draft)),
        "out_of_order": moved,
        "letters": _letters(every),
        **_scores("all", every, seed, kinds=True),
        **_scores("clean", [choice for choice, flaw in rows if not flaw], seed),
        **_scores("by_position", [replace(c, labels=tuple(LETTERS[: len(c.labels)])) for c in every if moved], seed),
    }


def _unfit(draft: Draft) -> str:
    """Why a row is no multiple-choice question at all, "" if it is one."""
    if len(draft.choices.options) < 2:
        return "no options"
    return "" if draft.answer else "no answer"


def _scores(name: str, choices: Sequence[Choice], seed: int, kinds: bool = False) -> dict[str, Any]:
    """{name: numbers} over the rows, and {"by_kind": …} where asked and there is more than one kind."""
    if not choices:
        return {name: None} | ({"by_kind": {}} if kinds else {})
    letter = Counter(choice.answer for choice in choices).most_common(1)[0][0]
    guessed = _Guessed(
        chance_N=np.array([1 / len(choice.options) for choice in choices]),
        majority_N=np.array([float(choice.answer == letter) for choice in choices]),
        longest_N=np.array([_longest(choice) for choice in choices]),
        surface_SN=np.array([guesses(choices, seed + s) for s in range(SEEDS)], float)
        if len(choices) >= FEWEST
        else None,
    )
    scores: dict[str, Any] = {name: {"letter": letter, **_numbers(guessed, np.ones(len(choices), bool))}}
    if kinds:
        kind_N = np.array([choice.kind for choice in choices])
        named = sorted(set(kind_N.tolist()) - {""})
        scores["by_kind"] = {kind: _numbers(guessed, kind_N == kind) for kind in named if len(named) > 1}
    return scores


def _letters(choices: Sequence[Choice]) -> dict[str, int]:
    """How often each letter is right; answers of malformed rows that are no letter count as "other"."""
    counted = Counter(choice.answer if choice.answer in LETTERS else "other" for choice in choices)
    return dict(sorted(counted.items()))


def _longest(choice: Choice) -> float:
    """1 if the right option is the longest, split with others of its length."""
    longest = max(len(option) for option in choice.options)
    tied = [label for label, option in zip(choice.labels, choice.options, strict=True) if len(option) == longest]
    return tied.count(choice.answer) / len(tied)


def _numbers(guessed: _Guessed, chosen_N: np.ndarray) -> dict[str, Any]:
    count = int(chosen_N.sum())
    numbers: dict[str, Any] = {"n": count, "chance": float(guessed.chance_N[chosen_N].mean())}
    surface_N = None if guessed.surface_SN is None else guessed.surface_SN.mean(axis=0)
    for name, credit_N in (("majority", guessed.majority_N), ("longest", guessed.longest_N), ("surface", surface_N)):
        if credit_N is None:
            numbers[name] = None
            continue
        total = float(credit_N[chosen_N].sum())
        estimate = share(round(total), count)  # split ties and averaged seeds give fractions of a row
        numbers[name] = {"accuracy": total / count, "interval": [estimate.low, estimate.high]}
    if guessed.surface_SN is not None:
        numbers["surface"]["seeds"] = [float(value) for value in guessed.surface_SN[:, chosen_N].mean(axis=1)]
    return numbers
