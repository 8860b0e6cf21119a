"""The one home of environment variables: what must be set before Python starts, and a start with it set.

Two idle OpenMP threads that spin, and an allocator that gives memory back after every step, cost a small model on a few
cores up to four fifths of its time. glibc and libgomp read these names once, when the process starts: so a stage that
trains starts itself again with them. What the user has set stays.

`python -m longtake.cli.environment -m pytest …` starts Python under the same settings.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

BEFORE_START = {
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}


def restart(arguments: Sequence[str]) -> None:
    """Replace this process by `python arguments` under BEFORE_START; does nothing where all of it is set."""
    if sys.platform != "linux" or all(name in os.environ for name in BEFORE_START):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], BEFORE_START | os.environ)


def main() -> None:
    """Start Python with the arguments of this command."""
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], BEFORE_START | os.environ)


if __name__ == "__main__":
    main()
