"""Importance weights against their product form, and what masks an answer."""

import pytest
import torch
from tests.maths.ragged import normal
from tests.plain import importance as plain

from longtake.maths.importance import mismatch

EXACT = 1e-12
ANSWER = torch.repeat_interleave(torch.arange(6), torch.tensor([5, 1, 9, 3, 2, 7]))
OURS = (normal(0, len(ANSWER)) - 2).detach()
THEIRS = (OURS + 0.3 * normal(1, len(ANSWER))).detach()


@pytest.mark.parametrize("cap", [0.0, 0.9, 1.5, 3.0])
def test_equals_its_twin(cap):
    found = mismatch(OURS, THEIRS, ANSWER, cap)
    want = plain.weights(OURS.tolist(), THEIRS.tolist(), ANSWER.tolist(), cap)
    assert found.weight_A.tolist() == pytest.approx(want, rel=EXACT)
    assert found.masked == want.count(0.0) / len(want)
    assert found.kl == pytest.approx(plain.kl(OURS.tolist(), THEIRS.tolist()), rel=1e-10)
    apart = [abs(a - b) for a, b in zip(OURS.tolist(), THEIRS.tolist(), strict=True)]
    assert (found.gap, found.mean) == pytest.approx((max(apart), sum(apart) / len(apart)), rel=EXACT)
    assert found.tokens == len(ANSWER)


def test_some_are_masked_and_some_are_not():
    """Otherwise the test above would not see a cap that does nothing."""
    found = [mismatch(OURS, THEIRS, ANSWER, cap) for cap in (0.9, 1.5, 3.0)]
    assert len({one.masked for one in found}) > 1
    assert 0 < found[1].masked < 1
    assert ((found[1].weight_A != 0) & (found[1].weight_A != 1)).any()


def test_the_same_numbers_weigh_1():
    found = mismatch(OURS, OURS, ANSWER, 3.0)
    assert found.weight_A.tolist() == [1.0] * 6
    assert found.kl == found.gap == found.masked == 0


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_mask_their_answer_alone(poison):
    theirs = torch.where(torch.arange(len(ANSWER)) == 7, -abs(poison), THEIRS)
    clean, found = mismatch(OURS, THEIRS, ANSWER, 3.0).weight_A, mismatch(OURS, theirs, ANSWER, 3.0).weight_A
    assert found[2] == 0
    assert torch.equal(found[[0, 1, 3, 4, 5]], clean[[0, 1, 3, 4, 5]])
