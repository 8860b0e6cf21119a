"""Bradley-Terry with margin and both centrings against its plain form: value, gradient, cut batches, token columns."""

import pytest
import torch
from tests.maths.ragged import normal
from tests.plain import preference as plain
from torch.testing import assert_close

from longtake.maths import reward

EXACT = 1e-12
PAIRS = 5
ZERO, ONE = torch.zeros(PAIRS).double(), torch.ones(PAIRS).double()


def scores(seed=0):
    return (2 * normal(seed, 2 * PAIRS) + 0.3).detach().requires_grad_()


def sign_of(way, score_A):
    return reward.batch_sign(score_A) if way == "vlm_rlaif" else None


@pytest.mark.parametrize("way", ["trl", "vlm_rlaif"])
@pytest.mark.parametrize("margins", [False, True])
@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_its_twin(way, margins, weights, seed):
    score = scores(seed)
    margin = normal(seed + 3, PAIRS).detach().abs() if margins else ZERO
    weight = normal(seed + 6, PAIRS).detach().abs() if weights else ONE
    sign = reward.batch_sign(score.unflatten(0, (-1, 2)).detach().sum(1) * weight) if way == "vlm_rlaif" else None
    got = reward.bradley_terry(
        score,
        margin_P=margin if margins else None,
        weight_P=weight if weights else None,
        centring=0.05,
        way=way,
        sign=sign,
    )
    want = plain.bradley_terry(score, margin, weight, 0.05, way)
    assert_close(got.total, want, rtol=EXACT, atol=EXACT)
    assert int(got.count) == PAIRS
    gradients = [torch.autograd.grad(x, score)[0] for x in (got.total, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)


def test_both_signs_occurred():
    """Otherwise the test above would not see a lost sign."""
    assert {reward.batch_sign(scores(seed)) for seed in range(3)} == {-1.0, 1.0}
    assert reward.batch_sign(torch.zeros(2)) == 0


@pytest.mark.parametrize("way", ["trl", "vlm_rlaif"])
def test_cutting_the_batch_changes_nothing(way):
    """With the sign of the whole batch, which is not that of every part."""
    score = torch.tensor([1.0, 2.0, -3.0, -4.0, 0.5, 5.0], dtype=torch.float64, requires_grad=True)
    sign = sign_of(way, score)
    whole = reward.bradley_terry(score, centring=0.1, way=way, sign=sign)
    parts = [reward.bradley_terry(score[a : a + 2], centring=0.1, way=way, sign=sign) for a in (0, 2, 4)]
    total = sum(part.total for part in parts)
    assert_close(total, whole.total, rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x, score)[0] for x in (whole.total, total)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)
    for key, value in whole.watched.items():
        assert_close(sum(part.watched[key] for part in parts), value, rtol=EXACT, atol=EXACT)


def test_what_is_watched():
    score = torch.tensor([1.0, 0.5, -2.0, 3.0, 0.25, 0.25])
    got = reward.bradley_terry(score, margin_P=torch.ones(3)).watched
    want = {"chosen": -0.75, "rejected": 3.75, "margin": -4.5, "right": 1.5}
    assert {key: float(value) for key, value in got.items()} == pytest.approx(want)


@pytest.mark.parametrize("way", ["trl", "vlm_rlaif"])
def test_from_tokens(way):
    """One token an answer is scored; the second pair lacks an answer, the third has no weight."""
    answer = torch.tensor([0, 0, 1, 2, 4, 5, 5, 6, 6, 6, 7])
    weight = torch.tensor([0, 2.0, 2, 1, 0, 0, 0, 0, 0.5, 0, 0.5]).double()
    scalar = normal(0, len(answer))
    margin = normal(1, len(answer)).detach()
    at = [1, 2, 8, 10]
    sign = sign_of(way, scalar)
    got = reward.bradley_terry_of_tokens(scalar, margin, weight, answer, centring=0.1, way=way, sign=sign)
    want = reward.bradley_terry(
        scalar[at], margin_P=margin[[1, 8]], weight_P=weight[[1, 8]], centring=0.1, way=way, sign=sign
    )
    assert_close(got.total, want.total, rtol=EXACT, atol=EXACT)
    assert int(got.count) == 2
    assert_close(dict(got.watched), dict(want.watched), rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x.total, scalar)[0] for x in (got, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)


def test_no_whole_pair_is_zero():
    scalar = normal(0, 2)
    got = reward.bradley_terry_of_tokens(scalar, scalar.detach(), torch.ones(2).double(), torch.tensor([0, 3]))
    got.total.backward()
    assert got.total.item() == int(got.count) == 0
    assert (scalar.grad == 0).all()


def test_refusals():
    with pytest.raises(ValueError, match="in pairs"):
        reward.bradley_terry(torch.zeros(3))
    for way, sign in (("trl", 1.0), ("vlm_rlaif", None)):
        with pytest.raises(ValueError, match="sign belongs to"):
            reward.bradley_terry(torch.zeros(2), centring=0.1, way=way, sign=sign)
    with pytest.raises(ValueError, match="one score"):
        reward.bradley_terry_of_tokens(torch.zeros(3), torch.zeros(3), torch.ones(3), torch.tensor([0, 0, 1]))
