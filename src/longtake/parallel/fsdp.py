"""Weights, gradients and optimizer state in shares, one a rank (FSDP2): each is whole only while it is at work.

A decoder layer is a unit of its own, called in any order and from any side. All else that learns (embeddings, norm,
head, a tower in training) is one unit, whole from the first row of a step to its last: who calls it, and how often, is
then nobody's business. So ranks must agree on passes through the layers alone, and these speak the same way whatever a
rank does in them:

    forward    gathers every layer, first to last
    backward   gathers every layer, last to first, and sums its gradient over the ranks

A rank that has nothing to do takes part by `share_forward` and `share_backward`. Gradients are sums: nothing is
divided. All of it does nothing to a model that is not shared out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from longtake.parallel.axis import Axis

Unit = Any  # a module of which fully_shard made an FSDPModule: both at once
T = TypeVar("T", bound=Tensor)


class _Parent(nn.Module):
    """Modules as one. What goes through comes out; on its way back FSDP looks after every unit inside."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.inside = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Itself, in a graph."""
        return x * 1


@dataclass(slots=True)
class _Shares:
    """A model that is shared out."""

    axis: Axis
    root: Unit  # of all units: they use one another's buffers
    rest: Unit  # all that learns beside the layers
    layers: list[Unit]
    weights: list[nn.Parameter]  # all that learn, as shares: those of `rest`, then the layers'
    touched: set[int] = field(default_factory=set)  # which of them got a gradient on this rank
    learns: bool = False

    def grasp(self, unit: Unit) -> None:
        """From now on the unit is whole, and its gradients stay here."""
        unit.unshard()
        _alone(unit, True)

    def release(self, unit: Unit) -> None:
        """Sums its gradients over the ranks (zeros where there are none); its weights are shares again."""
        for p in _own(unit, self.rest, self.layers):
            if p.grad is None:
                p.grad = p.new_zeros(()).expand_as(p)
        self._end()  # first all of them in the dtype of the sum
        _alone(unit, False)
        self._end()

    def _end(self) -> None:
        """The end of a backward, when FSDP does with the gradients of every unit what it is told to."""
        with torch.enable_grad():
            self.root(torch.zeros((), device=self.weights[0].device, requires_grad=True)).backward()

    def pass_by(self, *, back: bool) -> None:
        for layer in reversed(self.layers) if back else self.layers:
            if back:
                self.grasp(layer)
                self.release(layer)
            else:
                layer.unshard()
                layer.reshard()


def shard(modules: Sequence[nn.Module], layers: nn.ModuleList, axis: Axis) -> None:
    """Shares out what learns of `modules`, decoder `layers` among it; what is frozen stays whole on every rank.

    To be called by all ranks with the same weights, on the device where they shall be. An optimizer takes the
    parameters that are there afterwards: DTensors.
    """
    frozen = {p for module in modules for p in module.parameters() if not p.requires_grad}
    weight = next(layers.parameters())
    group = axis.group or dist.group.WORLD
    assert group is not None
    mesh = DeviceMesh.from_group(group, weight.device.type)
    policy = MixedPrecisionPolicy(reduce_dtype=torch.promote_types(weight.dtype, torch.float32))
    rest: Unit = _Parent(modules)
    root: Unit = _Parent([rest])
    units: list[Unit] = list(layers)
    for unit in (*units, rest, root):
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=policy, ignored_params=frozen)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_modules_to_backward_prefetch([unit])  # none: after a layer anything may come
    root(torch.zeros(()))  # the first call says who is root
    made = _Shares(axis, root, rest, units, [p for unit in (rest, *units) for p in _own(unit, rest, units)])
    for layer in units:
        layer.shares = made
    numbers = count()

    def note(number: int) -> Callable[[Tensor], None]:
        return lambda _: made.touched.add(number)

    for unit in (rest, *units):
        unit.unshard()
        for p in _own(unit, rest, units):
            p.register_post_accumulate_grad_hook(note(next(numbers)))
        unit.reshard()


def _own(unit: Unit, rest: Unit, layers: Sequence[Unit]) -> list[nn.Parameter]:
    """What learns in it; in `rest`, but not in the layers."""
    inside = {p for layer in layers for p in layer.parameters()} if unit is rest else set()
    return [p for p in unit.parameters() if p.requires_grad and p not in inside]


@contextmanager
def held(layer: nn.Module) -> Iterator[None]:
    """A layer is whole, whatever is done with it and its weights; then its gradients are summed over the ranks."""
    shares = _of(layer)
    if shares is None:
        yield
        return
    shares.grasp(layer)
    yield
    shares.release(layer)


@contextmanager
def whole(layers: nn.ModuleList) -> Iterator[None]:
    """All weights are whole on every rank, and calls speak to nobody: for decoding. Nothing learns meanwhile."""
    shares = _of(layers[0])
    if shares is None:
        yield
        return
    for unit in (*shares.layers, shares.rest):
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for layer in shares.layers:
            layer.set_reshard_after_forward(True, recurse=False)
            layer.reshard()
        if not shares.learns:
            shares.rest.reshard()


@contextmanager
def learning(layers: nn.ModuleList) -> Iterator[None]:
    """Around the rows that a step learns from: what lies beside the layers is whole; last, its gradients are summed."""
    shares = _of(layers[0])
    if shares is None:
        yield
        return
    before = [p.grad for p in shares.weights]
    shares.touched.clear()
    shares.learns = True
    shares.grasp(shares.rest)
    yield
    shares.release(shares.rest)
    shares.learns = False
    touched = set[int]().union(*shares.axis.gather(shares.touched))
    for number, p in enumerate(shares.weights):
        if number not in touched:  # zeros would let AdamW move it
            p.grad = before[number]


def share_forward(layers: nn.ModuleList) -> None:
    """Takes part in the other ranks' forward through the layers without one of its own."""
    if (shares := _of(layers[0])) is not None:
        shares.pass_by(back=False)


def share_backward(layers: nn.ModuleList) -> None:
    """Takes part in the other ranks' backward through the layers without one of its own."""
    if (shares := _of(layers[0])) is not None:
        shares.pass_by(back=True)


@dataclass(frozen=True, slots=True)
class Turns:
    """What some rank does with a row, so that all take part in it; nothing where no weights are in shares.

    Example: turns = Turns.agreed(model.layers, world, prefill=True, answers=3, finish=True).
    """

    layers: nn.ModuleList
    prefills: bool
    most: int  # forwards and backwards of answers
    finishes: bool

    @classmethod
    def agreed(cls, layers: nn.ModuleList, world: Axis, prefill: bool, answers: int, finish: bool) -> Turns:
        """Of what each rank will do: a forward of its prefix, so many runs of answers, a backward of the prefix."""
        if _of(layers[0]) is None:
            return cls(layers, False, 0, False)
        every = world.gather((prefill, answers, finish))
        return cls(layers, *(max(each) for each in zip(*every, strict=True)))

    def prefill(self) -> None:
        """For a rank without one."""
        if self.prefills:
            share_forward(self.layers)

    def answers(self, done: int) -> None:
        """For a rank that was through with its answers after `done` runs."""
        for _ in range(done, self.most):
            self.pass_by(self.layers)

    def finish(self) -> None:
        """For a rank whose prefix has no backward."""
        if self.finishes:
            share_backward(self.layers)

    @staticmethod
    def pass_by(layers: nn.ModuleList) -> None:
        """For a run of answers that calls no layer, or none at all."""
        share_forward(layers)
        share_backward(layers)


def in_parts(layers: nn.ModuleList) -> bool:
    """Whether the weights are in shares."""
    return _of(layers[0]) is not None


def most_rows(layers: nn.ModuleList, world: Axis, count: int) -> int:
    """The most rows of any rank where weights are in shares; else this rank's own."""
    return max(world.gather(count)) if in_parts(layers) else count


def in_shares(p: Tensor) -> bool:
    """Whether this rank has a share of it alone, whose gradient is a sum over the ranks already."""
    return isinstance(p, DTensor)


def kinds(tensors: Sequence[T]) -> list[list[T]]:
    """Those in shares and those that are whole, each by itself: torch's foreach takes no mixture."""
    found: dict[bool, list[T]] = {}
    for x in tensors:
        found.setdefault(in_shares(x), []).append(x)
    return list(found.values())


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of all of them, over all ranks."""
    parts = [nn.utils.get_total_norm(own) for own in kinds(gradients)]
    parts = [x.full_tensor() if isinstance(x, DTensor) else x for x in parts]
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))


def clip_(params: Sequence[nn.Parameter], most: float) -> float:
    """`nn.utils.clip_grad_norm_` where some are in shares: scales all gradients, returns their norm before."""
    learned = [p for p in params if p.grad is not None]
    norm = norm_of([p.grad for p in learned if p.grad is not None])
    for own in kinds(learned):
        nn.utils.clip_grads_with_norm_(own, most, norm)
    return float(norm)


def _alone(unit: Unit, alone: bool) -> None:
    unit.set_requires_gradient_sync(not alone, recurse=False)
    unit.set_reshard_after_backward(not alone, recurse=False)
    unit.set_reshard_after_forward(not alone, recurse=False)


def _of(layer: nn.Module) -> _Shares | None:
    if not isinstance(layer, FSDPModule):
        return None
    unit: Unit = layer
    found: _Shares = unit.shares
    return found
