"""Pass rates and the files they make, the same however often the run was killed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary

from longtake.data.rows import read_questions
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.recipes import difficulty

DEATHS = [
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.recipes.difficulty:append_jsonl", 2),
    Death("longtake.recipes.difficulty:write_jsonl", 2),
    Death("longtake.recipes.difficulty:finish", 1),
]

Make = Callable[..., difficulty.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    def make(name: str = "run", **changed: Any) -> difficulty.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "answers": 6, "easy_from": 0.4,
            "max_tokens": 8, "batch": 3, "video": world.video(4), "seed": 2,
        }  # fmt: skip
        return difficulty.Config(**given | changed)

    return make


def run(config: difficulty.Config) -> dict[str, Any]:
    log = silent()
    done = difficulty.run(config, log)
    log.close()
    return done


def splits(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {name: read_jsonl(folder / f"{name}.jsonl") for name in difficulty.SPLITS}


def test_every_question_lands_in_one_split_by_its_pass_rate(config: Make, world: World) -> None:
    done = run(config())
    found = splits(config().out)
    rates = {row["id"]: row["pass_rate"] for rows in found.values() for row in rows}
    assert sorted(rates) == sorted(question.id for question in read_questions(world.rows("rl")))
    assert sum(map(len, found.values())) == done["questions"] == 8
    assert all(row["pass_rate"] >= 0.4 for row in found["easy"])
    assert all(0 < row["pass_rate"] < 0.4 for row in found["medium"])
    assert all(row["pass_rate"] == 0 for row in found["hard"])
    assert {name: len(rows) for name, rows in found.items()} == {name: done[name] for name in difficulty.SPLITS}
    assert min(done[name] for name in ("medium", "hard")) > 0
    assert set(rates.values()) <= {k / 6 for k in range(7)}
    assert done["pass_rate"] == pytest.approx(sum(rates.values()) / 8)
    assert done["pass_at_k"] == sum(rate > 0 for rate in rates.values()) / 8
    assert sum(done["histogram"].values()) == 8
    assert read_json(config().out / "summary.json") == done


def test_a_pass_rate_is_the_share_of_right_answers(config: Make) -> None:
    run(config(batch=8))
    rates = {row["id"]: row["pass_rate"] for rows in splits(config().out).values() for row in rows}
    kept = read_jsonl(config().out / "rollouts" / "000001.jsonl")
    assert len(kept) == 8
    for group in kept:
        right = [answer["correct"] for answer in group["answers"]]
        assert len(right) == 6
        assert rates[group["id"]] == sum(right) / 6
        assert {answer["advantage"] for answer in group["answers"]} == {None}


def test_the_files_are_rows_for_the_next_stage(config: Make, world: World) -> None:
    run(config())
    asked = {question.id: question for question in read_questions(world.rows("rl"))}
    for name, rows in splits(config().out).items():
        if not rows:
            continue
        for question in read_questions(config().out / f"{name}.jsonl"):
            before = asked[question.id]
            assert (question.text, question.options, question.answer) == (before.text, before.options, before.answer)
            assert Path(question.video or "").samefile(before.video or "")
            assert question.evidence == before.evidence


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    whole, cut = config("whole"), config("cut")
    run(whole)
    killed("longtake.recipes.difficulty", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    run(cut)
    assert splits(cut.out) == splits(whole.out)
    assert (cut.out / "right.jsonl").read_bytes() == (whole.out / "right.jsonl").read_bytes()
    assert summary(cut.out) == summary(whole.out)
    assert (cut.out / "rates.jsonl").read_bytes() == (whole.out / "rates.jsonl").read_bytes()
    assert metrics(cut.out) == metrics(whole.out)


def test_batches_change_nothing(config: Make) -> None:
    for name, size in (("three", 3), ("all", 8)):
        run(config(name, batch=size))
    assert splits(config("three").out) == splits(config("all").out)


def test_what_is_done_is_not_done_again(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(config())
    monkeypatch.setattr("longtake.runtime.load.load_model", lambda *_: pytest.fail("it loads the model"))
    assert run(config()) == want
    with pytest.raises(UserError, match="answers was 6, now 7"):
        run(config(answers=7))
