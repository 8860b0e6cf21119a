"""How every stage begins and ends its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from longtake.config import Settings
from longtake.log.files import read_json, write_json_atomic
from longtake.log.folder import DONE, RunFolder
from longtake.log.log import Log


def begin(
    log: Log, stage: str, config: Settings, out: Path, *, fresh: bool, result: str = "summary.json"
) -> dict[str, Any] | None:
    """Opens the run folder for `log`; of a run that had ended well it returns what it wrote to `result`, else None.

    Raises UserError if `out` holds another run.
    """
    folder = RunFolder.open(out, stage, config.model_dump(mode="json"), fresh=fresh)
    log.open(folder)
    if not folder.was_done:
        return None
    folder.set_status(DONE)
    return dict(read_json(out / result))


def finish(log: Log, summary: dict[str, Any], result: str = "summary.json") -> dict[str, Any]:
    """Writes the result and marks the run done; returns the result."""
    assert log.folder is not None, "begin() opened it"
    write_json_atomic(log.folder.path / result, summary)
    log.folder.set_status(DONE)
    return summary
