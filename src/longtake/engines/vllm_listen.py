"""vLLM for a run elsewhere: `python vllm_listen.py HOST:PORT`, with the Python that has vLLM. Imports no longtake.

Every connection gets a worker of its own (vllm_worker.py, whose stdin and stdout it is), one at a time, which ends with
it. Weights and features are files: the run's folder must have the same name here. Whoever can connect can use it.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("vllm_worker.py")
GRACE = 5.0  # seconds for a worker to end by itself
TURN = 60.0  # seconds to wait for the one before, which may have much memory to give back
LOOK = 200  # milliseconds between looks at a worker
# a machine that is gone is noticed in a minute
ALIVE = {socket.TCP_KEEPIDLE: 30, socket.TCP_KEEPINTVL: 10, socket.TCP_KEEPCNT: 3, socket.TCP_NODELAY: 1}


class Listener:
    """Example: Listener().serve("127.0.0.1", 7000)."""

    def __init__(self) -> None:
        self._turn = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def serve(self, host: str, port: int) -> None:
        """Until it is ended, and the worker with it."""
        with socket.create_server((host, port)) as server:
            _note(f"vLLM waits at tcp://{host}:{server.getsockname()[1]}")
            try:
                while True:
                    link, peer = server.accept()
                    threading.Thread(target=self._session, args=(link, peer[0]), daemon=True).start()
            finally:
                if self._child is not None:
                    self._child.kill()

    def _session(self, link: socket.socket, peer: str) -> None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ALIVE.items():
            link.setsockopt(socket.IPPROTO_TCP, option, value)
        with link, suppress(OSError):
            first = _first(link)
            trouble = self._trouble(first)
            if not trouble and not self._turn.acquire(timeout=TURN):
                trouble = "it answers another run"
            if trouble:
                _say(link, "failed", kind="", why=trouble)
                return
            _note(f"{peer}: {first['log']}")
            try:
                how = self._attend(link, first)
            finally:
                self._turn.release()
            _note(f"{peer}: {how}")
            _say(link, "ended", how=how)
            link.shutdown(socket.SHUT_WR)
            while link.recv(65536):  # else what is unread would cut off what was said
                pass

    def _trouble(self, first: dict[str, Any]) -> str:
        """Why it cannot work for this one; "" if it can."""
        if first.get("op") != "open":
            return "it waits for a run of longtake"
        if first.get("worker") != hashlib.blake2b(WORKER.read_bytes()).hexdigest():
            return f"{WORKER} is of another version of longtake"
        for folder in (first["model"], os.path.dirname(first["log"])):
            if not os.path.isdir(folder):
                return f"there is no {folder} on its machine: the run's folder must be seen from both"
        try:
            open(first["log"], "ab").close()
        except OSError as error:
            return str(error)
        return ""

    def _attend(self, link: socket.socket, first: dict[str, Any]) -> str:
        """Until its worker or the connection ends: how."""
        command = [sys.executable, "-I", str(WORKER), first["model"], json.dumps(first["options"])]
        with open(first["log"], "ab") as errors:
            self._child = child = subprocess.Popen(command, stdin=link.fileno(), stdout=link.fileno(), stderr=errors)
        poll = select.poll()
        poll.register(link, select.POLLRDHUP)
        while child.poll() is None and not poll.poll(LOOK):
            pass
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
        alone = child.poll() is not None
        child.kill()
        code = child.wait()
        if not alone:
            return "it was left"
        return f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with code {code}"


def _first(link: socket.socket) -> dict[str, Any]:
    """The first message, and no byte more: the rest is for the worker."""
    line = b""
    while not line.endswith(b"\n"):
        if not (byte := link.recv(1)):
            break
        line += byte
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError):
        return {}


def _note(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _say(link: socket.socket, op: str, **content: Any) -> None:
    link.sendall(json.dumps({"op": op, **content}).encode() + b"\n")


def main() -> None:
    host, _, port = sys.argv[-1].rpartition(":")
    if len(sys.argv) != 2 or not host or not port.isdigit():
        sys.exit("usage: python vllm_listen.py HOST:PORT, as 127.0.0.1:7000")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        Listener().serve(host, int(port))
    except KeyboardInterrupt:
        pass
    except (OSError, OverflowError) as error:
        sys.exit(f"cannot wait at {sys.argv[1]}: {error}")


if __name__ == "__main__":
    main()
