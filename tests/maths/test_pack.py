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
from longtake.maths.pack import answer_rows, pack, stem
from longtake.records import Layout, Prompt

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


def on_film(name, ids):
    """A prompt whose third and fourth token are those of a film."""
    return Prompt(name, tuple(ids), ((2, 4),), torch.arange(len(ids)).repeat(3, 1), "film", None)


def test_neighbours_on_a_film_share_what_they_begin_with():
    """All of the film or nothing of it."""
    none = [[], []]
    first, second = on_film("a", [1, 7, 9, 9, 4, 5]), on_film("b", [1, 7, 9, 9, 4, 6, 3])
    row = pack([first, second], none, none)
    assert row.layout == Layout(((5, ((1, ()), (2, ()))),))
    assert (row.ids_T.tolist(), row.features) == ([1, 7, 9, 9, 4, 5, 6, 3], ("film",))
    other = on_film("c", [1, 8, 9, 9, 4, 6])
    apart = pack([first, other], none, none)
    assert apart.layout == Layout(((6, ()), (6, ())))
    assert (apart.ids_T.tolist(), apart.features) == ([*first.ids, *other.ids], ("film", "film"))


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("most", [1, 4, 100])
def test_a_row_falls_apart_into_its_prefixes_and_runs_of_answers(most, lead):
    prompts = [on_film("a", [1, 7, 9, 9, 4, 5]), on_film("b", [1, 7, 9, 9, 4, 6, 3]), prompt("c", [2, 8, 6])]
    answers = [[[5, 6, 7], [8], []], [[4, 3]], [[9, 8, 7, 6], [5, 4]]]
    row = pack(prompts, answers, numbers(answers, 3), numbers(answers, 4), lead=lead, dtype=torch.float64)
    inner = [segment for segment in row.layout.segments if segment.inner]
    want = pack(prompts, [[], [], []], [[], [], []], lead=lead)
    alone = stem(row)
    assert alone.layout == want.layout
    for name in ("ids_T", "position_3T", "visual_T"):
        assert torch.equal(getattr(alone, name), getattr(want, name))
    ends = [segment.start + segment.length - 1 for segment in inner]
    spans = [(s.start, s.start + s.length) for s in row.layout.segments if not s.inner]
    parts = list(answer_rows(row, most))
    for name in ("target_R", "weight_R", "old_logprob_R", "answer_R"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(row, name))
    runs, predict = [], []
    for part in parts:
        own = [segment.length for segment in part.layout.segments if not segment.inner]
        mine, spans = spans[: len(own)], spans[len(own) :]
        assert own == [stop - start for start, stop in mine]
        assert part.layout.stem == row.layout.stem
        places = [place for start, stop in mine for place in range(start, stop)]
        assert torch.equal(part.ids_A, row.ids_T[places])
        assert torch.equal(part.position_3A, row.position_3T[:, places])
        table = [*ends, *places]
        assert max(part.source_R.tolist(), default=0) < len(table)
        predict += [table[source] for source in part.source_R.tolist()]
        runs.append(own)
    assert predict == row.predict_R.tolist()
    assert spans == []
    for run, following in zip(runs, [*runs[1:], None], strict=True):
        assert sum(run) <= most or len(run) == 1
        assert following is None or sum(run) + following[0] > most


@pytest.mark.parametrize("most", [1, 5, 8, 100])
def test_the_answers_of_a_pair_stay_together(most):
    """Runs of whole pairs, as long as the budget allows; their tokens are those of the row, in order."""
    prompts = [on_film("a", [1, 7, 9, 9, 4, 5]), on_film("b", [1, 7, 9, 9, 4, 6, 3]), prompt("c", [2, 8, 6])]
    answers = [[[5, 6, 7], [8]], [[4, 3], [4, 3, 2]], [[9, 8, 7, 6], [5, 4]]]
    row = pack(prompts, answers, numbers(answers, 3))
    parts = list(answer_rows(row, most, 2))
    assert torch.cat([part.target_R for part in parts]).equal(row.target_R)
    runs = [[segment.length for segment in part.layout.segments if not segment.inner] for part in parts]
    assert [part.answer_R.unique().tolist() for part in parts] == {
        1: [[0, 1], [2, 3], [4, 5]], 5: [[0, 1, 2, 3], [4, 5]], 8: [[0, 1, 2, 3], [4, 5]], 100: [[0, 1, 2, 3, 4, 5]],
    }[most]  # fmt: skip
    assert [len(part.ids_A) for part in parts] == [sum(run) for run in runs]
