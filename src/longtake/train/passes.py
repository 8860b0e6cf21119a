"""How rows go through this machine: what a prefill keeps is chosen by memory where the config leaves it open."""

from __future__ import annotations

import os
import platform

import torch

from longtake.log import Log
from longtake.maths.cost import Work
from longtake.maths.room import keep_for
from longtake.maths.shapes import shape_of
from longtake.parallel.ranks import here
from longtake.protocols import Model
from longtake.runtime.prefix import Keep
from longtake.train.memory import Memory, PrefixGradient, probability
from longtake.train.oom import way_of
from longtake.train.step import Passes


def passes(memory: Memory, prefix_gradient: PrefixGradient, seed: int, model: Model, log: Log) -> Passes:
    """Says where the graph of a prefix does not fit."""
    keep: Keep = "graph"
    if memory.keep != "auto":
        keep = memory.keep
    else:
        device, host = room_of(model.net.device)
        work = Work(frames=1, visual=memory.row_tokens, question=1, answer=memory.answer_tokens // 8)
        shape, way = shape_of(model.net.config.to_dict()), way_of(model, "graph", memory.answer_tokens)
        keep = keep_for(shape, work, way, device, host)
        if keep not in ("graph", "nothing"):
            log.note(f"of a prefix {keep} are kept: the graph of {memory.row_tokens} tokens does not fit this machine")
    most = memory.row_tokens if memory.keep == "auto" else None  # what was reckoned with
    return Passes(keep, memory.answer_tokens, memory.tile, probability(prefix_gradient), seed, most)


def room_of(device: torch.device) -> tuple[float, float]:
    """Bytes of a rank's device and of its part of the host: of the smallest there is, so that all decide alike."""
    world, node = here(), platform.node()
    host = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / world.gather(node).count(node)
    own = float(torch.cuda.get_device_properties(device).total_memory) if device.type == "cuda" else host
    least = [min(each) for each in zip(*world.gather((own, host)), strict=True)]
    return least[0], least[1]
