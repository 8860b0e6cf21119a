"""The run folder: what was run, on what, how it ended. One for each stage run; the report reads nothing else.

run.json          stage, config, versions, machine, status, notes, seconds by phase, films
metrics.jsonl     one line a step
rollouts/<step>.jsonl, thumbs/, checkpoints/<step>/, eval.json   by the stages that have them
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.log.files import plain, read_json, write_json_atomic, writing

PACKAGES = ("longtake", "torch", "transformers", "av", "numpy")
# settings that cannot change a number, so that a run may go on with others (in whatever block they are)
FREE = frozenset({"out", "fresh", "workers", "checkpoint_every", "tier", "features"})
RUNNING, DONE = "running", "done"
SHOWN = 3  # differing keys that an error lists


class AnotherRun(UserError):
    """The folder holds a run of another stage or config."""


class RunFolder:
    """One stage's folder, opened for writing: new, or gone on with.

    Example: folder = RunFolder.open(Path("out/sft"), "sft", config.model_dump(mode="json")).
    """

    def __init__(self, path: Path, run: dict[str, Any], *, resumed: bool = False, was_done: bool = False) -> None:
        self.path = path
        self.resumed = resumed  # the same run was started here before
        self.was_done = was_done  # and had ended well
        self._run = run

    @classmethod
    def open(cls, path: Path, stage: str, config: Mapping[str, Any], *, fresh: bool = False) -> RunFolder:
        """Create the folder, or go on with the run that is in it; `fresh` moves an old run aside first.

        Raises UserError if the folder holds a run of another stage or config (settings in FREE may differ).
        """
        file = path / "run.json"
        if fresh and file.exists():
            move_aside(path)
        config = plain(config)
        if file.exists():
            run = read_json(file)
            refuse_another(path, run, stage, config)
            now = {"config": config, "status": RUNNING, "versions": versions(), "machine": machine()}
            folder = cls(path, run | now, resumed=True, was_done=run["status"] == DONE)
        else:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
            run = {"stage": stage, "config": config, "versions": versions(), "machine": machine()}
            run |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "status": RUNNING, "notes": []}
            folder = cls(path, run | {"seconds": {}, "films": {"used": 0, "quarantined": []}})
        folder.save()
        return folder

    @property
    def status(self) -> str:
        """ "running", "done", "stopped: reason" or "failed: reason"."""
        return str(self._run["status"])

    @property
    def seconds(self) -> dict[str, float]:
        """Wall seconds by phase, over all sittings of this run."""
        return dict(self._run["seconds"])

    def save(self) -> None:
        """Write run.json."""
        write_json_atomic(self.path / "run.json", self._run)

    def set_status(self, status: str) -> None:
        """ "done", "stopped: reason" (a cap was reached) or "failed: reason"."""
        self._run["status"] = status
        self.save()

    def set_seconds(self, seconds: Mapping[str, float]) -> None:
        """Replace the wall seconds by phase; on disk with the next save()."""
        self._run["seconds"] = {name: round(value, 3) for name, value in seconds.items()}

    def set_films(self, used: int, quarantined: Iterable[tuple[str, str]]) -> None:
        """How many films were used, and (path, reason) of those that could not be."""
        bad = [{"path": path, "reason": reason} for path, reason in quarantined]
        self._run["films"] = {"used": used, "quarantined": bad}
        self.save()

    def add_note(self, text: str) -> None:
        """A sentence for the report; the same sentence once."""
        if text not in self._run["notes"]:
            self._run["notes"].append(text)
            self.save()


def refuse_another(path: Path, run: Mapping[str, Any], stage: str, config: Mapping[str, Any]) -> None:
    """Raise AnotherRun if `run` is not this stage with this config."""
    fix = "choose another --out, or --fresh to move the old run aside and begin again"
    if run["stage"] != stage:
        raise AnotherRun("the folder holds another run", where=str(path), why=f"it is of `{run['stage']}`", fix=fix)
    old, new = flat(run["config"]), flat(config)
    keys = [key for key in new | old if old.get(key) != new.get(key) and key.rsplit(".", 1)[-1] not in FREE]
    if keys:
        shown = ", ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in keys[:SHOWN])
        more = f", and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        raise AnotherRun("the folder holds a run with other settings", where=str(path), why=shown + more, fix=fix)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Blocks opened: {"video": {"frames": 8}} → {"video.frames": 8}."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return found


def move_aside(path: Path) -> Path:
    """Rename an old run folder to `<name>.old-1`, -2, …: nothing is deleted. Returns the new place."""
    number = 1
    while (aside := path.with_name(f"{path.name}.old-{number}")).exists():
        number += 1
    with writing(path):
        os.rename(path, aside)
    return aside


def versions() -> dict[str, str]:
    """Installed versions of what decides a run's numbers; "" if not installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = ""
    return found


def machine() -> dict[str, Any]:
    """What this computer is: system, processors that may be used, memory in GiB, GPUs by name (NVIDIA on Linux)."""
    cards = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for card in cards for line in card.read_text().splitlines() if line.startswith("Model:")]
    linux = platform.system() == "Linux"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if linux else 0
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processors": len(os.sched_getaffinity(0)) if linux else os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": [line.removeprefix("Model:").strip() for line in lines],
    }
