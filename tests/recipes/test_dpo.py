"""DPO, IPO and SimPO on real films of the simulated world."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, stories, summary, write

from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.recipes import dpo
from longtake.sim.rows import chain
from longtake.train.settings import Optim

Make = Callable[..., dpo.Config]
PAIRS = 3  # on every film
CLOSE = 1e-5  # of sums that were rounded to float32
DEATHS = [
    Death("longtake.train.preference:append_jsonl", 3),
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.log.log:Log.step", 5),
    Death("longtake.models.qwen3_vl:Qwen3VL.save", 2),
    Death("longtake.recipes.dpo:finish", 1),
]


def pair_rows(world: World) -> list[dict[str, Any]]:
    """On every film a careful chain against chains that end in a wrong answer."""
    rows = []
    for number, story in enumerate(stories()):
        asked = read_jsonl(world.rows("rl"))[number]
        good = chain(story, "full")
        wrong = [option for option in story.options if option != story.truth]
        for place in range(PAIRS):
            bad = f"<think> so {wrong[place % len(wrong)]} </think> <answer> {wrong[place % len(wrong)]} </answer>"
            prompt = [{"role": "user", "content": asked["messages"][0]["content"]}]
            prompt[0]["content"][0]["video"] = str(world.film(number))
            rows.append({
                "id": f"p{number}-{place}", "question_id": f"q{number}", "prompt": prompt,
                "chosen": [{"role": "assistant", "content": good + " ?" * place}],
                "rejected": [{"role": "assistant", "content": bad + " ?" * place}],
            })  # fmt: skip
    return rows


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    rows = write(tmp_path / "pairs.jsonl", pair_rows(world))

    def make(name: str = "run", **changed: Any) -> dpo.Config:
        given = {
            "rows": rows, "model": world.model, "out": tmp_path / name, "batch": 4, "epochs": 1.5, "held_out": 0.3,
            "checkpoint_every": 2, "video": world.video(), "optim": Optim(lr=0.01, warmup=0), "seed": 1,
        }  # fmt: skip
        return dpo.Config(**given | changed)

    return make


def run(config: dpo.Config) -> dict[str, Any]:
    log = silent()
    done = dpo.run(config, log)
    log.close()
    return done


def learned(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "adapter_model.safetensors")


@pytest.mark.parametrize("loss", ["dpo", "ipo", "simpo"])
def test_it_learns_to_prefer(config: Make, loss: str) -> None:
    done = run(config(loss=loss, beta=0.5, epochs=4))
    first, *_, last = read_jsonl(config().out / "metrics.jsonl")
    assert last["loss"] < first["loss"]
    assert last["accuracy"] == 1.0
    assert last["margin"] > first["margin"]
    assert done["accuracy"] == 1.0  # of films that it never learned from
    assert done["pairs"] + done["held_out"] == PAIRS * 8
    assert done["held_out"] % PAIRS == 0
    assert done["held_out"] > 0


def test_at_the_start_policy_and_reference_are_one(config: Make) -> None:
    run(config(epochs=0.1))
    (row,) = read_jsonl(config().out / "metrics.jsonl")
    assert row["loss"] == pytest.approx(math.log(2), abs=CLOSE)
    assert row["margin"] == pytest.approx(0, abs=CLOSE)
    assert row["reward_chosen"] == pytest.approx(0, abs=CLOSE)


def test_the_reference_is_computed_once(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from longtake.train.preference import Pairs

    asked: list[str] = []
    real = Pairs.logprobs
    monkeypatch.setattr(Pairs, "logprobs", lambda self, *a: asked.extend(p.id for p in a[1]) or real(self, *a))
    done = run(config(held_out=0, epochs=3))
    assert sorted(asked) == sorted(f"p{n}-{k}" for n in range(8) for k in range(PAIRS))
    assert done["accuracy"] is None


def test_simpo_has_no_reference(config: Make) -> None:
    run(config(loss="simpo", epochs=0.1))
    assert not (config().out / "reference.jsonl").exists()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    whole, cut = config("whole"), config("cut")
    want = run(whole)
    killed("longtake.recipes.dpo", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) | {"model": want["model"]} == want
    for name, weight in learned(whole.out).items():
        assert weight.equal(learned(cut.out)[name]), name
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)


def test_a_reference_that_is_gone_is_said(config: Make) -> None:
    killed("longtake.recipes.dpo", config(), Death("longtake.log.log:Log.step", 5))
    (config().out / "reference.jsonl").unlink()
    with pytest.raises(UserError, match="reference is gone"):
        run(config())


def test_too_few_films_to_hold_out(config: Make, world: World, tmp_path: Path) -> None:
    rows = write(tmp_path / "one.jsonl", pair_rows(world)[:PAIRS])
    with pytest.raises(UserError, match="too few films"):
        run(config(rows=rows))


def test_fewer_pairs_than_a_step_needs(config: Make) -> None:
    with pytest.raises(UserError, match="--batch"):
        run(config(batch=100))


@pytest.mark.parametrize("wrong", [{"gamma": 1.0}, {"loss": "ipo", "smoothing": 0.1}, {"beta": 0.0}])
def test_a_setting_without_effect_is_refused(config: Make, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no effect|greater than 0"):
        config(**wrong)
