"""Calibration and length bias of a reward model: worked examples, and what numpy says."""

import math
from random import Random

import numpy as np
import pytest

from longtake.maths import stats
from longtake.maths.stats import Estimate, calibration, calibration_error, length_correlation

EXACT = 1e-12


def test_bins_hold_what_they_claim():
    """0.5 opens the upper half, 1 belongs to the last bin, the third bin is empty."""
    found = calibration([0.1, 0.2, 0.3, 0.9, 1.0, 0.25], [False, True, True, True, False, False], bins=4)
    assert [(b.low, b.high, b.right.n) for b in found] == [(0, 0.25, 2), (0.25, 0.5, 2), (0.75, 1.0, 2)]
    assert [b.predicted for b in found] == pytest.approx([0.15, 0.275, 0.95], rel=EXACT)
    assert [b.right for b in found] == [stats.share(1, 2)] * 3
    assert calibration_error(found) == pytest.approx((0.35 + 0.225 + 0.45) / 3, rel=EXACT)


def test_error_weighs_bins_by_their_predictions():
    found = calibration([0.1] * 3 + [0.9], [False] * 3 + [False], bins=2)
    assert calibration_error(found) == pytest.approx((3 * 0.1 + 0.9) / 4, rel=EXACT)


def test_a_calibrated_model_has_a_small_error():
    random = Random(0)
    claimed = [random.random() for _ in range(4000)]
    right = [random.random() < p for p in claimed]
    assert calibration_error(calibration(claimed, right)) < 0.03
    assert calibration_error(calibration([p**3 for p in claimed], right)) > 0.1
    inside = sum(b.right.low < b.predicted < b.right.high for b in calibration(claimed, right))
    assert inside >= 8


@pytest.mark.parametrize("sign", [1, -1])
def test_length_correlation(sign):
    random = Random(1)
    lengths = [random.randrange(5, 60) for _ in range(50)]
    scores = [sign * length / 20 + random.gauss(0, 1) for length in lengths]
    got = length_correlation(lengths, scores)
    value = float(np.corrcoef(lengths, scores)[0, 1])
    half = 1.959963984540054 / math.sqrt(47)
    want = Estimate(value, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half), 50)
    assert got is not None
    assert (got.value, got.low, got.high) == pytest.approx((want.value, want.low, want.high), rel=1e-9)
    assert got.n == 50
    assert sign * got.value > 0.4


def test_its_interval_covers_no_correlation():
    random = Random(2)
    covered = 0
    for _ in range(200):
        got = length_correlation(*([random.gauss(0, 1) for _ in range(20)] for _ in range(2)))
        covered += got.low < 0 < got.high
    assert covered > 180


def test_nothing_to_say():
    assert length_correlation([1, 2, 3], [1, 2, 4]) is None
    assert length_correlation([5, 5, 5, 5], [1, 2, 3, 4]) is None
    assert length_correlation([1, 2, 3, 4], [0.5] * 4) is None
    assert length_correlation([1, 2, 3, 4], [0.0, 1e-200, 0.0, 2e-200]) is None, "their squares are 0"
    assert length_correlation([1, 2, 3, 4], [0.0, float("nan"), 1.0, 2.0]) is None


def test_a_straight_line_is_sure():
    assert length_correlation([1, 2, 3, 5], [2, 4, 6, 10]) == Estimate(1.0, 1.0, 1.0, 4)


def test_refusals():
    for claimed, right in (([0.5], []), ([1.5], [True]), ([math.nan], [True])):
        with pytest.raises(ValueError, match="as many outcomes"):
            calibration(claimed, right)
    with pytest.raises(ValueError, match="as many scores"):
        length_correlation([1, 2, 3, 4], [1, 2])
