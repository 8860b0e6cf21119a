"""Locks that the kernel lifts when their holder ends, however it ends: of a run folder, of a piece of a cache."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from longtake.errors import UserError
from longtake.log.files import writing

NAME = ".lock"
_HELD: dict[str, int] = {}  # folders of this process and their open lock files: it may open a folder again


def hold(folder: Path) -> None:
    """Keep `folder` for this process until it ends. Raises UserError if another process has it."""
    path, key = folder / NAME, os.path.realpath(folder)
    while not (key in _HELD and _is(_HELD[key], path)):  # else: held, and not moved aside or deleted meanwhile
        if key in _HELD:
            os.close(_HELD.pop(key))
        with writing(folder):
            _HELD[key] = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            _take(_HELD[key], folder, key)
            os.ftruncate(_HELD[key], 0)
            os.pwrite(_HELD[key], f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One holder at a time, thread or process, waiting for its turn. Raises OSError if `path` cannot be locked."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _take(file: int, folder: Path, key: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(file, 200, 0).decode(errors="replace")
        os.close(_HELD.pop(key))
        if not isinstance(error, BlockingIOError):
            why, fix = (error.strerror or str(error)).lower(), "choose an --out on another disk"
            raise UserError("this disk cannot lock files", where=str(folder), why=why, fix=fix) from error
        why, fix = f"it belongs to {holder}", "wait for it, stop it, or choose another --out"
        raise UserError("another run is at work in this folder", where=str(folder), why=why, fix=fix) from None


def _is(file: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False
