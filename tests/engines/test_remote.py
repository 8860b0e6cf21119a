"""One request to an endpoint that behaves, and to those that do not: what is asked again, counted and said."""

from __future__ import annotations

import base64
import builtins
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from email.utils import formatdate
from time import time
from typing import Any

import pytest
from tests.endpoint import Endpoint, Reply, endpoint, refuses, says, silent, text_of

from longtake.engines import remote
from longtake.engines.remote import Heard, Remote
from longtake.errors import UserError

SCHEMA = {"type": "object", "properties": {"better": {"type": "string"}}, "required": ["better"]}


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that would have been waited; nobody waits."""
    found: list[float] = []
    monkeypatch.setattr("tenacity.nap.sleep_using_event.__call__", lambda _, seconds: found.append(seconds))
    return found


@contextmanager
def asked(*replies: Reply, **given: Any) -> Iterator[tuple[Remote, Endpoint]]:
    """An endpoint that gives these replies in turn, the last one for ever."""
    with endpoint(lambda _, number: replies[min(number, len(replies) - 1)]) as there:
        client = Remote(there.url, "judge-1", **{"retries": 2, "timeout": 60.0, **given})
        yield client, there
        client.close()


def heard(replies: Sequence[Reply], **given: Any) -> Heard:
    with asked(*replies, **given) as (client, _):
        return client.chat("Which?", [], 16)


def test_a_request_holds_frames_words_and_limits() -> None:
    with asked(says("B"), key="s3") as (client, there):
        got = client.chat("Which?", [b"one", b"two"], 16, said="Two frames:", temperature=0.5, seed=3)
    assert got == Heard("B", "stop", 100, 7, 1, (), "")
    (request,) = there.requests
    said, first, second, asking = request["messages"][0]["content"]
    assert (said["text"], asking["text"]) == ("Two frames:", "Which?")
    shown = [part["image_url"]["url"].removeprefix("data:image/jpeg;base64,") for part in (first, second)]
    assert [base64.b64decode(one) for one in shown] == [b"one", b"two"]
    assert (request["model"], request["max_tokens"]) == ("judge-1", 16)
    assert (request["temperature"], request["seed"]) == (0.5, 3)
    assert (request["path"], request["key"]) == ("/v1/chat/completions", "Bearer s3")


def test_what_is_not_given_is_not_sent() -> None:
    with asked(says("B")) as (client, there):
        client.chat("Which?", [], 16)
    assert not {"temperature", "seed", "response_format"} & there.requests[0].keys()


@pytest.mark.parametrize(
    ("trouble", "name"),
    [
        (refuses(429), "429"),
        (refuses(500), "500"),
        (refuses(503), "503"),
        (Reply(200, "not JSON"), "garbage"),
        (Reply(200, "<html>", {"Content-Type": "text/html"}), "garbage"),
        (Reply(200, "[]"), "garbage"),
        (Reply(200, '{"choices": []}'), "garbage"),
        (Reply(200, '{"choices": [{"message": null}]}'), "garbage"),
        (Reply(200, ""), "empty"),
        (says(""), "empty"),
        (says(" \n"), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_another_moment_may_mend_is_asked_again(trouble: Reply, name: str) -> None:
    got = heard([trouble, says("A")])
    assert (got.text, got.calls, got.troubles, got.error) == ("A", 2, (name,), "")
    lost = heard([trouble])
    assert (lost.text, lost.calls, lost.troubles) == ("", 3, (name,) * 3)
    assert lost.error


def test_an_endpoint_that_says_nothing_is_left(waits: list[float]) -> None:
    with silent() as there:
        client = Remote(there.url, "judge-1", retries=1, timeout=0.1)
        got = client.chat("Which?", [], 16)
        client.close()
    assert (got.calls, got.troubles, got.error) == (2, ("timeout", "timeout"), "no answer in time")
    assert waits == [1.0]


def test_nobody_there() -> None:
    client = Remote("http://127.0.0.1:9/v1", "judge-1", retries=1)
    got = client.chat("Which?", [], 16)
    client.close()
    assert got.troubles == ("connection", "connection")
    assert got.error.startswith("no connection: ")


def test_waits_double_or_are_as_long_as_told(waits: list[float]) -> None:
    heard([refuses(500)], retries=4)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    waits.clear()
    date = formatdate(time() + 500, usegmt=True)
    heard([refuses(429, Retry_After="7"), refuses(429, Retry_After=date), refuses(429, Retry_After="soon")])
    assert waits[0] == 7.0
    assert 400 < waits[1] <= 500
    assert len(waits) == 2


def test_waits_have_an_end(waits: list[float]) -> None:
    heard([refuses(500)], retries=9)
    assert max(waits) == remote.LONGEST_WAIT
    waits.clear()
    assert heard([refuses(429, Retry_After="86400")]).troubles == ("429",)
    assert waits == []


def test_what_is_wrong_in_itself_is_asked_once() -> None:
    got = heard([refuses(400, "maximum context length is 4096 tokens")])
    assert (got.calls, got.troubles) == (1, ("400",))
    assert got.error == "400: maximum context length is 4096 tokens"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_of_everybody_ends_the_run(status: int) -> None:
    with asked(refuses(status, "invalid key")) as (client, there), pytest.raises(UserError) as caught:
        client.chat("Which?", [], 16)
    assert (caught.value.where, caught.value.why) == (there.url, f"{status}: invalid key")
    assert len(there.requests) == 1


def test_json_is_asked_for_where_the_endpoint_takes_a_schema() -> None:
    with asked(says('{"better": "A"}')) as (client, there):
        assert client.chat("Which?", [], 16, schema=SCHEMA).text == '{"better": "A"}'
    (request,) = there.requests
    assert request["response_format"]["json_schema"]["schema"] == SCHEMA
    assert text_of(request) == "Which?\n\nAnswer as JSON with the keys better."


def test_an_endpoint_without_schemas_is_asked_plainly_from_then_on() -> None:
    with asked(refuses(400, "unknown field response_format"), says("A"), says("B"), retries=0) as (client, there):
        got = client.chat("Which?", [], 16, schema=SCHEMA)
        assert (got.text, got.calls, got.troubles) == ("A", 2, ())
        assert client.chat("Which?", [], 16, schema=SCHEMA).calls == 1
    assert ["response_format" in request for request in there.requests] == [True, False, False]
    assert text_of(there.requests[1]) == "Which?"


def test_the_limit_has_two_names() -> None:
    refusal = refuses(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
    with asked(refusal, says("A"), says("B"), retries=0) as (client, there):
        assert client.chat("Which?", [], 16).text == "A"
        client.chat("Which?", [], 16)
    assert [request.get("max_completion_tokens") for request in there.requests] == [None, 16, 16]
    assert "max_tokens" not in there.requests[1]


def test_a_closed_client_waits_for_nobody() -> None:
    with asked(refuses(500), retries=5) as (client, there):
        client.stop.set()
        assert client.chat("Which?", [], 16).troubles == ("500",)
    assert len(there.requests) == 1


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **named: Any) -> Any:
        if name == "openai":
            raise ModuleNotFoundError("No module named 'openai'", name="openai")
        return real(name, *args, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="needs openai") as caught:
        Remote("http://127.0.0.1:9/v1", "judge-1")
    assert ".[remote]" in caught.value.fix
