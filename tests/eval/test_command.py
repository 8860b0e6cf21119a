"""Evaluation of a real (tiny) model on real films: what is asked, what is counted, and what a kill leaves."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent

from longtake.data.cache import FrameTier
from longtake.data.rows import read_questions
from longtake.errors import UserError
from longtake.eval import command
from longtake.log import read_json, read_jsonl
from longtake.train import rollout

DEATHS = [
    Death("longtake.log.log:Log.step", 2),
    Death("longtake.eval.command:write_jsonl", 4),
    Death("longtake.eval.command:append_jsonl", 10),  # a question's sampled answer is written, its greedy one is not
    Death("longtake.eval.command:append_jsonl", 33),
    Death("longtake.eval.command:finish", 1),
]

Make = Callable[..., command.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    def make(name: str = "run", **changed: Any) -> command.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "max_tokens": 8, "batch": 3,
            "video": world.video(4, 8), "controls": ("no_video", "shuffled", "one_frame"), "seed": 2,
        }  # fmt: skip
        return command.Config(**given | changed)

    return make


def run(config: command.Config) -> dict[str, Any]:
    log = silent()
    found = command.run(config, log)
    log.close()
    return found


def outcomes(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {file.stem: read_jsonl(file) for file in sorted((folder / "outcomes").iterdir())}


def test_every_setting_is_asked_sampled_and_greedy(config: Make, world: World) -> None:
    found = run(config())
    asked = [(s["frames"], s["control"], s["temperature"]) for s in found["settings"]]
    settings = [(4, ""), (8, ""), (8, "no_video"), (8, "shuffled"), (8, "one_frame")]
    assert sorted(asked) == sorted((*setting, heat) for setting in settings for heat in (0.0, 1.0))
    files = outcomes(config().out)
    assert sorted(files) == sorted(f"{n}-{way}-{c or 'none'}" for n, c in settings for way in ("sampled", "greedy"))
    ids = [question.id for question in read_questions(world.rows("rl"))]
    for name, rows in files.items():
        assert [row["id"] for row in rows] == ids, name
    assert json.loads((config().out / "eval.json").read_text()) == json.loads(json.dumps(found))
    assert read_json(config().out / "run.json")["status"] == "done"


def test_accuracies_are_shares_of_the_outcomes(config: Make) -> None:
    found = run(config())
    files = outcomes(config().out)
    for setting in found["settings"]:
        way = "sampled" if setting["temperature"] else "greedy"
        rows = files[f"{setting['frames']}-{way}-{setting['control'] or 'none'}"]
        assert setting["n"] == len(rows) == 8
        assert setting["accuracy"] == pytest.approx(sum(row["correct"] for row in rows) / 8)
        for kind, part in setting["by_kind"].items():
            own = [row["correct"] for row in rows if row["kind"] == kind]
            assert (part["n"], part["accuracy"]) == (len(own), pytest.approx(sum(own) / len(own)))


def test_every_outcome_says_what_was_seen(config: Make) -> None:
    run(config())
    files = outcomes(config().out)
    assert {tuple(row["receipt"]["indices"]) for row in files["4-greedy-none"]} == {(16, 48, 80, 112)}
    assert {tuple(row["receipt"]["indices"]) for row in files["8-greedy-one_frame"]} == {(64, 64)}
    assert {row["receipt"] for row in files["8-greedy-no_video"]} == {None}
    for true, mixed in zip(files["8-greedy-none"], files["8-greedy-shuffled"], strict=True):
        assert sorted(mixed["receipt"]["indices"]) == true["receipt"]["indices"]
        assert mixed["receipt"]["indices"] != true["receipt"]["indices"]


def test_greedy_answers_do_not_hang_on_the_seed_and_sampled_ones_do(config: Make) -> None:
    for name, seed in (("a", 2), ("b", 3)):
        run(config(name, seed=seed, controls=()))
    one, other = (outcomes(config(name).out) for name in ("a", "b"))
    assert one["8-greedy-none"] == other["8-greedy-none"]
    assert [row["text"] for row in one["8-sampled-none"]] != [row["text"] for row in other["8-sampled-none"]]


def test_batches_change_nothing(config: Make) -> None:
    for name, size in (("three", 3), ("all", 100)):
        run(config(name, batch=size))
    assert outcomes(config("three").out) == outcomes(config("all").out)


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    whole, cut = config("whole"), config("cut")
    want = run(whole)
    killed("longtake.eval.command", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) == want
    assert outcomes(cut.out) == outcomes(whole.out)
    assert metrics(cut.out) == metrics(whole.out)


def test_a_killed_setting_goes_on_in_its_middle(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole batches that are on disk are not asked again: of eight questions three were, of the fourth half."""
    killed("longtake.eval.command", config(), Death("longtake.eval.command:append_jsonl", 8))
    parts = sorted((config().out / "outcomes").iterdir())
    assert [(part.name, len(read_jsonl(part))) for part in parts] == [
        ("4-greedy-none.part.jsonl", 3), ("4-sampled-none.part.jsonl", 4),
    ]  # fmt: skip
    asked: list[list[str]] = []
    real = rollout.rollout

    def spied(engine: Any, films: Any, looks: Any, *rest: Any) -> Any:
        asked.append([look.question.id for look in looks])
        return real(engine, films, looks, *rest)

    monkeypatch.setattr(rollout, "rollout", spied)
    run(config())
    ids = [f"q{n}" for n in range(8)]
    batches = [ids[:3], ids[3:6], ids[6:]]
    assert asked == batches[1:] + 4 * batches
    assert not list((config().out / "outcomes").glob("*.part.jsonl"))


def test_a_film_is_decoded_once_whatever_is_asked_of_it(config: Make, world: World, tmp_path: Path) -> None:
    """The single frame of a control lies in the run's window too."""
    tier = tmp_path / "tier"
    video = world.video(4, start=2.0, workers=1).model_copy(update={"tier": tier})
    run(config(video=video))
    assert set(FrameTier(tier).decodes().values()) == {1}
    assert len(FrameTier(tier).decodes()) == 8
    files = outcomes(config().out)
    seen = {name: [row["receipt"]["seconds"] for row in rows] for name, rows in files.items() if "video" not in name}
    assert len(seen) == 6
    assert min(second for rows in seen.values() for seconds in rows for second in seconds) >= 2.0
    assert {tuple(seconds) for seconds in seen["4-greedy-one_frame"]} == {(5.0, 5.0)}  # the middle of 2 s to 8 s


def test_what_is_done_is_not_done_again(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(config())
    monkeypatch.setattr("longtake.runtime.load.load_model", lambda *_: pytest.fail("it loads the model"))
    assert json.loads(json.dumps(run(config()))) == json.loads(json.dumps(want))
    with pytest.raises(UserError, match="max_tokens was 8, now 9"):
        run(config(max_tokens=9))


def test_blind_needs_no_model(world: World) -> None:
    found = run(command.Config(rows=world.rows("rl"), blind=True))
    assert found["clean"]["n"] == 8


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "model is missing"),
        ({"blind": True, "max_tokens": 3, "batch": 2}, "leave out batch, max_tokens"),
        ({"model": "m", "controls": ("shuffled", "one_frame", "shuffled")}, "each at most once"),
    ],
)
def test_settings_that_contradict_each_other(world: World, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        command.Config(rows=world.rows("rl"), **given)
