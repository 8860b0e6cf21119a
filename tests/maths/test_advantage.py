"""Advantages against sums over lists."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import quick
from tests.plain import advantage as plain
from torch.testing import assert_close

from longtake.maths import advantage

EXACT = 1e-12
NAMES = (
    "group_mean",
    "group_normalised",
    "leave_one_out",
    "batch_normalised",
    "group_mean_batch_normalised",
)
rewards = st.integers(2, 5).flatmap(
    lambda answers: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.35, 1.0, 1.1]), min_size=answers, max_size=answers),
        min_size=1,
        max_size=5,
    )
)


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_twin(name):
    @quick
    @given(rewards)
    def check(groups):
        got = getattr(advantage, name)(tensor(groups))
        assert_close(got, tensor(getattr(plain, name)(groups)), rtol=EXACT, atol=EXACT)

    check()


@pytest.mark.parametrize("name", ["group_mean", "group_normalised", "leave_one_out"])
def test_equal_groups_get_exact_zeros(name):
    """The mean of seven times 0.1 is not 0.1 in floating point; divided by its own rounding error it would be ±1."""
    got = getattr(advantage, name)(torch.tensor([[0.1] * 7, [0.0, 1.0, 0.1, 0.0, 1.0, 0.1, 0.0]]))
    assert (got[0] == 0).all()
    assert (got[1] != 0).any()


def test_all_groups_equal_is_zeros_not_nan():
    for name in NAMES:
        assert (getattr(advantage, name)(torch.full((3, 4), 0.1)) == 0).all(), name


def test_equal_groups_are_found_by_question():
    assert advantage.equal_groups(tensor([[1, 1, 1], [0, 1, 1], [0.1, 0.1, 0.1]])).tolist() == [True, False, True]


def test_batch_deviation_ignores_dropped_groups():
    mixed = [[0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]
    alone = advantage.batch_scale(tensor(mixed))
    assert alone == pytest.approx(1 / tensor(mixed).std().item(), rel=EXACT)
    assert advantage.batch_scale(tensor([*mixed, [1.0] * 3])) == alone
    assert advantage.batch_scale(tensor([[1.0] * 3])) == 0


@pytest.mark.parametrize("name", ["group_normalised", "leave_one_out"])
def test_one_answer_has_no_group(name):
    with pytest.raises(ValueError, match="at least 2 answers a question, got 1"):
        getattr(advantage, name)(torch.zeros(3, 1))


def test_overlong_penalty_is_piecewise():
    lengths = list(range(40))
    got = advantage.overlong_penalty(torch.tensor([lengths]), max_tokens=30, margin=8)
    want = [plain.overlong_penalty(length, 30, 8) for length in lengths]
    assert_close(got[0], torch.tensor(want), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="margin must be in"):
        advantage.overlong_penalty(torch.tensor([[3]]), max_tokens=30, margin=31)


def test_token_weights_give_the_three_means():
    scores, lengths = tensor([[1.0, -2.0], [0.5, 0.0]]), torch.tensor([[3, 1], [2, 6]])

    def mean_of(normaliser):
        """The loss of a network for which every token's term is 1, times its weight."""
        weights = advantage.token_weights(scores, lengths, normaliser, max_tokens=10)
        return float((weights.weight_NG * lengths).sum()) / weights.count

    assert mean_of("batch tokens") == pytest.approx((3 * 1 + 1 * -2 + 2 * 0.5) / 12, rel=EXACT)
    assert mean_of("per answer mean") == pytest.approx((1 - 2 + 0.5 + 0) / 4, rel=EXACT)
    assert mean_of("constant") == pytest.approx((3 * 1 + 1 * -2 + 2 * 0.5) / 40, rel=EXACT)
