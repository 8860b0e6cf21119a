"""What goes out to all ranks comes back summed."""

import pytest
import torch
from tests.ranks import run

from longtake.parallel.axis import ALONE
from longtake.parallel.exchange import gathered, swapped


def learned(world, dtype, known):
    """A rank's rows weigh as much as its place says, on every rank; its own gradient is all ranks' sum."""
    counts = [2, 1, 3][: world.size]
    x = torch.full((counts[world.index], 2), 1.0 + world.index, dtype=dtype, requires_grad=True)
    every = torch.cat([torch.full((count, 2), 1.0 + rank, dtype=dtype) for rank, count in enumerate(counts)])
    got = gathered(x, counts, world, every if known else None)
    assert torch.equal(got, every)
    weight = (256.0, 1.0, 1.0)[world.index]
    (got * weight).sum().backward()
    return x.grad, dict(world.traffic.calls)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_gradients_of_rows_are_summed_in_float32(dtype, known) -> None:
    """256 + 1 is 256 in bfloat16; what is known is not sent again."""
    for grad, calls in run(3, learned, dtype, known):
        assert grad.dtype == dtype
        assert grad.unique().tolist() == [258.0]
        assert calls == ({"home": 1} if known else {"rows": 1, "home": 1})


def halves(world):
    found = [torch.full((3,), (256.0, 1.0, 1.0)[world.index], dtype=torch.bfloat16)]
    world.add_(found)
    return found[0]


def test_sums_of_halves_are_of_float32() -> None:
    for found in run(3, halves):
        assert found.dtype == torch.bfloat16
        assert found.tolist() == [258.0] * 3


def exchanged(world):
    give = [1 + world.index + rank for rank in range(world.size)]
    take = [1 + rank + world.index for rank in range(world.size)]
    x = torch.arange(sum(give), dtype=torch.float64).add(100 * world.index).requires_grad_()
    found = swapped(x, give, take, world)
    (found * (1.0 + world.index)).sum().backward()
    return found.tolist(), x.grad.tolist()


def test_what_was_swapped_brings_its_gradient_back() -> None:
    for rank, (found, grad) in enumerate(run(3, exchanged)):
        starts = [sum(1 + other + to for to in range(rank)) for other in range(3)]
        assert found == [100.0 * o + starts[o] + n for o in range(3) for n in range(1 + o + rank)]
        assert grad == [1.0 + to for to in range(3) for _ in range(1 + rank + to)]


def test_one_rank_has_it_all() -> None:
    x = torch.ones(3, 2)
    assert gathered(x, [3], ALONE) is x
    assert swapped(x, [3], [3], ALONE) is x
