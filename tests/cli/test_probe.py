"""A probe measures every rate of the core on a slice, and its lines are those through its points."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override

from longtake.cli.probe import CPU, Where, _grown, _line, probe, slice_of
from longtake.maths.cost import Both
from longtake.maths.devices import cpu
from longtake.maths.shapes import Shape

SHAPE = Shape(layers=6, width=32, heads=4, kv_heads=2, head_width=8, inner=48, vocab=100, tied=True)


class Work(TorchDispatchMode):
    """A clock that every operation moves, by a little and by what it reads and writes: the same on any machine."""

    seconds = 0.0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.seconds += 1e-6 + 1e-9 * sum(x.numel() for x in tree_leaves((args, made)) if isinstance(x, torch.Tensor))
        return made


@pytest.mark.parametrize("normed", [False, True])
def test_every_rate_of_the_core_is_measured(normed: bool) -> None:
    from dataclasses import replace

    before = cpu(2, 1e10).rates(4)
    with Work() as work:
        found = probe(replace(SHAPE, normed=normed), before, Where(clock=lambda: work.seconds), seconds=0.0)
    for name in ("linear", "attend", "head", "layer"):
        for number in (getattr(found, name).forward, getattr(found, name).backward):
            assert math.isfinite(number)
            assert number >= 0
        assert getattr(found, name) != getattr(before, name)
    for name in ("decode", "encode", "memory", "learn", "step"):
        assert 0 < getattr(found, name) < math.inf
        assert getattr(found, name) != getattr(before, name)
    assert (found.disk, found.decoded, found.host) == (before.disk, before.decoded, before.host)


def test_a_slice_is_as_large_as_memory_allows() -> None:
    assert len(slice_of(SHAPE, CPU).layers) == 4
    model = slice_of(SHAPE, Where(dtype=torch.bfloat16))
    assert model.text.dtype == model.lm_head.weight.dtype == torch.bfloat16
    assert sum(p.numel() for p in model.layers[0].parameters() if p.dim() == 2) == SHAPE.layer


def test_a_probe_leaves_the_generator_alone() -> None:
    state = torch.get_rng_state()
    slice_of(SHAPE, CPU)
    assert torch.equal(torch.get_rng_state(), state)


def test_lines_go_through_first_and_last_point_and_never_fall() -> None:
    rising = _line([(10, Both(3.0, 7.0)), (20, Both(9.0, 9.0)), (30, Both(5.0, 17.0))])
    assert rising.each == Both(pytest.approx(0.1), pytest.approx(0.5))
    assert rising.fixed == Both(pytest.approx(2.0), pytest.approx(2.0))
    falling = _line([(10, Both(3.0, 3.0)), (30, Both(1.0, 3.0))])
    assert falling.each.forward > 0
    assert falling.fixed.forward >= 0


def test_lengths_grow_while_there_is_time() -> None:
    def measure(tokens: int) -> Both:
        return Both(1e-3 * tokens, 2e-3 * tokens)

    few, many = (_grown(measure, 16, seconds) for seconds in (0.1, 20.0))
    assert [point.tokens for point in few] == [16, 64]
    assert [point.tokens for point in many] == [16, 64, 256, 1024]


def test_a_clock_may_be_chosen() -> None:
    ticks = itertools.count()
    assert Where(clock=lambda: float(next(ticks))).timed(lambda: None) == 1.0
