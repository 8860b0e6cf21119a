"""Checkpoints that a kill cannot harm: written beside, then renamed; the newest whole one is where a run goes on."""

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
from longtake.protocols import Model


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. Example: Progress(step=50, taken=800, done=False, reason="")."""

    step: int = 0  # steps made
    taken: int = 0  # places of the data walk used up
    done: bool = False
    reason: str = ""  # why it ended
    beta: float | None = None  # the KL's weight, where it follows the KL


def save(folder: Path, progress: Progress, model: Model, optimizer: torch.optim.Optimizer, keep: int = 1) -> Path:
    """Writes folder/<step>/ with model, tokenizer, processor files, optimizer and progress.

    Drops all but the newest `keep`.
    """
    target = folder / f"{progress.step:06d}"
    with _replacing(target) as partial:
        model.save(partial)
        with (partial / "optimizer.pt").open("wb") as file:  # given the path, torch keeps a full disk to itself
            torch.save(optimizer.state_dict(), file)
        (partial / "progress.json").write_text(json.dumps(asdict(progress)))
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
    """Puts the state of a checkpoint into `optimizer`. Raises UserError if it cannot be read."""
    try:
        state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise damaged(
            checkpoint, f"optimizer.pt: {(str(error) or type(error).__name__).splitlines()[0][:200]}"
        ) from error


def damaged(checkpoint: Path, why: str) -> UserError:
    """The error for a checkpoint that cannot be gone on from."""
    where = "the one before it" if len(whole(checkpoint.parent)) > 1 else "its start"
    fix = f"delete this folder and run the same command: the run goes on from {where}"
    return UserError("the checkpoint is damaged", where=str(checkpoint), why=why, fix=fix)


def save_model(target: Path, model: Model) -> Path:
    """The trained model as a folder that `--model` and transformers read; an older one is replaced."""
    with _replacing(target) as partial:
        model.save(partial)
    return target


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A folder to write; in the end it becomes `target`. On a failure nothing of it stays and `target` is as it was."""
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(target):
        try:
            partial.mkdir(parents=True)
            yield partial
            shutil.rmtree(target, ignore_errors=True)
            partial.replace(target)
        except Exception:  # a full disk gets its space back
            shutil.rmtree(partial, ignore_errors=True)
            raise
