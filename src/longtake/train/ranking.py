"""What a reward model says of pairs that it never saw, in numbers: how often it is right, how sure, how fond of length.

P pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from longtake.maths.stats import Estimate, calibration, calibration_error, length_correlation, share
from longtake.records import Pair
from longtake.rewards.mix import accuracy

BINS = 20  # of probability; those below a half stay empty, for a pair's more likely order is the claim


@dataclass(frozen=True, slots=True)
class Ranked:
    """A pair with the scores of its answers. Example: Ranked(pair, "human", 1.2, -0.4, (30, 12))."""

    pair: Pair
    source: str  # whose preference
    chosen: float
    rejected: float
    tokens: tuple[int, int]  # of both answers, end token included

    @property
    def lead(self) -> float:
        return self.chosen - self.rejected

    @property
    def longer(self) -> int:
        """By how many tokens the chosen answer is the longer one."""
        return self.tokens[0] - self.tokens[1]


def measured(ranked: Sequence[Ranked]) -> dict[str, Any]:
    """The part of summary.json that tells of held-out pairs. Ties count half, as they would by a coin.

    accuracy      share of pairs whose chosen answer has the higher score, with its 95 % interval; by source
    calibration   of σ(|difference of the scores|), the claimed probability of the order that the scores say
    length        how scores follow lengths, within pairs too; how often the longer answer is chosen, and scored higher
    truth         of pairs with one right and one wrong answer: how often the right one is scored higher, and is chosen
    """
    n = len(ranked)
    if not n:
        return {"accuracy": None, "n": 0, "length_correlation": None}
    right = sum(_won(one.lead) for one in ranked)
    interval = share(round(right), n)
    scores = [score for one in ranked for score in (one.chosen, one.rejected)]
    follows = length_correlation([tokens for one in ranked for tokens in one.tokens], scores)
    sources = sorted({one.source for one in ranked})
    return {
        "accuracy": right / n,
        "n": n,
        "length_correlation": follows.value if follows else None,
        "accuracy_interval": [interval.low, interval.high],
        "by_source": {source: _accuracy([one for one in ranked if one.source == source]) for source in sources},
        "calibration": _calibration(ranked),
        "length": {"score": _told(follows)} | _length(ranked),
        "truth": _truth(ranked),
        "mean_score": fmean(scores),
    }


def _won(lead: float) -> float:
    return 0.5 if lead == 0 else float(lead > 0)


def _accuracy(ranked: Sequence[Ranked]) -> dict[str, float]:
    return {"accuracy": fmean(_won(one.lead) for one in ranked), "n": len(ranked)}


def _calibration(ranked: Sequence[Ranked]) -> dict[str, Any]:
    claimed = [1 / (1 + math.exp(-abs(one.lead))) for one in ranked]
    bins = calibration(claimed, [one.lead > 0 for one in ranked], BINS)
    told = [
        {"low": b.low, "high": b.high, "predicted": b.predicted, "right": b.right.value, "n": b.right.n} for b in bins
    ]
    return {"error": calibration_error(bins), "bins": told}


def _length(ranked: Sequence[Ranked]) -> dict[str, Any]:
    differ = [one for one in ranked if one.longer]
    return {
        "difference": _told(length_correlation([one.longer for one in ranked], [one.lead for one in ranked])),
        "longer_chosen": fmean(one.longer > 0 for one in differ) if differ else None,
        "longer_scored_higher": fmean(_won(one.lead * one.longer) for one in differ) if differ else None,
        "pairs": len(differ),
    }


def _truth(ranked: Sequence[Ranked]) -> dict[str, Any] | None:
    """None where no pair has one right and one wrong answer."""
    found: list[tuple[Ranked, bool]] = []
    for one in ranked:
        if one.pair.question.answer:
            chosen, rejected = (accuracy(text, one.pair.question) >= 1 for text in (one.pair.chosen, one.pair.rejected))
            if chosen != rejected:
                found.append((one, chosen))
    if not found:
        return None
    scored = fmean(_won(one.lead if chosen else -one.lead) for one, chosen in found)
    return {"accuracy": scored, "labels": fmean(chosen for _, chosen in found), "n": len(found)}


def _told(found: Estimate | None) -> dict[str, float] | None:
    if found is None:
        return None
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}
