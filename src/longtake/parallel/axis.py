"""Ranks that share something, and all that they say to one another.

Tensors travel whole rows along their first dimension, as many from each rank as it has: shorter parts are padded by the
difference alone, and only on the way. Nothing here knows what the rows mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
Thing = TypeVar("Thing")
PATIENCE = timedelta(days=20)  # of a call for slow ranks; whether they are alive is parallel.watch's business
BUCKET = 2**26  # numbers that are summed in one call


@dataclass(slots=True)
class Traffic:
    """What this rank sent, for `bench/ranks` and the tests. Example: axis.traffic.bytes["rows"]."""

    calls: dict[str, int] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)  # as given by this rank, padding included
    padding: int = 0  # bytes of these that were padding

    def add(self, name: str, size: int, padding: int = 0) -> None:
        """Counts one call."""
        self.calls[name] = self.calls.get(name, 0) + 1
        self.bytes[name] = self.bytes.get(name, 0) + size
        self.padding += padding


@dataclass(frozen=True, slots=True)
class Axis:
    """Some ranks in order, this one among them. Every method is to be called by all of them, in the same order.

    Example: ALONE.gather("x") == ["x"]; Axis(1, 4, group).rows(x, [3, 3, 3, 2]).
    """

    index: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None  # None = all ranks there are
    traffic: Traffic = field(default_factory=Traffic, compare=False)

    @property
    def leads(self) -> bool:
        """Whether this is the first of them."""
        return self.index == 0

    def gather(self, thing: T) -> list[T]:
        """[size] what every rank gave, any picklable thing."""
        if self.size == 1:
            return [thing]
        found: list[T | None] = [None] * self.size
        dist.all_gather_object(found, thing, group=self.group)
        return found  # type: ignore[return-value]

    def first(self, thing: T) -> T:
        """What the first rank gave."""
        return self.gather(thing if self.leads else None)[0]  # type: ignore[return-value]

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank."""
        return any(self.gather(here))

    def deal(self, things: Sequence[Thing], work: Callable[[Thing], T]) -> list[T]:
        """[things] what `work` made of each: every rank does some, all get all, in order."""
        return self.woven([work(thing) for thing in things[self.index :: self.size]])

    def woven(self, mine: Sequence[T]) -> list[T]:
        """All results, in order, of things that were dealt out in turn: rank r had the r-th, the r + size-th, …"""
        if self.size == 1:
            return list(mine)
        every = self.gather(list(mine))
        return [every[place % self.size][place // self.size] for place in range(sum(map(len, every)))]

    def wait(self) -> None:
        """Until all are here."""
        if self.size > 1:
            dist.barrier(group=self.group)

    def rows(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """[sum(counts), …]: every rank's rows behind one another; this one gives x [counts[index], …]."""
        if self.size == 1:
            return x
        most = max(counts)
        own = self._padded(x, most)
        every = own.new_empty((self.size * most, *x.shape[1:]))
        dist.all_gather_single(every, own, group=self.group)
        self._count("rows", own, x)
        if min(counts) == most:
            return every
        return torch.cat([part[:count] for part, count in zip(every.split(most), counts, strict=True)])

    def home(self, x: Tensor, counts: Sequence[int]) -> Tensor:
        """[counts[index], …]: this rank's rows of the sum over all ranks of x [sum(counts), …]; the twin of `rows`."""
        if self.size == 1:
            return x
        most = max(counts)
        own = x.contiguous()
        if min(counts) != most:
            own = torch.cat([self._padded(part, most) for part in x.split(list(counts))])
        mine = own.new_empty((most, *x.shape[1:]))
        dist.reduce_scatter_single(mine, own, group=self.group)
        self._count("home", own, x)
        return mine[: counts[self.index]]

    def swap(self, x: Tensor, give: Sequence[int], take: Sequence[int]) -> Tensor:
        """[sum(take), …]: give[r] rows go to rank r, take[r] come from it, in the order of ranks."""
        if self.size == 1:
            return x
        found = x.new_empty((sum(take), *x.shape[1:]))
        dist.all_to_all_single(found, x.contiguous(), list(take), list(give), group=self.group)
        self._count("swap", x, x)
        return found

    def add_(self, tensors: Sequence[Tensor]) -> None:
        """Every tensor becomes its sum over the ranks, in float32 at least, the same bits on each."""
        if self.size == 1:
            return
        for run in _buckets(tensors):
            flat = torch.cat([x.reshape(-1) for x in run])
            flat = flat.to(torch.promote_types(flat.dtype, torch.float32))
            dist.all_reduce(flat, group=self.group)
            self._count("sum", flat, flat)
            for x, found in zip(run, flat.split([x.numel() for x in run]), strict=True):
                x.copy_(found.view_as(x))

    def _padded(self, x: Tensor, most: int) -> Tensor:
        if len(x) == most:
            return x.contiguous()
        return torch.cat([x, x.new_zeros((most - len(x), *x.shape[1:]))])

    def _count(self, name: str, sent: Tensor, real: Tensor) -> None:
        self.traffic.add(name, sent.nbytes, sent.nbytes - real.nbytes)


ALONE = Axis()


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one dtype and device, at most BUCKET numbers together (a larger one stands alone)."""
    runs: list[list[Tensor]] = []
    size = 0
    for x in tensors:
        same = runs and (runs[-1][0].dtype, runs[-1][0].device) == (x.dtype, x.device)
        if not same or size + x.numel() > BUCKET:
            runs.append([])
            size = 0
        runs[-1].append(x)
        size += x.numel()
    return runs
