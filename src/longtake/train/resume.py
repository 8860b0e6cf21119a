"""Checkpoints that a kill cannot harm: written beside, then renamed; the newest whole one is where a run goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from longtake.log import writing
from longtake.protocols import Model


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. Example: Progress(step=50, taken=800, done=False, reason="")."""

    step: int = 0  # steps made
    taken: int = 0  # places of the data walk used up
    done: bool = False
    reason: str = ""  # why it ended


def save(folder: Path, progress: Progress, model: Model, optimizer: torch.optim.Optimizer, keep: int = 1) -> Path:
    """Writes folder/<step>/ with model, tokenizer, processor files, optimizer and progress.

    Drops all but the newest `keep`.
    """
    target, partial = folder / f"{progress.step:06d}", folder / f"{progress.step:06d}.part"
    shutil.rmtree(partial, ignore_errors=True)
    with writing(target):
        partial.mkdir(parents=True)
        model.save(partial)
        torch.save(optimizer.state_dict(), partial / "optimizer.pt")
        (partial / "progress.json").write_text(json.dumps(asdict(progress)))
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    for old in whole(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def whole(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob("*/progress.json") if not path.parent.name.endswith(".part"))


def latest(folder: Path) -> tuple[Progress, Path] | None:
    """The newest complete checkpoint, None if there is none."""
    found = whole(folder)
    return (Progress(**json.loads((found[-1] / "progress.json").read_text())), found[-1]) if found else None


def save_model(target: Path, model: Model) -> Path:
    """The trained model as a folder that `--model` and transformers read; an older one is replaced."""
    partial = target.with_name(target.name + ".part")
    shutil.rmtree(partial, ignore_errors=True)
    with writing(target):
        partial.mkdir(parents=True)
        model.save(partial)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    return target
