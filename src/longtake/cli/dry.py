"""`--dry-run`: every setting with who set it, what would be read and written. Touches nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from longtake.config import Loaded, Settings, leaves

WRITTEN = ("out", "tier", "features")  # settings that name what a stage writes, in whatever block


def plan(loaded: Loaded[Settings]) -> dict[str, Any]:
    """{"config", "from", "reads": {path: state}, "writes": {path: state}}."""
    config = loaded.config.model_dump(mode="json")
    reads: dict[str, str] = {}
    writes: dict[str, str] = {}
    for name in leaves(type(loaded.config)):
        value, written = lookup(loaded.config, name), name.rsplit(".", 1)[-1] in WRITTEN
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, Path):
                (writes if written else reads)[str(path)] = _state(path, written)
    return {"config": config, "from": dict(loaded.provenance), "reads": reads, "writes": writes}


def lookup(config: Settings, name: str) -> Any:
    """The value of a leaf by dotted name; None inside a block that is not set."""
    value: Any = config
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def text(stage: str, found: Mapping[str, Any], loaded: Loaded[Settings]) -> str:
    """The plan for people."""
    rows = [(name, str(lookup(loaded.config, name)), where) for name, where in loaded.provenance.items()]
    widths = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    lines = [f"longtake {stage} would run with"]
    lines += [f"  {name:<{widths[0]}}  {value:<{widths[1]}}  {where}" for name, value, where in rows]
    lines += [f"reads   {path} ({state})" for path, state in found["reads"].items()]
    lines += [f"writes  {path} ({state})" for path, state in found["writes"].items()]
    return "\n".join([*lines, "nothing was touched"])


def _state(path: Path, written: bool) -> str:
    if not path.exists():
        return "new" if written else "not there"
    if written:
        return "there already: goes on with it"
    return "folder" if path.is_dir() else f"{path.stat().st_size / 1e6:.1f} MB"
