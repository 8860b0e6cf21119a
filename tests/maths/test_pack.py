"""Packed rows against one row per answer: the same tokens, places, neighbours, log-probabilities and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import normal, quick
from tests.plain import attention as plain_attention
from tests.plain import pack as plain
from tests.plain.network import Network
from torch.testing import assert_close

from longtake.maths.attention import Row
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import pack
from longtake.records import Prompt

EXACT = 1e-12


def prompt(name, ids, video=0):
    """`video` tokens after the first, on a 2 × 2 grid a time step, so that the largest position is not the last's."""
    place = torch.arange(len(ids)).repeat(3, 1)
    if video:
        place[:, 1 : 1 + video] = 1 + torch.stack(
            [torch.arange(video) * 3, torch.arange(video) // 2 % 2, torch.arange(video) % 2]
        )
    return Prompt(
        name, tuple(ids), ((1, 1 + video),) if video else (), place, f"handle-{name}" if video else None, None
    )


answer = st.lists(st.integers(0, 10), max_size=5)
groups = st.lists(
    st.tuples(
        st.lists(st.integers(0, 10), min_size=5, max_size=8), st.sampled_from([0, 2, 4]), st.lists(answer, max_size=4)
    ),
    min_size=1,
    max_size=3,
)


def numbers(answers, seed):
    flat = iter(normal(seed, sum(len(a) for group in answers for a in group)).tolist())
    return [[[next(flat) for _ in a] for a in group] for group in answers]


def test_columns():
    """Written out by hand."""
    first, second = prompt("a", [1, 9, 9, 4, 5], video=2), prompt("b", [7, 8])
    row = pack(
        [first, second],
        [[[2, 3, 0], [6]], [[4, 0], []]],
        [[[0.5, 0.5, 0.0], [2.0]], [[1.0, -1.0], []]],
        [[[-0.1, -0.2, -0.3], [-0.4]], [[-0.5, -0.6], []]],
    )
    assert row.layout.groups == ((5, (2, 0)), (2, (1, 0)))
    assert row.layout.total == len(row.ids_T)
    assert row.ids_T.tolist() == [1, 9, 9, 4, 5, 2, 3, 7, 8, 4]
    assert row.position_3T[0].tolist() == [0, 1, 4, 3, 4, 5, 6, 0, 1, 2]
    assert row.position_3T[2].tolist() == [0, 1, 2, 3, 4, 5, 6, 0, 1, 2]
    assert row.visual_T.nonzero()[:, 0].tolist() == [1, 2]
    assert row.features == ("handle-a", None)
    assert row.predict_R.tolist() == [4, 5, 6, 4, 8, 9]
    assert row.target_R.tolist() == [2, 3, 0, 6, 4, 0]
    assert row.answer_R.tolist() == [0, 0, 0, 1, 2, 2]
    assert_close(row.weight_R, torch.tensor([0.5, 0.5, 0.0, 2.0, 1.0, -1.0]))
    assert_close(row.old_logprob_R, torch.tensor([-0.1, -0.2, -0.3, -0.4, -0.5, -0.6]))


def test_without_old_logprobs_they_are_zeros():
    row = pack([prompt("a", [1])], [[[2, 3]]], [[[1.0, 1.0]]])
    assert row.old_logprob_R.tolist() == [0.0, 0.0]


def test_uneven_numbers_are_refused():
    with pytest.raises(ValueError, match="weights: an answer of 2 tokens has 1 numbers"):
        pack([prompt("a", [1])], [[[2, 3]]], [[[1.0]]])
    with pytest.raises(ValueError, match="old_logprobs: an answer of 2 tokens has 3 numbers"):
        pack([prompt("a", [1])], [[[2, 3]]], [[[1.0, 1.0]]], [[[0.0, 0.0, 0.0]]])
    with pytest.raises(ValueError, match="prompt a of 0 tokens"):
        pack([prompt("a", [])], [[[2]]], [[[1.0]]])


@quick
@given(groups)
def test_row_equals_one_row_per_answer(drawn):
    prompts = [prompt(str(i), ids, video) for i, (ids, video, _) in enumerate(drawn)]
    answers = [list(group) for _, _, group in drawn]
    weights = numbers(answers, 3)
    row = pack(prompts, answers, weights, dtype=torch.float64)
    network = Network(0)
    hidden = network.hidden(row.ids_T, row.position_3T, lambda q, k, v: Row(row.layout)(0, q, k, v, 0.5))
    got = score_tokens(network.head, hidden[row.predict_R], row.target_R, rows=4).logprob_R
    want = []
    for ids, position, predict, target in plain.rows(prompts, answers):
        place = torch.tensor(position).T
        h = network.hidden(
            torch.tensor(ids),
            place,
            lambda q, k, v: plain_attention.causal(*(x[0].transpose(0, 1) for x in (q, k, v)), 0.5).transpose(0, 1)[
                None
            ],
        )
        want += [
            network.head(h[at])[token] - network.head(h[at]).logsumexp(-1)
            for at, token in zip(predict, target, strict=True)
        ]
    flat = [x for group in weights for own in group for x in own]
    assert row.weight_R.tolist() == flat
    if not want:
        assert got.numel() == 0
        return
    want = torch.stack(want)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    leaves = list(network.weights.values())
    sides = [
        torch.autograd.grad((x * row.weight_R).sum(), leaves, allow_unused=True, materialize_grads=True)
        for x in (got, want)
    ]
    for a, b in zip(*sides, strict=True):
        assert_close(a, b, rtol=EXACT, atol=1e-11)
