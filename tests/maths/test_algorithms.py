"""Each algorithm of the table, end to end, against its paper's objective written out whole."""

import pytest
import torch
from tests.maths.ragged import normal
from tests.plain import algorithms as plain
from torch.testing import assert_close

from longtake.maths.advantage import equal_groups, token_weights
from longtake.maths.algorithms import ALGORITHMS

EXACT = 1e-12
MAX_TOKENS = 8
REWARDS = [[1.0, 0.0, 0.1, 1.1], [1.1, 1.1, 1.1, 1.1], [0.0, 0.0, 1.0, 0.0]]
LENGTHS = [[3, 1, 7, 2], [4, 2, 5, 1], [1, 8, 2, 6]]


def tokens():
    """new[n][g] and old[n][g]; some answers lie inside GSPO's narrow bounds, some outside CISPO's wide one."""
    new, old = [], []
    for n, group in enumerate(LENGTHS):
        new.append([(normal(10 * n + g, length) - 2).detach().requires_grad_() for g, length in enumerate(group)])
        spread = [1.5, 2e-4, 0.3, 1e-4]
        old.append([(p + spread[g] * normal(g, len(p))).detach() for g, p in enumerate(new[-1])])
    return new, old


def through_the_table(name, new, old):
    """As a recipe does it: advantages, weights, one flat loss, one division."""
    algorithm = ALGORITHMS[name]
    reward_NG = torch.tensor(REWARDS, dtype=torch.float64)
    length_NG = torch.tensor(LENGTHS)
    advantage_NG = algorithm.advantage(reward_NG)
    kept = ~equal_groups(reward_NG) if algorithm.drop_equal else torch.ones(3, dtype=torch.bool)
    weights = token_weights(advantage_NG[kept], length_NG[kept], algorithm.normaliser, max_tokens=MAX_TOKENS)
    groups = kept.nonzero()[:, 0].tolist()
    logprob_R, old_R = (torch.cat([x for n in groups for x in side[n]]) for side in (new, old))
    answer_R = torch.repeat_interleave(torch.arange(4 * len(groups)), length_NG[kept].flatten())
    return algorithm.loss(logprob_R, old_R, weights.weight_NG.flatten()[answer_R], answer_R).total / weights.count


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_equals_the_papers_objective(name):
    new, old = tokens()
    got = through_the_table(name, new, old)
    want = getattr(plain, name)(REWARDS, new, old, MAX_TOKENS)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    leaves = [p for group in new for p in group]
    sides = [torch.autograd.grad(x, leaves, allow_unused=True, materialize_grads=True) for x in (got, want)]
    for a, b in zip(*sides, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)
    assert any((a != 0).any() for a in sides[0])


def test_the_table_is_frozen_and_knows_its_names():
    assert all(name == algorithm.name for name, algorithm in ALGORITHMS.items())
    assert {"grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_pp", "longtake"} <= set(ALGORITHMS)
    with pytest.raises(TypeError):
        ALGORITHMS["new"] = ALGORITHMS["grpo"]
