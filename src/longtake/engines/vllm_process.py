"""Whoever speaks lines of JSON: a process, over its stdin and stdout; started, watched, ended."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, Queue
from typing import Any, BinaryIO, cast

from longtake.engines.vllm_troubles import SETUP
from longtake.errors import UserError

TOLD = 65536  # bytes at the end of the log that are looked at
GRACE = 5.0  # seconds to end by itself
_PREFIX = re.compile(
    r"^(\s*(\([^)]*pid=\d+\)|\[rank\d+\]:|(ERROR|WARNING|INFO|DEBUG) \d\d-\d\d [\d:]+|\[\S+\.py:\d+\]))*\s*"
)
_ERROR = re.compile(r"^\w[\w.]*(Error|Exception|Interrupt|Exit)\b")


class Gone(Exception):
    """It has ended, or makes no sense any more; the text says how."""


class Peer(ABC):
    """One that is spoken to, and writes into a log what is not said."""

    def __init__(self, lines: BinaryIO, log: Path) -> None:
        """`lines`: what it says."""
        self.log = log
        self._heard: Queue[bytes | None] = Queue()
        threading.Thread(target=_listen, args=(lines, self._heard), daemon=True).start()

    def say(self, op: str, **content: Any) -> None:
        """To one that has ended nothing: `hear` tells, after what it still said."""
        with suppress(OSError):
            self._send(json.dumps({"op": op, **content}).encode() + b"\n")

    def hear(self, seconds: float) -> dict[str, Any]:
        """The next message. Raises Gone, also if there is none for that long."""
        try:
            line = self._heard.get(timeout=seconds)
        except Empty:
            raise Gone(f"it said nothing for {seconds:g} s") from None
        if line is None:
            raise self._gone(self._how())
        try:
            message: dict[str, Any] = json.loads(line)
            message["op"]
        except (ValueError, KeyError, TypeError):
            raise Gone(f"it says what is no message: {line[:80]!r}") from None
        return message

    def _gone(self, how: str) -> Gone:
        """How it ended, and what it said last."""
        words = last_words(self.log)
        return Gone(f"{how}: {words}" if words else how)

    @abstractmethod
    def close(self) -> None:
        """Ends it, and waits until it has."""

    @abstractmethod
    def kill(self) -> None:
        """Ends it, whatever it is doing."""

    @abstractmethod
    def _send(self, line: bytes) -> None:
        """Raises OSError where nobody listens any more."""

    @abstractmethod
    def _how(self) -> str:
        """How it ended."""


class Process(Peer):
    """Example: Process([python, "-I", "worker.py"], Path("engine.log")).hear(60.0)."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        """Its stderr goes to `log`. Raises UserError if there is no such program."""
        try:
            with log.open("ab") as errors:
                self._popen = subprocess.Popen(
                    list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
                )
        except OSError as error:
            raise UserError("no Python there", where=command[0], why=error.strerror or "", fix=SETUP) from error
        assert self._popen.stdout is not None
        super().__init__(cast(BinaryIO, self._popen.stdout), log)
        self._end = weakref.finalize(self, _kill, self._popen)

    def close(self) -> None:
        """Ends it: the end of its stdin first, a kill if that is not heard."""
        assert self._popen.stdin is not None
        with suppress(OSError):
            self._popen.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(GRACE)
        self._end()

    def kill(self) -> None:
        self._end()

    def _send(self, line: bytes) -> None:
        assert self._popen.stdin is not None
        self._popen.stdin.write(line)
        self._popen.stdin.flush()

    def _how(self) -> str:
        try:
            code = self._popen.wait(GRACE)
        except subprocess.TimeoutExpired:
            return "it closed its stdout"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"


def last_words(log: Path) -> str:
    """The last line of a log that says what went wrong, without what vLLM puts before it; "" if there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TOLD))
        lines = [_PREFIX.sub("", line).strip() for line in file.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if _ERROR.match(line)]
    return ([line for line in errors or lines if line] or [""])[-1][:200]


def _listen(lines: BinaryIO, heard: Queue[bytes | None]) -> None:
    with lines, suppress(OSError):
        for line in lines:
            heard.put(line)
    heard.put(None)


def _kill(popen: subprocess.Popen[bytes]) -> None:
    """Also at the end of this Python."""
    popen.kill()
    popen.wait()
    assert popen.stdin is not None
    with suppress(OSError):
        popen.stdin.close()
