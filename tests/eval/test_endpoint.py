"""Evaluation and difficulty of a model behind a URL: frames out, words back, nothing loaded here."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError
from tests.endpoint import Reply, Request, endpoint, refuses, says, text_of
from tests.world import World, silent

from longtake.errors import UserError
from longtake.eval import command
from longtake.log import read_jsonl
from longtake.recipes import difficulty, grpo
from longtake.train.context_settings import Context
from longtake.train.engine_settings import Engine

TIMES = {"timeout": 60.0, "retries": 1}


def config(world: World, out: Path, url: str, **changed: Any) -> command.Config:
    given = {
        "rows": world.rows("rl"), "model": "judge-7", "out": out, "video": world.video(4), "batch": 3,
        "engine": Engine(kind="remote", url=url, max_pixels=1024, workers=3, **TIMES),
    }  # fmt: skip
    return command.Config(**given | changed)


def run(stage: Any, config: Any) -> Any:
    log = silent()
    try:
        return stage.run(config, log)
    finally:
        log.close()


def right(request: Request, _: int = 0) -> Reply:
    """The first option, whatever is shown; a greedy question gets words more."""
    return says("<think> so </think> <answer> A </answer>" + " indeed" * (request["temperature"] == 0))


def pictures(request: Request) -> list[Image.Image]:
    parts = [part for part in request["messages"][0]["content"] if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(p["image_url"]["url"].partition(",")[2]))) for p in parts]


def test_every_question_is_asked_with_its_frames(world: World, tmp_path: Path) -> None:
    rows = read_jsonl(world.rows("rl"))
    with endpoint(right) as there:
        found = run(command, config(world, tmp_path / "run", there.url, controls=("no_video",)))
    assert len(there.requests) == 2 * 2 * len(rows)
    assert {request["model"] for request in there.requests} == {"judge-7"}
    shown = [request for request in there.requests if pictures(request)]
    assert len(shown) == 2 * len(rows)  # the control shows nothing
    assert all(len(pictures(one)) == 4 and max(p.width * p.height for p in pictures(one)) <= 1024 for one in shown)
    assert "shown by 4 of its frames, at " in shown[0]["messages"][0]["content"][0]["text"]
    asked = {text_of(request) for request in there.requests}
    assert asked == {row["messages"][0]["content"][-1]["text"] for row in rows}
    truth = sum(row["answer"] == "A" for row in rows) / len(rows)
    assert found["settings"][0]["accuracy"] == pytest.approx(truth)
    written = read_jsonl(tmp_path / "run" / "outcomes" / "4-greedy-none.jsonl")
    assert all(row["text"].endswith("indeed") and row["receipt"]["tokens"] == 0 for row in written)


def test_what_was_answered_is_kept_when_the_endpoint_goes_away(world: World, tmp_path: Path) -> None:
    down = True

    def dies(request: Request, number: int) -> Reply:
        return refuses(500, "no room") if down and number >= 8 else right(request)

    with endpoint(dies) as there:
        asked = config(world, tmp_path / "run", there.url)
        with pytest.raises(UserError, match="does not answer") as raised:
            run(command, asked)
        assert "500" in raised.value.why
        there.requests.clear()
        down = False
        run(command, asked)
    assert len(there.requests) == 16 - 8  # each of the first eight answers is kept
    assert len(read_jsonl(tmp_path / "run" / "answers.jsonl")) == 16


def test_a_model_that_never_comes_to_words_is_wrong_not_broken(world: World, tmp_path: Path) -> None:
    def thinks(request: Request, number: int) -> Reply:
        reply = json.loads(says("x", (90, 512)).body)
        reply["choices"][0] |= {"finish_reason": "length", "message": {"role": "assistant", "content": None}}
        return Reply(body=json.dumps(reply))

    with endpoint(thinks) as there:
        found = run(command, config(world, tmp_path / "run", there.url))
    assert len(there.requests) == 16
    assert found["settings"][0]["accuracy"] == 0
    rows = read_jsonl(tmp_path / "run" / "outcomes" / "4-greedy-none.jsonl")
    assert {(row["text"], row["tokens"]) for row in rows} == {("", 512)}


def test_difficulty_asks_it_too(world: World, tmp_path: Path) -> None:
    with endpoint(right) as there:
        found = run(difficulty, difficulty.Config(
            rows=world.rows("rl"), model="judge-7", out=tmp_path / "run", video=world.video(4), batch=3, answers=2,
            engine=Engine(kind="remote", url=there.url, **TIMES),
        ))  # fmt: skip
    assert found["medium"] == 0
    assert found["easy"] + found["hard"] == found["questions"] == len(there.requests) / 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"context": Context(rope="linear:2")}, "decides itself"),
        ({"dtype": "float32"}, "decides itself"),
    ],
)
def test_settings_that_it_would_ignore_are_refused(world: World, tmp_path: Path, changed: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(command, config(world, tmp_path / "run", "http://127.0.0.1:9/v1", **changed))


def test_features_are_not_sent(world: World, tmp_path: Path) -> None:
    video = world.video(4, features=tmp_path / "features")
    with pytest.raises(UserError, match="frames, not features"):
        run(command, config(world, tmp_path / "run", "http://127.0.0.1:9/v1", video=video))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "remote"}, "needs url"),
        ({"kind": "remote", "url": "localhost:8000"}, "needs url"),
        ({"kind": "local", "url": "http://x"}, "no effect"),
        ({"kind": "vllm"}, "needs either python"),
        ({"kind": "vllm", "python": Path(sys.executable), "url": "tcp://gpu:7000"}, "needs either python"),
        ({"kind": "vllm", "url": "http://gpu:7000"}, "url is like tcp"),
        ({"kind": "vllm", "python": Path(sys.executable), "workers": 2}, "no effect"),
    ],
)
def test_engine_settings_that_clash(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Engine(**given)


def test_what_only_training_reads_is_refused_elsewhere(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="nothing is learned"):
        config(world, tmp_path, "http://x", engine=Engine(kind="vllm", python=Path(sys.executable), cap=2.0))


def test_text_alone_is_nothing_to_learn_from(world: World, tmp_path: Path) -> None:
    remote = Engine(kind="remote", url="http://127.0.0.1:9/v1")
    with pytest.raises(ValidationError, match="nothing to learn from"):
        grpo.Config(rows=world.rows("rl"), model=world.model, engine=remote)
    with pytest.raises(ValidationError, match="alora needs engine local"):
        grpo.Config(
            rows=world.rows("rl"), model=world.model, adapter={"kind": "alora"},
            engine=Engine(kind="vllm", python=Path(sys.executable)),
        )  # fmt: skip


def test_a_python_that_is_not_there_is_said_at_once(world: World, tmp_path: Path) -> None:
    engine = Engine(kind="vllm", python=tmp_path / "python")
    with pytest.raises(UserError, match="no Python of vLLM"):
        run(command, config(world, tmp_path / "run", "http://x", engine=engine, model=world.model))
    with pytest.raises(UserError, match="no Python of vLLM"):
        run(grpo, grpo.Config(rows=world.rows("rl"), model=world.model, out=tmp_path / "g", engine=engine))
