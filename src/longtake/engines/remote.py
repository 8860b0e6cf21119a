"""Any OpenAI-compatible endpoint: text and pictures in, text out; asked again where that may help, and all counted."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from longtake.errors import UserError

if TYPE_CHECKING:
    from tenacity import RetryCallState

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds; doubled from try to try
Again = Literal["never", "later", "otherwise"]
LONGEST_TOLD = 600.0  # a server that wants us to wait longer will not have recovered within this run
AGAIN = {408, 409, 425, 429}  # and 5xx: another moment may be better
CLOSED = {401: "it wants another key", 403: "it does not allow this", 404: "it knows no such path or model"}
REFUSED = {400, 422}  # may be what was asked for beside the text: the schema, the name of the limit
EXTRA = "pip install -e '.[remote]' in the clone"


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one request. Example: Heard("<answer>A</answer>", "stop", 812, 9, 2, ("429",), "")."""

    text: str  # "" if it failed
    finish: str  # "stop" | "length" | what the endpoint calls it
    tokens_in: int  # as the endpoint counts them; 0 if it does not say
    tokens_out: int
    calls: int  # that the endpoint got
    troubles: tuple[str, ...]  # of each try that failed: its status, "timeout", "connection", "garbage" or "empty"
    error: str  # why the request failed after all tries, "" if it did not


class Trouble(Exception):
    """One try failed. `again`: never, later (after `wait` seconds if the server says so), or otherwise (at once)."""

    def __init__(self, name: str, why: str, again: Again, wait: float | None = None) -> None:
        super().__init__(why)
        self.name, self.again, self.wait = name, again, wait


class Remote:
    """A model behind a URL; may be called from several threads.

    Example: Remote("http://localhost:8000/v1", "Qwen/Qwen3-VL-8B-Instruct").chat("Which is better?", [], 64).text.
    """

    def __init__(self, url: str, model: str, key: str = "", *, retries: int = 5, timeout: float = 120.0) -> None:
        """`key` "" = none; `timeout` in seconds, of one try. Raises UserError where the packages are missing."""
        try:
            import openai
            import tenacity  # noqa: F401 — says now what chat() would say in a thread
        except ModuleNotFoundError as error:
            what = f"asking an endpoint needs {error.name}, which is not installed"
            raise UserError(what, fix=EXTRA) from error
        self.url, self.model, self.retries = url, model, retries
        self.stop = Event()  # set: nobody waits any more
        self._client = openai.OpenAI(base_url=url, api_key=key or "none", timeout=timeout, max_retries=0)
        self._limit = "max_tokens"
        self._takes_schema = True

    def close(self) -> None:
        """Lets go of waiting threads and connections."""
        self.stop.set()
        self._client.close()

    def chat(
        self,
        text: str,
        pictures: Sequence[bytes],
        max_tokens: int,
        *,
        said: str = "",
        temperature: float | None = None,
        seed: int | None = None,
        schema: Mapping[str, Any] | None = None,
        empty: bool = False,
    ) -> Heard:
        """One answer. `pictures` are JPEG files and come first, after the words `said` of them.

        With a `schema` the answer is asked for as JSON (one line is added to the text), and plainly where the endpoint
        takes none. `empty`: no words are an answer too, else they are asked for again. None = the endpoint's own
        temperature. A request that fails says so in `error`. Raises UserError
        where every other would fail as well: a wrong key, a wrong path, an unknown model.
        """
        from tenacity import Retrying, retry_if_exception, sleep_using_event

        given = {"temperature": temperature, "seed": seed}
        own = {name: value for name, value in given.items() if value is not None}
        troubles: list[str] = []
        calls = 0
        tries = Retrying(
            stop=lambda state: self.stop.is_set() or len(troubles) > self.retries or _told(state) > LONGEST_TOLD,
            wait=lambda state: _wait(state, len(troubles)),
            sleep=sleep_using_event(self.stop),
            retry=retry_if_exception(lambda error: isinstance(error, Trouble) and error.again != "never"),
            reraise=True,
        )
        try:
            for attempt in tries:
                with attempt:
                    calls += 1
                    content, extra = self._content(text, pictures, said, schema)
                    try:
                        return _read(self._post(content, max_tokens, own | extra), calls, troubles, empty=empty)
                    except Trouble as trouble:
                        troubles += [trouble.name] * (trouble.again != "otherwise")
                        raise
        except Trouble as trouble:
            return Heard("", "", 0, 0, calls, tuple(troubles), str(trouble))
        raise AssertionError("Retrying returns or raises")

    def _content(
        self, text: str, pictures: Sequence[bytes], said: str, schema: Mapping[str, Any] | None
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The user turn, and what is asked for beside it."""
        shown = [f"data:image/jpeg;base64,{b64encode(picture).decode()}" for picture in pictures]
        parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in shown]
        parts = [{"type": "text", "text": said}, *parts] if said else parts
        if schema is None or not self._takes_schema:
            return [*parts, {"type": "text", "text": text}], {}
        wanted = f"{text}\n\nAnswer as JSON with the keys {' and '.join(schema['required'])}."
        form = {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": dict(schema)}}
        return [*parts, {"type": "text", "text": wanted}], {"response_format": form}

    def _post(self, content: list[dict[str, Any]], max_tokens: int, extra: Mapping[str, Any]) -> str:
        """The body of the endpoint's reply. Raises Trouble, UserError."""
        import openai

        create: Any = self._client.chat.completions.with_raw_response.create
        asked = {"messages": [{"role": "user", "content": content}], self._limit: max_tokens, **extra}
        try:
            return str(create(model=self.model, **asked).http_response.text)
        except openai.APITimeoutError as error:
            raise Trouble("timeout", "no answer in time", "later") from error
        except openai.APIConnectionError as error:
            why = str(error.__cause__ or error).splitlines()[0]
            raise Trouble("connection", f"no connection: {why}", "later") from error
        except openai.APIStatusError as error:
            words = " ".join(str(error.message).split()).removeprefix(f"Error code: {error.status_code} - ")
            why = f"{error.status_code}: {words[:300]}"
            told = _seconds(error.response.headers.get("retry-after"))
            raise self._refusal(error.status_code, why, told, asked) from error

    def _refusal(self, status: int, why: str, told: float | None, asked: Mapping[str, Any]) -> Trouble:
        """What a reply that is no 200 means. Raises UserError where it means the same for every request."""
        if status in CLOSED:
            fix = "check its url, the model's name and the key file, then run the same command again"
            raise UserError(f"the endpoint refuses: {CLOSED[status]}", where=self.url, why=why, fix=fix)
        if status in REFUSED and "max_tokens" in asked and "max_completion_tokens" in why:
            self._limit = "max_completion_tokens"
            return Trouble(str(status), why, "otherwise")
        if status in REFUSED and "response_format" in asked:
            self._takes_schema = False
            return Trouble(str(status), why, "otherwise")
        return Trouble(str(status), why, "later" if status in AGAIN or status >= 500 else "never", told)


def _read(body: str, calls: int, troubles: Sequence[str], *, empty: bool) -> Heard:
    """The answer in a reply. Raises Trouble where there is none."""
    if not body.strip():
        raise Trouble("empty", "the reply is empty", "later")
    try:
        reply = json.loads(body)
        choice, used = reply["choices"][0], reply.get("usage") or {}
        text, finish = choice["message"].get("content"), str(choice.get("finish_reason") or "")
        counts = int(used.get("prompt_tokens") or 0), int(used.get("completion_tokens") or 0)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise Trouble("garbage", f"the reply is no chat completion: {body[:80]!r}", "later") from error
    if empty and text is None and finish:  # a model that thinks may come to its limit before its first word
        text = ""
    if not isinstance(text, str) or not (empty or text.strip()):
        raise Trouble("empty", f"the answer is empty (it ended by {finish!r})", "later")
    return Heard(text, finish, *counts, calls, tuple(troubles), "")


def _wait(state: RetryCallState, failed: int) -> float:
    """Seconds before the next try: what the server asked for, else twice as long as before."""
    trouble = state.outcome.exception() if state.outcome else None
    if isinstance(trouble, Trouble) and trouble.again == "otherwise":
        return 0.0
    return _told(state) or min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (failed - 1))


def _told(state: RetryCallState) -> float:
    """Seconds that the server asked us to wait; 0 if it did not."""
    trouble = state.outcome.exception() if state.outcome else None
    return (trouble.wait or 0.0) if isinstance(trouble, Trouble) else 0.0


def _seconds(header: str | None) -> float | None:
    """A Retry-After header: seconds, or a date (RFC 9110 §10.2.3); None if it is neither."""
    if header is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return None


def read_key(path: Path | None, option: str) -> str:
    """The key in a file, "" without a file. `option`: the setting that names it. Raises UserError."""
    if path is None:
        return ""
    fix = f"correct --{option.replace('_', '-')}"
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else None
        raise UserError("the key cannot be read", where=str(path), why=(why or str(error)).lower(), fix=fix) from None
    if not key:
        raise UserError("the key file is empty", where=str(path), fix="write the endpoint's key into it")
    return key
