"""The one home of environment variables: what must be set before Python starts, and a start with it set.

Two idle OpenMP threads that spin, and an allocator that gives memory back after every step, cost a small model on a few
cores up to four fifths of its time. glibc and libgomp read these names once, when the process starts: so a stage that
trains starts itself again with them. What the user has set stays, but for OURS.

`python -m longtake.cli.environment -m pytest …` starts Python under the same settings.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple, TextIO

BEFORE_START = {
    "GOMP_SPINCOUNT": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
OURS = {  # what torchrun sets otherwise
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "0",  # else NCCL ends a process whose peer died, before it can say so
}


class Launched(NamedTuple):
    """One process of several. Example: Launched(rank=3, size=4, near=2), two to a machine."""

    rank: int
    size: int
    near: int  # ranks on this machine


def launched() -> Launched | None:
    """Who this process is among those that torchrun started; None where it is alone."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    return Launched(int(os.environ["RANK"]), size, int(os.environ.get("LOCAL_WORLD_SIZE", size))) if size > 1 else None


def restart(arguments: Sequence[str]) -> None:
    """Replace this process by `python arguments` under BEFORE_START and OURS; does nothing where all of it is set."""
    if sys.platform != "linux" or (
        all(name in os.environ for name in BEFORE_START) and os.environ.items() >= OURS.items()
    ):
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *arguments], BEFORE_START | os.environ | OURS)


def open_streams() -> None:
    """stdout and stderr that take any text."""
    sys.stdout, sys.stderr = _open(sys.stdout), _open(sys.stderr)


def _open(stream: TextIO | None) -> TextIO:
    """What its encoding lacks is escaped; a stream that the shell closed (`>&-`, then it is None) swallows all."""
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return stream


def main() -> None:
    """Start Python with the arguments of this command."""
    os.execve(sys.executable, [sys.executable, *sys.argv[1:]], BEFORE_START | os.environ | OURS)


if __name__ == "__main__":
    main()
