"""An OpenAI-compatible endpoint in a thread of the test: says what it is told to, as often as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from typing_extensions import override

Request = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """Example: Reply(429, '{"error": {"message": "slow down"}}', {"Retry-After": "0.01"})."""

    status: int = 200
    body: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0  # before anything is sent


def says(text: str, tokens: tuple[int, int] = (100, 7)) -> Reply:
    """A chat completion."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return Reply(body=json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}))


def refuses(status: int, message: str = "no", **headers: str) -> Reply:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": message}}), named)


@dataclass
class Endpoint:
    """Where it listens, and every request it got (the JSON, its path and key)."""

    url: str
    requests: list[Request] = field(default_factory=list)
    most: int = 0  # requests that were there at once


Answer = Callable[[Request, int], Reply]  # the request, how many came before it


@contextmanager
def endpoint(answer: Answer) -> Iterator[Endpoint]:
    """Listens on a free port until the block ends."""
    lock, now = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        @override
        def log_message(self, *_: Any) -> None:
            """Says nothing."""

        def do_POST(self) -> None:
            nonlocal now
            raw = self.rfile.read(int(self.headers["Content-Length"]))
            request = json.loads(raw) | {"path": self.path, "key": self.headers["Authorization"]}
            with lock:
                number = len(found.requests)
                found.requests.append(request)
                now += 1
                found.most = max(found.most, now)
            reply = answer(request, number)
            time.sleep(reply.seconds)
            with lock:
                now -= 1
            body = reply.body.encode()
            try:
                self.send_response(reply.status)
                for name, value in ({"Content-Type": "application/json"} | reply.headers).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client went away

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Endpoint(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def silent() -> Iterator[Endpoint]:
    """An endpoint that answers nobody for as long as it is there."""
    over = threading.Event()

    def waits(*_: object) -> Reply:
        over.wait()
        return Reply()

    with endpoint(waits) as there:
        try:
            yield there
        finally:
            over.set()


def text_of(request: Request) -> str:
    """The last text part of a request."""
    return str([part["text"] for part in request["messages"][0]["content"] if part["type"] == "text"][-1])
