"""Ranks in a test: forked processes that meet over gloo, one thread each."""

from __future__ import annotations

import multiprocessing
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import torch
import torch.distributed as dist

from longtake.parallel.axis import PATIENCE
from longtake.parallel.ranks import here

LIMIT = 300  # seconds in which every rank must be through


def run(size: int, body: Callable[..., Any], *args: Any) -> list[Any]:
    """[size] what `body(world, *args)` returned on every rank. The first failure is raised, with its own traceback.

    Forked, so that a test's own objects and a mutant's modules are there; what comes back must be picklable.
    """
    context = multiprocessing.get_context("fork")
    multiprocessing.current_process().daemon = False  # a mutant's is, and could have no children
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(size)]
        forks = [
            context.Process(target=_rank, args=(rank, size, f"{folder}/meet", pipes[rank][1], body, args), daemon=True)
            for rank in range(size)
        ]
        for fork in forks:
            fork.start()
        for _, send in pipes:
            send.close()
        try:
            return _collected([receive for receive, _ in pipes])
        finally:
            for fork in forks:
                fork.kill()
                fork.join()


def _collected(ends: list[Connection]) -> list[Any]:
    found: dict[int, Any] = {}
    stop = time.monotonic() + LIMIT
    while len(found) < len(ends):
        ready = wait([end for rank, end in enumerate(ends) if rank not in found], max(0.0, stop - time.monotonic()))
        assert ready, (
            f"ranks {sorted(set(range(len(ends))) - set(found))} are not through after {LIMIT} s: do they hang?"
        )
        for end in ready:
            rank = ends.index(end)
            try:
                good, thing = pickle.loads(end.recv_bytes())
            except EOFError:
                raise AssertionError(f"rank {rank} died") from None
            if not good:
                raise AssertionError(f"rank {rank}:\n{thing}")
            found[rank] = thing
    return [found[rank] for rank in range(len(ends))]


def _rank(rank: int, size: int, meet: str, send: Connection, body: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)  # and so no OpenMP pool, which would not survive the fork
    try:
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size, timeout=PATIENCE)
        said = True, body(here(), *args)
    except BaseException:
        said = False, traceback.format_exc()
    send.send_bytes(pickle.dumps(said))
    send.close()
    time.sleep(LIMIT)  # until the parent has heard everybody: a rank that leaves fails the others
