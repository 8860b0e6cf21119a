"""Intervals against their defining equations and published values."""

from math import sqrt

import pytest

from longtake.maths import stats

Z95 = 1.959963984540054
CLOSE = 1e-9


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (1, 7), (480, 600), (10, 10), (300, 600)])
def test_wilson_bounds_are_where_the_score_test_turns(successes, n):
    """|p̂ - p| = z √(p (1 - p) / n) holds at both bounds (or the bound is 0 or 1)."""
    got = stats.share(successes, n)
    assert got.value == successes / n
    assert got.n == n
    assert 0 <= got.low <= got.value <= got.high <= 1
    for p in (got.low, got.high):
        assert p in (0.0, 1.0) or abs(got.value - p) == pytest.approx(Z95 * sqrt(p * (1 - p) / n), rel=CLOSE)
    assert got.low < got.value or successes == 0
    assert got.high > got.value or successes == n


def test_wilson_known_values():
    assert stats.share(0, 10).high == pytest.approx(0.2775328, abs=1e-6)
    assert stats.share(8, 10).low == pytest.approx(0.4901625, abs=1e-6)
    assert stats.share(8, 10).high == pytest.approx(0.9433178, abs=1e-6)


def test_more_confidence_is_wider():
    wide, narrow = stats.share(5, 20, 0.99), stats.share(5, 20, 0.9)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_mean():
    got = stats.mean([1.0, 2.0, 4.0])
    deviation = sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2)
    assert got.value == pytest.approx(7 / 3, rel=CLOSE)
    assert got.high - got.value == pytest.approx(Z95 * deviation / sqrt(3), rel=CLOSE)
    assert got.value - got.low == pytest.approx(Z95 * deviation / sqrt(3), rel=CLOSE)


def test_paired_difference_of_outcomes():
    """From the counts of a two-by-two table: 5 gained, 2 lost, 13 the same."""
    before, after = [0] * 5 + [1] * 2 + [1] * 13, [1] * 5 + [0] * 2 + [1] * 13
    got = stats.paired_difference(before, after)
    n, gained, lost = 20, 5, 2
    variance = ((gained + lost) - (gained - lost) ** 2 / n) / (n - 1)
    assert got.value == pytest.approx((gained - lost) / n, rel=CLOSE)
    assert got.high - got.low == pytest.approx(2 * Z95 * sqrt(variance / n), rel=CLOSE)


def test_pairing_matters():
    before = [0, 1] * 10
    same = stats.paired_difference(before, before)
    assert same.low == same.value == same.high == 0
    mixed = stats.paired_difference(before, before[::-1])
    assert mixed.low < 0 < mixed.high


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.share(3, 2), "got 3 of 2"),
        (lambda: stats.share(0, 0), "got 0 of 0"),
        (lambda: stats.share(1, 2, 95), "confidence must be between 0 and 1, got 95"),
        (lambda: stats.mean([1.0]), "at least 2 values, got 1"),
        (lambda: stats.paired_difference([1, 0], [1]), "got 2 before and 1 after"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
