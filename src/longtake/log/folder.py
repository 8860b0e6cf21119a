"""The run folder: what was run, on what, how it ended. One for each stage run; the report reads nothing else.

run.json          stage, config, versions, machine, status, notes, seconds by phase, counts of caches, films
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
from longtake.log.lock import hold

PACKAGES = ("longtake", "torch", "transformers", "av", "numpy")
# settings that cannot change a number, so that a run may go on with others (in whatever block they are)
FREE = frozenset({"out", "fresh", "workers", "checkpoint_every", "tier", "features", "features_ram", "features_disk"})
FREE |= {"most_failed", "key_file", "retries", "timeout", "ranks.sequence", "ranks.attention", "ranks.weights"}
FREE |= {"engine.python", "engine.memory", "engine.context", "engine.patience", "engine.gate"}
RUNNING, DONE = "running", "done"
SHOWN = 3  # differing keys that an error lists
KEYS = {"stage", "config", "status", "notes", "seconds"}  # without these run.json is none of ours
# what a stage makes first: from there on there is a run to keep; "films" is a demo's
RESULTS = ("metrics.jsonl", "rates.jsonl", "outcomes", "asked", "checkpoints", "films")


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
        self._counted: dict[str, dict[str, int]] = run.get("counts", {})  # by earlier sittings

    @classmethod
    def open(
        cls,
        path: Path,
        stage: str,
        config: Mapping[str, Any],
        *,
        fresh: bool = False,
        chosen: Mapping[str, Any] | None = None,
        ranks: int = 1,
    ) -> RunFolder:
        """Create the folder, or go on with the run that is in it; `fresh` moves an old run aside first.

        `chosen`: what of the config is not at its default: all else may be missing in a run that older code began.

        A run that never came as far as a first result gives way to another. Raises AnotherRun if the folder holds a
        run of another stage or config (settings in FREE may differ), UserError if another process is at work in it.
        """
        file = path / "run.json"
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
        hold(path)
        if fresh and file.exists():
            move_aside(path)
            with writing(path):
                path.mkdir()
            hold(path)
        config = plain(config)
        if not file.exists():
            refuse_strange(path)
        given = config if chosen is None else plain(chosen)
        run = _same_run(path, stage, config, given) if file.exists() else None
        box = machine() | {"ranks": ranks}
        now = {"stage": stage, "config": config, "versions": versions(), "machine": box}
        if run is not None:
            now["status"] = RUNNING
            folder = cls(path, run | now, resumed=True, was_done=run["status"] == DONE)
        else:
            now |= {"started": datetime.now(UTC).isoformat(timespec="seconds"), "status": RUNNING, "notes": []}
            folder = cls(path, now | {"seconds": {}, "films": {"used": 0, "quarantined": []}})
        folder.save()
        return folder

    @property
    def begun(self) -> bool:
        """Whether there are results to go on from."""
        return _begun(self.path)

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

    def set_counts(self, counts: Mapping[str, Mapping[str, int]]) -> None:
        """What caches counted in this sitting, added to what earlier ones did; on disk with the next save()."""
        for name, own in counts.items():
            before = self._counted.get(name, {})
            added = {key: value + before.get(key, 0) for key, value in own.items()}
            self._run["counts"] = self._run.get("counts", {}) | {name: added}

    def set_films(self, used: int, quarantined: Iterable[tuple[str, str]]) -> None:
        """How many films were used, and (path, reason) of those that could not be."""
        bad = [{"path": path, "reason": reason} for path, reason in quarantined]
        self._run["films"] = {"used": used, "quarantined": bad}
        self.save()

    def changed(self, reads: Mapping[str, str]) -> list[str]:
        """Names of what the run read before with another fingerprint; one that is "" tells nothing."""
        old = self._run.get("reads", {})
        return [name for name, text in reads.items() if text and old.get(name, text) != text]

    def set_reads(self, reads: Mapping[str, str]) -> None:
        """Fingerprints of what the run reads, by name."""
        self._run["reads"] = self._run.get("reads", {}) | {name: text for name, text in reads.items() if text}
        self.save()

    def add_note(self, text: str) -> None:
        """A sentence for the report; the same sentence once."""
        if text not in self._run["notes"]:
            self._run["notes"].append(text)
            self.save()


def _begun(path: Path) -> bool:
    return any((path / name).exists() for name in RESULTS)


def refuse_strange(path: Path) -> None:
    """Raise AnotherRun if a folder without run.json holds what a run would write over or go on from."""
    for name in ("model", "config.json", "adapter_config.json", *RESULTS[:-1]):
        if (path / name).exists():
            why, fix = f"there is {name}, but no run.json", "choose another --out"
            raise AnotherRun("the folder holds something that is no run", where=str(path), why=why, fix=fix)


def _same_run(path: Path, stage: str, config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """What run.json says if it is this run; None if it is another that got nowhere. Raises AnotherRun, UserError."""
    fix = "--fresh moves this folder aside and begins again"
    try:
        run = read_json(path / "run.json")
    except UserError as error:
        raise UserError(
            f"the run cannot be gone on with: {error.what}", where=error.where, why=error.why, fix=fix
        ) from None
    if not (isinstance(run, dict) and run.keys() >= KEYS):
        raise UserError("this is not the run.json of a run", where=str(path / "run.json"), fix=fix)
    try:
        refuse_another(path, run, stage, config, given)
    except AnotherRun:
        if run["status"] == DONE or _begun(path):
            raise
        return None
    return run


def refuse_another(
    path: Path, run: Mapping[str, Any], stage: str, config: Mapping[str, Any], given: Mapping[str, Any]
) -> None:
    """Raise AnotherRun if `run` is not this stage with this config; it need not name what is not in `given`."""
    fix = "choose another --out, or --fresh to move the old run aside and begin again"
    if run["stage"] != stage:
        raise AnotherRun("the folder holds another run", where=str(path), why=f"it is of `{run['stage']}`", fix=fix)
    old, new, own = flat(run["config"]), flat(config), flat(given)
    differ = [key for key in new | old if old.get(key) != new.get(key) and (key in old or key in own)]
    free = FREE if new.get("engine.kind") == "remote" else FREE | {"engine.url"}  # of our own model, wherever it runs
    keys = [key for key in differ if not {key, key.rsplit(".", 1)[-1]} & free]
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
    if Path.cwd().is_relative_to(path.resolve()):
        raise UserError("the folder you are in cannot be moved aside", where=str(path), fix="choose another --out")
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
