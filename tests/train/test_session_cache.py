"""What a run tells of its features, and which settings of films it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.world import World, silent

from longtake.data.rows import read_questions
from longtake.errors import UserError
from longtake.log import Log, RunFolder, read_json, read_jsonl
from longtake.records import FramePolicy, Question
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model
from longtake.sim.tiny import PIXELS
from longtake.train.footage import decode, encode, open_films
from longtake.train.settings import Video

POLICY = FramePolicy(frames=4, max_pixels=PIXELS)


@pytest.fixture(scope="module")
def questions(world: World) -> list[Question]:
    return read_questions(world.rows("rl"))


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = silent()
    made.open(RunFolder.open(tmp_path / "run", "sft", {}))
    return made


def films_of(world: World, folder: Path, **more: Any) -> Films:
    return open_films(load_model(world.model, device="cpu"), world.video(**more), folder / "run", frozen=True)


def test_hits_are_in_every_row_and_counts_in_run_json(
    world: World, log: Log, tmp_path: Path, questions: list[Question]
) -> None:
    films = films_of(world, tmp_path, features=tmp_path / "features")
    looks = [Look(q, POLICY) for q in questions[:4]]
    for step, asked in enumerate((looks[:2], looks[:4], looks[1:3]), 1):
        encode(films, asked, log)
        films.features([films.prompt(look).features or "" for look in asked])
        log.step(step, 3, {"loss": 1.0})
    log.close()
    rows = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    assert [row["features_hit"] for row in rows] == [0.0, 0.5, 1.0]
    told = read_json(tmp_path / "run" / "run.json")
    nothing = {"disk": 0, "remade": 0, "evicted": 0, "damaged": 0}
    assert told["counts"] == {"features": nothing | {"ram": 8, "made": 4}}
    again = films_of(world, tmp_path, features=tmp_path / "features")
    encode(again, looks, log)
    log.step(4, 4, {"loss": 1.0})
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]["features_hit"] == 1.0


def test_a_run_says_what_its_features_will_take(
    world: World, log: Log, tmp_path: Path, questions: list[Question]
) -> None:
    films = films_of(world, tmp_path, features=tmp_path / "features")
    decode(films, questions, world.video(4, 8), log)
    for _ in range(2):
        encode(films, [Look(q, POLICY) for q in questions[:2]], log)
    (note,) = read_json(tmp_path / "run" / "run.json")["notes"]
    assert note.startswith(f"features of {2 * len(questions)} sets of frames take about")
    assert str(tmp_path / "features") in note


def test_without_a_folder_nothing_goes_to_disk(
    world: World, log: Log, tmp_path: Path, questions: list[Question]
) -> None:
    encode(films_of(world, tmp_path), [Look(q, POLICY) for q in questions[:2]], log)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_settings_that_would_have_no_effect_are_refused(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="features_disk has no effect without a folder"):
        Video(features_disk=3.0)
    assert Video(features=tmp_path, features_disk=3.0, features_ram=0.0).features_disk == 3.0
    model = load_model(world.model, device="cpu")
    for idle in ({"features": tmp_path}, {"features_ram": 1.0}):
        with pytest.raises(UserError, match=r"(?s)nothing is cached.*--video.features.*tower is trained"):
            open_films(model, world.video(**idle), tmp_path, frozen=False)


def test_a_cap_that_caps_nothing_is_refused(world: World, log: Log, tmp_path: Path, questions: list[Question]) -> None:
    with pytest.raises(UserError, match=r"(?s)no effect.*--video.max-frames"):
        decode(films_of(world, tmp_path), questions[:2], world.video(4, max_frames=8), log)
    rated = [questions[0], replace(questions[1], policy=FramePolicy(fps=4.0, start=0.0, end=2.0))]
    films = films_of(world, tmp_path)
    for part in (rated, questions[:1], []):  # training rows with a rate of their own, held-out rows without
        assert decode(films, part, world.video(4, max_frames=8), log) == part
    by_rate = world.video().model_copy(update={"fps": 4.0, "end": 2.0})
    assert decode(films_of(world, tmp_path), questions[:1], by_rate, log) == questions[:1]
    assert decode(films_of(world, tmp_path), questions[:1], world.video(4), log) == questions[:1]
