"""Checkpoints that a kill cannot harm: written beside, then renamed; the newest whole one is where a run goes on.

On several ranks the first writes, and the others their part of a state that is shared out; it is renamed when all of it
is there. Any number of ranks goes on from it.
"""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from longtake.errors import UserError
from longtake.log import writing
from longtake.parallel import checkpoint as parts
from longtake.parallel.axis import ALONE, Axis
from longtake.protocols import Model

OPTIMIZER = "optimizer.pt"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. Example: Progress(step=50, taken=800, done=False, reason="")."""

    step: int = 0  # steps made
    taken: int = 0  # places of the data walk used up
    done: bool = False
    reason: str = ""  # why it ended
    beta: float | None = None  # the KL's weight, where it follows the KL


def save(
    folder: Path,
    progress: Progress,
    model: Model,
    optimizer: torch.optim.Optimizer,
    keep: int = 1,
    world: Axis = ALONE,
) -> Path:
    """Writes folder/<step>/ with model, tokenizer, processor files, optimizer and progress; all ranks of `world` call.

    Drops all but the newest `keep`.
    """
    target = folder / f"{progress.step:06d}"
    shared = parts.shared_out(optimizer)
    with _replacing(target, world) as partial:
        _save(model, partial, world)
        if shared:
            parts.save_optimizer(partial, optimizer)
        with _together(world):
            if world.leads and not shared:
                with (partial / OPTIMIZER).open("wb") as file:  # given the path, torch keeps a full disk to itself
                    torch.save(optimizer.state_dict(), file)
            if world.leads:
                (partial / "progress.json").write_text(json.dumps(asdict(progress)))
    if world.leads:
        for old in whole(folder)[:-keep]:
            shutil.rmtree(old)
    return target


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path.parent for path in folder.glob("*/progress.json") if path.parent.name.isdigit()]
    return sorted(found, key=lambda path: int(path.name))


def latest(folder: Path) -> tuple[Progress, Path] | None:
    """The newest complete checkpoint, None if there is none. Raises UserError if its progress cannot be read."""
    found = whole(folder)
    if not found:
        return None
    try:
        return Progress(**json.loads((found[-1] / "progress.json").read_text())), found[-1]
    except (OSError, ValueError, TypeError) as error:
        raise damaged(found[-1], f"progress.json: {error}") from error


def load_optimizer(checkpoint: Path, optimizer: torch.optim.Optimizer) -> None:
    """Puts the state of a checkpoint into `optimizer`; all ranks call. Raises UserError if it cannot be read."""
    name = parts.FOLDER if (checkpoint / parts.FOLDER).is_dir() else OPTIMIZER
    try:
        if name == parts.FOLDER:
            parts.load_parts(checkpoint, optimizer)
            return
        state = torch.load(checkpoint / OPTIMIZER, map_location="cpu", weights_only=True)
        if parts.shared_out(optimizer):
            parts.load_whole(state, optimizer)
        else:
            optimizer.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        why = f"{name}: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
        raise damaged(checkpoint, why) from error


def damaged(checkpoint: Path, why: str) -> UserError:
    """The error for a checkpoint that cannot be gone on from."""
    where = "the one before it" if len(whole(checkpoint.parent)) > 1 else "its start"
    fix = f"delete this folder and run the same command: the run goes on from {where}"
    return UserError("the checkpoint is damaged", where=str(checkpoint), why=why, fix=fix)


def save_model(target: Path, model: Model, world: Axis = ALONE) -> Path:
    """The trained model as a folder that `--model` and transformers read; an older one is replaced. All ranks call."""
    with _replacing(target, world) as partial:
        _save(model, partial, world)
    return target


def _save(model: Model, folder: Path, world: Axis) -> None:
    with parts.gathered(model.net), _together(world):
        if world.leads:
            model.save(folder)


@contextmanager
def _together(world: Axis) -> Iterator[None]:
    """What fails on one rank fails on all. Inside, ranks say nothing to one another."""
    problem: Exception | None = None
    try:
        yield
    except Exception as error:
        problem = error
    said = world.gather(None if problem is None else str(problem))
    if problem is not None:
        raise problem
    for rank, why in enumerate(said):
        if why is not None:
            raise UserError(f"rank {rank} could not write its part", why=why)


@contextmanager
def _replacing(target: Path, world: Axis) -> Iterator[Path]:
    """A folder to write; in the end it becomes `target`. On a failure nothing of it stays and `target` is as it was."""
    partial = target.with_name(target.name + ".part")
    with writing(target):
        try:
            with _together(world):
                if world.leads:
                    shutil.rmtree(partial, ignore_errors=True)
                    partial.mkdir(parents=True)
            with _together(world):
                if not partial.is_dir():
                    why = "what the first rank writes is not seen here"
                    raise UserError("the ranks share no folder", where=str(target.parent), why=why, fix="move --out")
            yield partial
            with _together(world):
                if world.leads:
                    shutil.rmtree(target, ignore_errors=True)
                    partial.replace(target)
        except Exception:  # a full disk gets its space back
            if world.leads:
                shutil.rmtree(partial, ignore_errors=True)
            raise
