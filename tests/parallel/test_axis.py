"""What ranks say to one another."""

import pytest
import torch
from tests.ranks import run

from longtake.parallel.axis import ALONE
from longtake.parallel.ranks import Ranks, mesh

SIZES = [1, 2, 3, 4]


def counts_of(size):
    return [(5 * rank + 3) % 7 for rank in range(size)]


def own_rows(rank, count):
    return torch.arange(count * 2, dtype=torch.float64).view(count, 2) + 100 * rank


def gathered(world, _):
    counts = counts_of(world.size)
    return world.rows(own_rows(world.index, counts[world.index]), counts)


@pytest.mark.parametrize("size", SIZES)
def test_rows_of_all_ranks_behind_one_another(size) -> None:
    want = torch.cat([own_rows(rank, count) for rank, count in enumerate(counts_of(size))])
    for found in run(size, gathered, None):
        assert torch.equal(found, want)


def brought_home(world, _):
    counts = counts_of(world.size)
    given = torch.arange(sum(counts) * 2, dtype=torch.float64).view(-1, 2) * (world.index + 1)
    return world.home(given, counts)


@pytest.mark.parametrize("size", SIZES)
def test_home_is_each_ranks_rows_of_the_sum(size) -> None:
    counts = counts_of(size)
    total = torch.arange(sum(counts) * 2, dtype=torch.float64).view(-1, 2) * sum(range(1, size + 1))
    for found, want in zip(run(size, brought_home, None), total.split(counts), strict=True):
        assert torch.equal(found, want)


def swapped(world, _):
    give = [(world.index + rank) % 3 for rank in range(world.size)]
    mine = torch.cat([torch.full((count, 1), 10.0 * world.index + rank) for rank, count in enumerate(give)])
    return world.swap(mine, give, give)  # as many the other way: the sum is symmetric


@pytest.mark.parametrize("size", SIZES)
def test_swap_sends_each_rank_what_is_its(size) -> None:
    for rank, found in enumerate(run(size, swapped, None)):
        want = [10.0 * other + rank for other in range(size) for _ in range((rank + other) % 3)]
        assert found[:, 0].tolist() == want


def summed(world, _):
    tensors = [torch.full((3,), 1.0 + world.index), torch.full((2, 2), 2.0, dtype=torch.float64)]
    world.add_(tensors)
    said = world.gather(f"rank {world.index}"), world.any(world.index == 1), world.first(world.index + 7)
    return tensors, said, world.traffic


@pytest.mark.parametrize("size", SIZES)
def test_sums_and_words(size) -> None:
    for tensors, said, traffic in run(size, summed, None):
        assert tensors[0].tolist() == [sum(range(1, size + 1))] * 3
        assert tensors[1].tolist() == [[2.0 * size] * 2] * 2
        assert said == ([f"rank {rank}" for rank in range(size)], size > 1, 7)
        assert traffic.bytes == ({"sum": 3 * 4 + 4 * 8} if size > 1 else {})
        assert traffic.calls == ({"sum": 2} if size > 1 else {})  # two dtypes


def counted(world, _):
    world.rows(own_rows(0, 3 - (world.index == 1)), [3, 2])
    return world.traffic


def test_padding_is_counted() -> None:
    first, second = run(2, counted, None)
    assert (first.bytes["rows"], first.padding) == (3 * 16, 0)
    assert (second.bytes["rows"], second.padding) == (3 * 16, 16)


def placed(world, degree):
    ranks = mesh(world, degree)
    places = [(axis.index, axis.size) for axis in (ranks.world, ranks.data, ranks.sequence)]
    return places, ranks.data.gather(world.index), ranks.sequence.gather(world.index)


def test_a_mesh_has_neighbours_in_a_sequence() -> None:
    found = run(4, placed, 2)
    assert [own for own, _, _ in found] == [
        [(0, 4), (0, 2), (0, 2)],
        [(1, 4), (0, 2), (1, 2)],
        [(2, 4), (1, 2), (0, 2)],
        [(3, 4), (1, 2), (1, 2)],
    ]
    assert [data for _, data, _ in found] == [[0, 2], [1, 3], [0, 2], [1, 3]]
    assert [sequence for _, _, sequence in found] == [[0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_degree_divides_the_world() -> None:
    with pytest.raises(ValueError, match="1 ranks cannot be sequences of 2"):
        mesh(ALONE, 2)
    assert mesh(ALONE, 1) == Ranks()


def fails(world, _):
    if world.index == 1:
        raise RuntimeError("no")
    world.wait()


def test_a_failure_of_one_is_raised() -> None:
    with pytest.raises(AssertionError, match=r"rank 1:(.|\n)*RuntimeError: no"):
        run(2, fails, None)
