"""The ranks of a run: all of them, in two directions. Data: who has which questions. Sequence: who has which tokens.

Launched by torchrun, which says who is who in the environment; without it one rank is the whole world.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from longtake.errors import UserError
from longtake.parallel.axis import ALONE, PATIENCE, Axis, Traffic

How = Literal["gather", "ulysses"]


@dataclass(frozen=True, slots=True)
class Ranks:
    """Every rank's place in the world. Neighbours in rank are neighbours in a sequence.

    Example: Ranks() is one process; of four ranks in two sequences, rank 3 is data.index 1 and sequence.index 1.
    """

    world: Axis = ALONE
    data: Axis = ALONE
    sequence: Axis = ALONE
    how: How = "gather"  # attention over a sequence, see runtime.shared


ONE = Ranks()


def meet() -> Store:
    """What torchrun keeps for its ranks: words that outlive who said them."""
    found, _, _ = next(iter(rendezvous("env://")))
    return found


def join(store: Store, rank: int, size: int) -> None:
    """Meets the other ranks that torchrun started: NCCL between GPUs, gloo between processors.

    Each rank of a machine takes a GPU of its own where there are any. Raises UserError where there are too few.
    """
    backend = "gloo"
    if torch.cuda.is_available():
        near, gpus = dist.get_node_local_rank(), torch.cuda.device_count()
        if near >= gpus:
            why, fix = f"it is number {near + 1} on a machine with {gpus}", f"torchrun --nproc-per-node {gpus} …"
            raise UserError(f"rank {rank} has no GPU of its own", why=why, fix=fix)
        torch.cuda.set_device(near)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=PrefixStore("ranks", store), rank=rank, world_size=size, timeout=PATIENCE)


def leave() -> None:
    """The end of what `join` began; harmless without it."""
    if dist.is_initialized():
        dist.destroy_process_group()


def here() -> Axis:
    """All ranks there are."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    return Axis(dist.get_rank(), dist.get_world_size(), None, Traffic())


def mesh(world: Axis, degree: int, how: How = "gather") -> Ranks:
    """The world as sequences of `degree` ranks each, to be called by all ranks with the same degree.

    Raises ValueError unless the degree divides the number of ranks.
    """
    if world.size % degree:
        raise ValueError(f"{world.size} ranks cannot be sequences of {degree} each")
    sequences = [list(range(start, start + degree)) for start in range(0, world.size, degree)]
    replicas = [list(range(place, world.size, degree)) for place in range(degree)]
    return Ranks(world, _axis(world, replicas), _axis(world, sequences), how)


def _axis(world: Axis, groups: list[list[int]]) -> Axis:
    """The one of these groups that this rank is in."""
    (own,) = [ranks for ranks in groups if world.index in ranks]
    if len(own) == 1:
        return ALONE
    if len(own) == world.size:
        return world
    made = [dist.new_group(ranks, timeout=PATIENCE) for ranks in groups]  # every rank makes every group
    return Axis(own.index(world.index), len(own), made[groups.index(own)], Traffic())
