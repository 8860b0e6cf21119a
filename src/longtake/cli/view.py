"""`longtake view DIR`: build the report of a run folder and open it."""

from __future__ import annotations

import webbrowser
from pathlib import Path
from typing import Any

from pydantic import Field

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log


class Config(Settings):
    """What to look at."""

    folder: Path = Field(description="run folder, or the folder of a whole demo")
    open: bool = Field(True, description="open the page in a browser; else only print where it is")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Write report.html into the folder. Raises UserError if there is no such folder."""
    if not config.folder.is_dir():
        raise UserError(
            "no such run folder", where=str(config.folder), fix="name the --out of a stage, such as out/demo"
        )
    from longtake import report

    page = report.build(config.folder)
    log.say(str(page))
    if config.open:
        webbrowser.open(page.resolve().as_uri())
    return {"report": str(page)}
