"""Runs a stage in a process of its own that kills itself (SIGKILL: nothing is tidied up) at a chosen moment."""

from __future__ import annotations

import importlib
import io
import os
import signal
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from longtake.config import Settings

PRELOADED = ["torch", "transformers", "longtake.runtime.load", "longtake.engines.local", "longtake.train.session"]
PATIENCE = 600  # seconds for one process


@dataclass(frozen=True)
class Death:
    """Just before the `number`-th call of a function. Example: Death("longtake.log.log:Log.step", 5)."""

    function: str
    number: int

    def __str__(self) -> str:
        return f"{self.function.rpartition(':')[2]} {self.number}"


def killed(module: str, config: Settings, death: Death) -> None:
    """Runs the stage in `module` up to its death. Fails if it lived."""
    context = get_context("forkserver")  # one import of torch for all of them, and no fork of a process with threads
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_live, args=(module, config, death))
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL, f"the process ended with {process.exitcode} before {death}"
    process.close()


def _live(module: str, config: Settings, death: Death) -> None:
    import torch

    from longtake.log import Log

    torch.set_num_threads(1)
    stage = importlib.import_module(module)
    place, _, name = death.function.partition(":")
    owner: Any = importlib.import_module(place)
    *way, last = name.split(".")
    for step in way:
        owner = getattr(owner, step)
    real, calls = getattr(owner, last), 0

    def mortal(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == death.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **named)

    setattr(owner, last, mortal)
    stage.run(config, Log(stream=io.StringIO()))
