"""How a run opens: rows and films that cannot be used are counted and left out, and a killed run is taken up again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.world import World, silent, without, write

from longtake.data.rows import sift_examples, sift_questions
from longtake.errors import UserError
from longtake.log import Log, RunFolder, read_json, read_jsonl
from longtake.recipes import sft
from longtake.records import FramePolicy
from longtake.runtime.load import load_model
from longtake.sim.tiny import PIXELS
from longtake.train.adapter_settings import Adapter
from longtake.train.footage import decode, open_films
from longtake.train.resume import Progress
from longtake.train.session import Session, open_session, read_rows


@pytest.fixture
def log(tmp_path: Path) -> Log:
    made = silent()
    made.open(RunFolder.open(tmp_path / "run", "sft", {}))
    return made


def rows_of(world: World) -> list[dict[str, Any]]:
    """Questions with absolute paths, for a file elsewhere."""
    rows = read_jsonl(world.rows("rl"))
    for number, row in enumerate(rows):
        row["messages"][0]["content"][0]["video"] = str(world.film(number))
    return rows


def session_of(world: World, log: Log, *, train_vision: bool = False) -> Session:
    assert log.folder is not None
    config = sft.Config(
        rows=world.rows("sft"),
        model=world.model,
        out=log.folder.path,
        video=world.video(),
        dtype="auto",
        adapter=Adapter(kind="full"),
    )
    return open_session(config, log, train_vision=train_vision)


def test_a_malformed_row_is_left_out_and_counted(world: World, log: Log, tmp_path: Path) -> None:
    rows = [*rows_of(world), {"id": "bad"}]
    file = write(tmp_path / "rows.jsonl", rows)
    questions = read_rows(sift_questions, file, world.video(most_failed=0.2), log)
    assert [question.id for question in questions] == [f"q{n}" for n in range(8)]
    assert log.folder is not None
    (bad,) = read_jsonl(log.folder.path / "bad_rows-rows.jsonl")
    assert (bad["place"], bad["id"]) == (9, "bad")
    (note,) = read_json(log.folder.path / "run.json")["notes"]
    assert "1 malformed rows" in note
    assert str(file) in note
    with pytest.raises(UserError, match=r"rows\.jsonl:9"):
        read_rows(sift_questions, file, world.video(most_failed=0.1), log)


def test_without_a_usable_row_there_is_no_run(world: World, log: Log, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no rows"):
        read_rows(sift_questions, write(tmp_path / "none.jsonl", []), world.video(), log)
    with pytest.raises(UserError, match="no answer to learn from"):
        read_rows(sift_examples, write(tmp_path / "rl.jsonl", rows_of(world)), world.video(most_failed=1.0), log)


def test_a_film_that_fails_is_left_out_and_counted(world: World, log: Log, tmp_path: Path) -> None:
    rows = rows_of(world)
    rows[3]["messages"][0]["content"][0]["video"] = str(tmp_path / "gone.mp4")
    rows.append(without(rows[3], "id") | {"id": "again"})
    file = write(tmp_path / "rows.jsonl", rows)
    films = open_films(load_model(world.model, device="cpu"), world.video(), tmp_path / "run", frozen=True)
    questions, _ = sift_questions(file)
    usable = decode(films, questions, world.video(most_failed=0.2, workers=1), log)
    assert [question.id for question in usable] == [f"q{n}" for n in (0, 1, 2, 4, 5, 6, 7)]
    assert log.folder is not None
    told = read_json(log.folder.path / "run.json")["films"]
    assert told["used"] == 7
    assert [film["path"] for film in told["quarantined"]] == [str(tmp_path / "gone.mp4")]
    with pytest.raises(UserError, match="1 of 8 films"):
        decode(films, questions, world.video(most_failed=0.1, workers=1), log)


def test_films_of_several_files_add_up(world: World, log: Log, tmp_path: Path) -> None:
    """Training rows, then held-out ones; then a gate without rows."""
    films = open_films(load_model(world.model, device="cpu"), world.video(), tmp_path / "run", frozen=True)
    questions, _ = sift_questions(world.rows("rl"))
    for part in (questions[:5], questions[4:7], []):
        assert decode(films, part, world.video(), log) == part
    assert log.folder is not None
    assert read_json(log.folder.path / "run.json")["films"]["used"] == 7


def test_a_run_without_a_usable_film_ends_in_words(world: World, log: Log, tmp_path: Path) -> None:
    rows = rows_of(world)[:1]
    rows[0]["messages"][0]["content"][0]["video"] = str(tmp_path / "gone.mp4")
    films = open_films(load_model(world.model, device="cpu"), world.video(), tmp_path / "run", frozen=True)
    questions, _ = sift_questions(write(tmp_path / "rows.jsonl", rows))
    with pytest.raises(UserError, match="1 of 1 films"):
        decode(films, questions, world.video(most_failed=1.0, workers=1), log)


def test_films_are_decoded_for_all_that_may_be_drawn(world: World, log: Log, tmp_path: Path) -> None:
    video = world.video(2, 6).model_copy(update={"tier": tmp_path / "tier", "workers": 1})
    films = open_films(load_model(world.model, device="cpu"), video, tmp_path / "run", frozen=True)
    questions, _ = sift_questions(world.rows("rl"))
    gate = video.window(3)
    assert gate == FramePolicy(frames=3, max_pixels=PIXELS)
    decode(films, questions[:2], video, log, lambda q: [*video.policies(q), video.merged(q.policy, gate)])
    assert set(films.tier.decodes().values()) == {1}
    for frames in (2, 3, 6):
        films.tier.take(questions[0].video or "", FramePolicy(frames=frames, max_pixels=PIXELS), films.model.fit)
    assert set(films.tier.decodes().values()) == {1}


def test_the_tower_is_frozen_unless_it_is_trained(world: World, log: Log) -> None:
    session = session_of(world, log)
    assert not any(weight.requires_grad for weight in session.model.tower.parameters())
    assert session.films.store is not None
    learning = {id(p) for p in session.params}
    assert learning == {id(p) for p in session.model.net.parameters()} - {
        id(p) for p in session.model.tower.parameters()
    }
    trained = session_of(world, log, train_vision=True)
    assert all(weight.requires_grad for weight in trained.model.net.parameters())
    assert len(trained.params) == len(list(trained.model.net.parameters()))
    assert trained.films.store is None


def test_a_killed_run_is_taken_up_where_it_stood(world: World, log: Log) -> None:
    session = session_of(world, log)
    for step in range(1, 6):
        log.step(step, 9, {"loss": float(step)})
        session.progress = replace(session.progress, step=step, taken=4 * step)
        if step == 3:
            session.checkpoint()
    again = session_of(world, log)
    assert again.progress == Progress(3, 12)
    assert log.folder is not None
    assert [row["step"] for row in read_jsonl(log.folder.path / "metrics.jsonl")] == [1, 2, 3]
    assert "goes on from step 3" in json.loads((log.folder.path / "run.json").read_text())["notes"]
