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
