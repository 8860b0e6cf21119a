"""Intervals against their defining equations and published values."""

from math import comb, sqrt

import pytest

from longtake.maths import stats

Z95 = 1.959963984540054
CLOSE = 1e-9
COVERED = 0.9  # of a 95 % interval; 0.908 at worst here, where the unadjusted interval's worst is 0.401


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


def outcomes(gained, lost, n):
    """Before and after with so many of n questions gained and lost; of the others every second one is right."""
    same = [i % 2 for i in range(n - gained - lost)]
    return [0] * gained + [1] * lost + same, [1] * gained + [0] * lost + same


def test_paired_difference_known_values():
    """The example of `diffpropci.mp` in the R package PropCIs: n = 160, 40 lost, 20 gained."""
    got = stats.paired_difference(*outcomes(20, 40, 160))
    assert got.value == pytest.approx(-20 / 160, rel=CLOSE)
    assert got.low == pytest.approx(-0.21601726, abs=1e-8)
    assert got.high == pytest.approx(-0.03089632, abs=1e-8)
    assert got.n == 160


def test_paired_difference_is_the_normal_interval_of_the_table_with_half_a_pair_more_in_each_cell():
    gained, lost, n = 5, 2, 20
    got = stats.paired_difference(*outcomes(gained, lost, n))
    share_gained, share_lost = (gained + 0.5) / (n + 2), (lost + 0.5) / (n + 2)
    variance = share_gained + share_lost - (share_gained - share_lost) ** 2
    assert (got.low + got.high) / 2 == pytest.approx(share_gained - share_lost, rel=CLOSE)
    assert got.high - got.low == pytest.approx(2 * Z95 * sqrt(variance / (n + 2)), rel=CLOSE)


@pytest.mark.parametrize(("gained", "lost", "n"), [(3, 0, 3), (0, 3, 3), (0, 0, 3), (1, 0, 1), (0, 0, 600)])
def test_pairs_that_agree_leave_doubt(gained, lost, n):
    got = stats.paired_difference(*outcomes(gained, lost, n))
    assert -1 <= got.low <= got.value <= got.high <= 1
    assert got.high - got.low > 2 / (n + 2)


@pytest.mark.parametrize("n", [5, 12, 30])
@pytest.mark.parametrize(("gain", "loss"), [(0.02, 0.02), (0.1, 0.0), (0.3, 0.1), (0.5, 0.4), (0.9, 0.05)])
def test_paired_difference_covers_the_truth(gain, loss, n):
    """Exactly: the chance of every table of n questions, each gained or lost with its own chance."""
    covered = 0.0
    for gained, lost in ((i, j) for i in range(n + 1) for j in range(n + 1 - i)):
        got = stats.paired_difference(*outcomes(gained, lost, n))
        ways = comb(n, gained) * comb(n - gained, lost)
        chance = ways * gain**gained * loss**lost * (1 - gain - loss) ** (n - gained - lost)
        covered += chance * (got.low <= gain - loss <= got.high)
    assert covered > COVERED


def test_paired_difference_of_other_values_is_their_mean():
    before, after = [0.25, 0.5, 1.0], [0.5, 1.0, 1.0]
    assert stats.paired_difference(before, after) == stats.mean([0.25, 0.5, 0.0])


def test_pairing_matters():
    before = [0, 1] * 10
    same, mixed = (stats.paired_difference(before, after) for after in (before, before[::-1]))
    assert same.value == mixed.value == 0
    assert mixed.high - mixed.low > 4 * (same.high - same.low)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: stats.share(3, 2), "got 3 of 2"),
        (lambda: stats.share(0, 0), "got 0 of 0"),
        (lambda: stats.share(1, 2, 95), "confidence must be between 0 and 1, got 95"),
        (lambda: stats.mean([1.0]), "at least 2 values, got 1"),
        (lambda: stats.paired_difference([1, 0], [1]), "got 2 before and 1 after"),
        (lambda: stats.paired_difference([], []), "at least 2 values, got 0"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
