"""Intervals of the study: differences on the same questions, clusters of pairs, slopes over frames; seeds as blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import NormalDist, fmean

from longtake.maths.stats import Estimate

Z = NormalDist().inv_cdf(0.975)
Values = Mapping[str, Sequence[float]]  # by cluster: the numbers on one question or film


def pooled(seeds: Sequence[Estimate]) -> Estimate:
    """All seeds together, each a block: what differs between seeds is in the value and not in the interval.

    The mean of the blocks weighted by their n; half-widths of independent blocks add up as squares. The centre of an
    interval need not be its value (maths.stats.paired_difference); centres are averaged likewise.
    """
    whole = sum(one.n for one in seeds)
    value = sum(one.n * one.value for one in seeds) / whole
    centre = sum(one.n * (one.low + one.high) / 2 for one in seeds) / whole
    half = sqrt(sum((one.n * (one.high - one.low) / 2) ** 2 for one in seeds)) / whole
    return Estimate(value, centre - half, centre + half, whole)


def clustered(values: Values) -> Estimate:
    """Mean over all numbers, with the 95 % interval that lets those of one cluster depend on each other.

    The linearised variance of a ratio of totals (Cochran 1977, eq. 6.13 without the finite-population factor):
    C/(C-1) · Σ_c (Σ_i (x_ci - mean))² / n². Raises ValueError for fewer than 2 clusters.
    """
    groups = [own for own in values.values() if own]
    if len(groups) < 2:
        raise ValueError(f"an interval over clusters needs at least 2, got {len(groups)}")
    n = sum(map(len, groups))
    mean = sum(map(sum, groups)) / n
    spread = sum(sum(x - mean for x in own) ** 2 for own in groups)
    half = Z * sqrt(len(groups) / (len(groups) - 1) * spread) / n
    return Estimate(mean, mean - half, mean + half, n)


def slope(right: Sequence[float]) -> float:
    """Least-squares slope of numbers at equal distances; of accuracies at 8, 16, 32 … frames: per doubling."""
    middle = (len(right) - 1) / 2
    return sum((place - middle) * value for place, value in enumerate(right)) / sum(
        (place - middle) ** 2 for place in range(len(right))
    )


def verdict(low: float, high: float) -> str:
    """ "gain" or "loss" where the interval holds no 0."""
    return "gain" if low > 0 else "loss" if high < 0 else "no gain"


def mean_of(numbers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of what all of them have."""
    names = [name for name in numbers[0] if all(name in one for one in numbers)]
    return {name: fmean(one[name] for one in numbers) for name in names}
