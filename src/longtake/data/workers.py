"""Films shared out over processes that import no torch: JSON lines down their stdin, JSON lines back.

A process that a broken film kills takes nothing with it, and processes end when their parent does: their stdin ends.
The size of frames is the model's to say, so a process asks for it and the parent answers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from longtake.data.video import Size, VideoError
from longtake.errors import UserError
from longtake.records import FramePolicy

Fit = Callable[[int, int, int | None, int | None], Size]  # width, height, frames (None: a picture), max_pixels
Complete = Callable[[str, Sequence[FramePolicy], Fit], None]
_ROOT = Path(__file__).parents[2]
_START = """
import sys
sys.path.insert(0, sys.argv[1])
from longtake.data.cache import FrameTier
from longtake.data.workers import serve
serve(FrameTier(sys.argv[2]).complete)
"""


def complete_in_processes(
    folder: Path, wants: Mapping[Path, Sequence[FramePolicy]], fit: Fit, workers: int
) -> Generator[tuple[Path, VideoError | None], None, None]:
    """Complete films in the frame tier at `folder`; yields each as it is done, with the reason if it failed.

    Raises UserError if the tier cannot be written. Closing the generator ends the processes.
    """
    todo = deque(wants.items())
    outcomes: SimpleQueue[tuple[Path, VideoError | None] | BaseException] = SimpleQueue()
    team = [_Worker(folder) for _ in range(workers)]

    def drain(worker: _Worker) -> None:
        try:
            while True:
                path, policies = todo.popleft()
                outcomes.put((path, worker.complete(path, policies, fit)))
        except IndexError:
            return
        except BaseException as error:
            outcomes.put(error)

    threads = [threading.Thread(target=drain, args=(worker,), daemon=True) for worker in team]
    try:
        for thread in threads:
            thread.start()
        for _ in range(len(wants)):
            outcome = outcomes.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        todo.clear()
        for worker in team:
            worker.kill()
        for thread in threads:
            thread.join()
        for worker in team:
            worker.close()


class _Worker:
    """The parent's end of one process."""

    def __init__(self, folder: Path) -> None:
        self._command = [sys.executable, "-c", _START, str(_ROOT), str(folder)]
        self._stopped = False
        self._process = self._start()

    def complete(self, path: Path, policies: Sequence[FramePolicy], fit: Fit) -> VideoError | None:
        self._send({"path": str(path), "policies": [asdict(policy) for policy in policies]})
        while (reply := self._receive()) is not None:
            kind, said = reply["kind"], reply["said"]
            if kind == "fit":
                try:
                    self._send(list(fit(*said)))
                except UserError as error:
                    self._send(_words(error))
            elif kind == "done":
                return None
            elif kind == "film":
                return VideoError(said["what"], where=said["where"], why=said["why"], fix=said["fix"])
            elif kind == "user":
                raise UserError(said["what"], where=said["where"], why=said["why"], fix=said["fix"])
            else:
                raise RuntimeError(f"decoding {path} failed\n{said}")
        code = self._process.wait()
        if self._stopped or code >= 0:
            raise RuntimeError(f"a decoding process ended with {code}")
        self.close()
        self._process = self._start()
        return VideoError(
            "decoding the film killed its process",
            where=str(path),
            why=signal.Signals(-code).name,
            fix="re-encode it (ffmpeg -i film -c:v libx264 new.mp4) or leave it out",
        )

    def kill(self) -> None:
        self._stopped = True
        self._process.kill()

    def close(self) -> None:
        """After the thread that reads has ended."""
        with suppress(BrokenPipeError), self._process as process:  # closes the pipes, waits
            process.kill()

    def _start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE  # in a process group of its own, or Ctrl-C in a terminal would reach the child too
        return subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True, process_group=0)

    def _send(self, message: Any) -> None:
        pipe = self._process.stdin
        assert pipe
        with suppress(BrokenPipeError):  # it has died: the missing reply says so
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

    def _receive(self) -> dict[str, Any] | None:
        pipe = self._process.stdout
        assert pipe
        line = pipe.readline()
        return json.loads(line) if line.endswith("\n") else None


def serve(complete: Complete) -> None:
    """The child's end: complete films until stdin ends."""
    for line in sys.stdin:
        job = json.loads(line)
        policies = [
            FramePolicy(**{**row, "seconds": row["seconds"] and tuple(row["seconds"])}) for row in job["policies"]
        ]
        try:
            complete(job["path"], policies, _ask_fit)
        except VideoError as error:
            _say("film", _words(error))
        except UserError as error:
            _say("user", _words(error))
        except Exception:
            _say("bug", traceback.format_exc())
        else:
            _say("done", None)


def _ask_fit(width: int, height: int, frames: int | None, max_pixels: int | None) -> Size:
    _say("fit", [width, height, frames, max_pixels])
    line = sys.stdin.readline()
    if not line:
        os._exit(1)  # the parent is gone
    reply = json.loads(line)
    if isinstance(reply, dict):
        raise UserError(reply["what"], where=reply["where"], why=reply["why"], fix=reply["fix"])
    return reply[0], reply[1]


def _say(kind: str, said: Any) -> None:
    try:
        sys.stdout.write(json.dumps({"kind": kind, "said": said}) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)  # the parent is gone: nobody wants a traceback


def _words(error: UserError) -> dict[str, str]:
    return {"what": error.what, "where": error.where, "why": error.why, "fix": error.fix}
