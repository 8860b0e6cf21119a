"""A model in shares (parallel.fsdp) on disk: its weights as one whole, its optimizer state as every rank's part of it.

The parts are torch's distributed checkpoint in folder/optimizer: any number of ranks reads them, one process too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.tensor import DTensor, distribute_tensor

FOLDER = "optimizer"
STEPS = "step"  # of AdamW's state all but this, which lies on the host, is a number a weight


@contextmanager
def gathered(net: nn.Module) -> Iterator[None]:
    """On the first rank, weights that are in shares are whole meanwhile, in the host's memory, for whoever writes them.

    To be called by all ranks; they are gathered one at a time.
    """
    places = [
        (module, name, p)
        for module in net.modules()
        for name, p in module.named_parameters(recurse=False)
        if isinstance(p, DTensor)
    ]
    whole: dict[Tensor, nn.Parameter] = {}
    for p in dict.fromkeys(p for _, _, p in places):  # a tied one once
        found = p.full_tensor().detach()
        if dist.get_rank() == 0:
            whole[p] = nn.Parameter(found.cpu())
    try:
        for module, name, p in places:
            setattr(module, name, whole.get(p, p))
        yield
    finally:
        for module, name, p in places:
            setattr(module, name, p)


def shared_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether any of what it moves is in shares."""
    return any(isinstance(p, DTensor) for p in _params(optimizer))


def save_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Every rank writes its part of folder/optimizer; to be called by all of them. What fails on one fails on all."""
    with _said():
        save(_state(optimizer), checkpoint_id=folder / FOLDER)


def load_parts(folder: Path, optimizer: torch.optim.Optimizer) -> None:
    """Puts the state that `save_optimizer` wrote into `optimizer`, in shares or whole. Raises ValueError."""
    reader = FileSystemReader(folder / FOLDER)
    params = _params(optimizer)
    optimizer.state.clear()
    for name, about in reader.read_metadata().state_dict_metadata.items():
        number, key = name.split(".")
        if not isinstance(about, TensorStorageMetadata) or int(number) >= len(params):
            raise ValueError(f"{name} is of another model")
        p = params[int(number)]
        like = torch.zeros(()) if key == STEPS else p.detach()
        optimizer.state[p][key] = torch.zeros_like(like, dtype=about.properties.dtype)
    with _said(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # so it is, in one process
        load(_state(optimizer), storage_reader=reader)


def load_whole(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> None:
    """Puts the state_dict of an optimizer whose state was whole into one whose state is in shares."""
    params = _params(optimizer)
    optimizer.state.clear()
    for number, own in state["state"].items():
        p = params[number]
        optimizer.state[p] = {key: x if key == STEPS else _share(x.to(p.device), p) for key, x in own.items()}


@contextmanager
def _said() -> Iterator[None]:
    """The first failure itself: torch wraps it, beyond the reach of `except Exception`."""
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def _share(x: Tensor, p: nn.Parameter) -> Tensor:
    """This rank's part of it, if it has a part of `p`."""
    return distribute_tensor(x, p.device_mesh, p.placements, src_data_rank=None) if isinstance(p, DTensor) else x


def _params(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _state(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Its tensors, by the number of their weight: "3.exp_avg"."""
    return {
        f"{number}.{key}": x
        for number, p in enumerate(_params(optimizer))
        for key, x in optimizer.state.get(p, {}).items()
    }
