"""Frame policies read out loud: one frame at a time, exact fractions, no formula for the whole."""

from fractions import Fraction


def shown(times: list[Fraction], t: Fraction) -> int:
    """The frame on the screen at time t: walk until the next one would be too late."""
    i = 0
    while i + 1 < len(times) and times[i + 1] <= t:
        i += 1
    return i


def centres(start: Fraction, end: Fraction, bins: int) -> list[Fraction]:
    width = (end - start) / bins
    return [start + k * width + width / 2 for k in range(bins)]


def nearest_keys(
    times: list[Fraction], keys: list[bool], start: Fraction, end: Fraction, bins: int
) -> list[int | None]:
    """Of each bin its key frame that begins nearest to the centre, one by one; the first of two as near."""
    found: list[int | None] = []
    for k in range(bins):
        a, b = start + k * (end - start) / bins, start + (k + 1) * (end - start) / bins
        best: int | None = None
        for i, t in enumerate(times):
            nearer = best is None or abs(t - (a + b) / 2) < abs(times[best] - (a + b) / 2)
            if keys[i] and a <= t < b and nearer:
                best = i
        found.append(best)
    return found
