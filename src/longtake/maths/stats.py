"""How sure a measured number is: intervals of shares, means, differences, correlations; calibration. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atanh, isfinite, sqrt, tanh
from statistics import NormalDist, StatisticsError, fmean, stdev
from statistics import correlation as pearson


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number, the interval that covers the truth with the confidence asked for, and how many samples it rests on.

    Example: Estimate(0.80, 0.766, 0.830, 600).
    """

    value: float
    low: float
    high: float
    n: int


def share(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """Share of successes with its Wilson score interval (Wilson 1927): sensible at 0, at 1 and for few samples."""
    if not 0 <= successes <= n or n == 0:
        raise ValueError(f"need 0 <= successes <= n and n > 0, got {successes} of {n}")
    z = _z(confidence)
    value = successes / n
    centre = (value + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(value * (1 - value) / n + z * z / (4 * n * n))
    return Estimate(value, centre - half if successes else 0.0, centre + half if successes < n else 1.0, n)


def mean(values: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean with its normal interval: mean ± z s / √n, s the sample deviation. At least 2 values."""
    if len(values) < 2:
        raise ValueError(f"an interval of a mean needs at least 2 values, got {len(values)}")
    value = fmean(values)
    half = _z(confidence) * stdev(values) / sqrt(len(values))
    return Estimate(value, value - half, value + half, len(values))


def paired_difference(before: Sequence[float], after: Sequence[float], confidence: float = 0.95) -> Estimate:
    """Mean of after - before over the same questions, in the same order, with its interval.

    Right/wrong outcomes (0 and 1, at least one pair): the adjusted Wald interval "Wald+2" (Agresti and Min 2005,
    Statistics in Medicine 24:729), which counts half a pair more in each cell of before × after and so has a width
    where all pairs agree. Only the questions that changed side widen it, as in McNemar's test. Other values: `mean`.
    """
    if len(before) != len(after):
        raise ValueError(f"pairs need equal lengths, got {len(before)} before and {len(after)} after")
    differences = [b - a for a, b in zip(before, after, strict=True)]
    if not differences or not {*before, *after} <= {0, 1}:
        return mean(differences, confidence)
    n, net, changed = len(differences) + 2, sum(differences), sum(map(abs, differences)) + 1
    half = _z(confidence) * sqrt(changed - net * net / n) / n
    return Estimate(fmean(differences), max(net / n - half, -1.0), min(net / n + half, 1.0), len(differences))


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about one probability. Example: Bin(0.7, 0.8, 0.74, Estimate(0.69, 0.60, 0.77, 120))."""

    low: float
    high: float
    predicted: float  # mean of their probabilities
    right: Estimate


def calibration(probability: Sequence[float], right: Sequence[bool], bins: int = 10) -> tuple[Bin, ...]:
    """How often predictions were right, by the probability they claimed, in bins of equal width; empty ones left out.

    Of a pair: claimed is σ(|r chosen - r rejected|), and right is r chosen > r rejected; σ of the difference itself
    would be compared with an outcome that is always true.
    """
    if len(probability) != len(right) or bins < 1 or not all(0 <= p <= 1 for p in probability):
        raise ValueError(f"need as many outcomes as probabilities of 0 to 1, got {len(probability)} and {len(right)}")
    held: list[list[int]] = [[] for _ in range(bins)]
    for place, p in enumerate(probability):
        held[min(int(p * bins), bins - 1)].append(place)
    return tuple(
        Bin(
            n / bins,
            (n + 1) / bins,
            fmean(probability[i] for i in found),
            share(sum(right[i] for i in found), len(found)),
        )
        for n, found in enumerate(held)
        if found
    )


def calibration_error(found: Sequence[Bin]) -> float:
    """Mean of |predicted - right| over predictions: expected calibration error (arXiv:1706.04599 eq. 3)."""
    return sum(abs(b.predicted - b.right.value) * b.right.n for b in found) / sum(b.right.n for b in found)


def length_correlation(lengths: Sequence[float], scores: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """Pearson's correlation with Fisher's interval: how far scores follow lengths.

    None below 4, and if one of them is too close to constant or not finite.
    Differences within pairs, chosen - rejected of both, leave out what a question does to length and score alike.
    """
    n = len(lengths)
    if len(scores) != n:
        raise ValueError(f"need as many scores as lengths, got {len(scores)} and {n}")
    if n < 4 or len(set(lengths)) == 1 or len(set(scores)) == 1:
        return None
    try:
        found = pearson(lengths, scores)
    except StatisticsError:  # of numbers so close that their spread underflows
        return None
    if not isfinite(found):
        return None
    value = min(max(found, -1.0), 1.0)
    if abs(value) == 1:
        return Estimate(value, value, value, n)
    half = _z(confidence) / sqrt(n - 3)
    return Estimate(value, tanh(atanh(value) - half), tanh(atanh(value) + half), n)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
