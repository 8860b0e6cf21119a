"""How a worker of vLLM is reached: started beside us, or through vllm_listen.py, which waits for us elsewhere."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from longtake import engines
from longtake.engines.vllm_link import Begin
from longtake.engines.vllm_process import GRACE, Peer, Process
from longtake.errors import UserError

WORKER = Path(str(engines.__file__)).with_name("vllm_worker.py")
LISTENER = WORKER.with_name("vllm_listen.py")


def worker_at(place: Path | str) -> Begin:
    """By a Python that has vLLM, or "tcp://host:port". Example: worker_at(Path(".venv-vllm/bin/python"))."""

    def beside(shelf: Path, options: Mapping[str, Any], log: Path) -> Peer:
        # -I: no module beside the worker is taken for one of theirs
        return Process([str(place), "-I", str(WORKER), str(shelf), json.dumps(options)], log)

    def elsewhere(shelf: Path, options: Mapping[str, Any], log: Path) -> Peer:
        return Connection(str(place), shelf, options, log)

    return elsewhere if str(place).startswith("tcp://") else beside


class Connection(Peer):
    """A worker that somebody else started for us. It lives as long as the connection.

    Example: Connection("tcp://gpu-1:7000", shelf, {}, Path("engine.log")).hear(60.0).
    """

    def __init__(self, url: str, shelf: Path, options: Mapping[str, Any], log: Path) -> None:
        """It writes `log` and reads `shelf` under the same names. Raises UserError if nobody listens."""
        try:
            address = urlsplit(url)
            self._socket = socket.create_connection((address.hostname, address.port), timeout=GRACE)
        except (OSError, ValueError) as error:
            fix = f"start it there, with the Python that has vLLM: python {LISTENER.name} HOST:PORT (docs/vllm.md)"
            raise UserError("no worker of vLLM listens there", where=url, why=str(error), fix=fix) from error
        self._socket.settimeout(None)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().__init__(self._socket.makefile("rb"), log)
        own = blake2b(WORKER.read_bytes()).hexdigest()
        self.say("open", model=str(shelf), options=dict(options), log=str(log), worker=own)

    def hear(self, seconds: float) -> dict[str, Any]:
        """As every peer; the one between us tells how the worker ended."""
        message = super().hear(seconds)
        if message["op"] == "ended":
            raise self._gone(message["how"])
        return message

    def close(self) -> None:
        self.kill()

    def kill(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _send(self, line: bytes) -> None:
        self._socket.sendall(line)

    def _how(self) -> str:
        return "it hung up"
