"""Answers of a row dealt out over ranks: each is somebody's once, pairs stay together, all have about as much."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import quick

from longtake.maths.pack import answer_rows, pack
from longtake.records import Prompt

LENGTHS = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=5), min_size=1, max_size=4)


def row_of(lengths):
    """Every answer's tokens are its number among all."""
    prompts = [
        Prompt(str(n), tuple(range(7, 7 + n + 1)), (), torch.arange(n + 1).expand(3, -1), None, None)
        for n in range(len(lengths))
    ]
    number = iter(range(10**6))
    ids = [[(next(number),) * length for length in own] for own in lengths]
    return pack(prompts, ids, [[[1.0] * len(one) for one in own] for own in ids])


def dealt(row, most, together, ranks):
    """By rank, its runs: numbers of their answers, in order."""
    return [
        [part.target_R.unique_consecutive().tolist() for part in answer_rows(row, most, together, (rank, ranks))]
        for rank in range(ranks)
    ]


@quick
@given(LENGTHS, st.integers(1, 5), st.integers(1, 20))
def test_every_answer_is_somebodys_once(lengths, ranks, most) -> None:
    row = row_of(lengths)
    found = dealt(row, most, 1, ranks)
    assert sorted(n for own in found for run in own for n in run) == list(range(sum(map(len, lengths))))
    assert dealt(row, most, 1, 1) == [[part.target_R.unique_consecutive().tolist() for part in answer_rows(row, most)]]


@quick
@given(LENGTHS, st.integers(2, 5))
def test_ranks_have_about_as_much(lengths, ranks) -> None:
    """No rank is fed more than another by more than one answer."""
    flat = [length for own in lengths for length in own]
    found = dealt(row_of(lengths), 10**6, 1, ranks)
    fed = [sum(flat[n] - 1 for run in own for n in run) for own in found]
    assert max(fed) - min(fed) <= max(flat) - 1


def test_the_longest_are_dealt_first() -> None:
    found = dealt(row_of([[2, 2, 2, 2, 2, 2, 7]]), 100, 1, 2)
    assert found == [[[6]], [[0, 1, 2, 3, 4, 5]]]


def test_answers_that_are_not_fed_are_dealt_in_turn() -> None:
    assert dealt(row_of([[1, 1, 1], [1]]), 100, 1, 2) == [[[0, 2]], [[1, 3]]]


@quick
@given(st.lists(st.integers(1, 9), min_size=2, max_size=8).filter(lambda own: len(own) % 2 == 0), st.integers(1, 4))
def test_pairs_stay_together(lengths, ranks) -> None:
    for own in dealt(row_of([lengths]), 3, 2, ranks):
        for run in own:
            assert run[0::2] == [n - 1 for n in run[1::2]]
            assert all(n % 2 == 0 for n in run[0::2])
