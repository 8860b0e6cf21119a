"""What public benchmarks give away without a film, into bench/results/blind.json: README's table of blind scores.

    python -m bench.blind longvideoreason.json lvbench.json mlvu-dev.json

Numbers only: no row of a benchmark is copied, and files are named without their folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.demo import RESULTS
from longtake.errors import UserError
from longtake.eval import blind
from longtake.log import Log, write_json_atomic
from longtake.log.folder import machine, versions

RESULT = RESULTS / "blind.json"


def measure(files: Sequence[Path]) -> dict[str, Any]:
    """{"machine", "versions", "date", "files": [blind report of each, malformed rows counted, not named]}."""
    reports = [blind.report(file) for file in files]
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "files": [
            report | {"path": file.name, "malformed": len(report["malformed"])}
            for file, report in zip(files, reports, strict=True)
        ],
    }


def main(words: Sequence[str]) -> int:
    """Exit code."""
    try:
        if not words:
            raise UserError("no file named", fix="python -m bench.blind rows.json …")
        found = measure([Path(word) for word in words])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_json_atomic(RESULT, found)
    Log().say(f"{len(found['files'])} files in {RESULT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
