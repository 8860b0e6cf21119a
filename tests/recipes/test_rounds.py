"""Judge and DPO in turns: each round on questions of its own, from where the round before ended."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tests.endpoint import Endpoint, endpoint, says
from tests.recipes.judges import PATIENCE, TINY, fair
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary

from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.recipes import rounds
from longtake.train.adapter_settings import Adapter
from longtake.train.judge_settings import Judge
from longtake.train.settings import Optim

QUESTIONS, ROUNDS = 8, 2
CLOSE = 1e-5  # of sums that were rounded to float32
DEATHS = [
    Death("longtake.recipes.judge:finish", 1),
    Death("longtake.recipes.dpo:finish", 1),
    Death("longtake.train.asking:append_jsonl", 30),  # the second round's judge
    Death("longtake.log.log:Log.step", 9),  # its dpo: three of each judge, two of each dpo
    Death("longtake.recipes.rounds:finish", 1),
]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def there() -> Iterator[Endpoint]:
    """A judge with one opinion, whatever the order."""
    with endpoint(fair) as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the one run that nothing kills: what is done is not done again."""
    return tmp_path_factory.mktemp("rounds") / "whole"


def config(world: World, out: Path, url: str, **changed: Any) -> rounds.Config:
    given = {
        "rows": world.rows("rl"), "model": world.model, "out": out, "rounds": ROUNDS, "max_tokens": 6, "batch": 2,
        "epochs": 1.0, "held_out": 0.0, "seed": 4, "video": world.video(4), "context": TINY,
        "judge": Judge(url=url, model="judge-1", workers=2, retries=1, timeout=PATIENCE),
        "optim": Optim(lr=0.02, warmup=0), "adapter": Adapter(rank=4, alpha=8.0),
    }  # fmt: skip
    return rounds.Config(**given | changed)


def run(config: rounds.Config) -> dict[str, Any]:
    log = silent()
    try:
        return rounds.run(config, log)
    finally:
        log.close()


def asked(config: rounds.Config, number: int) -> list[str]:
    """Questions that a round's judge looked at."""
    return [row["question_id"] for row in read_jsonl(config.out / f"round-{number}" / "judge" / "judged.jsonl")]


def learned(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model" / "adapter_model.safetensors")


def test_every_round_asks_other_questions_and_goes_on_from_the_last(world: World, home: Path, there: Endpoint) -> None:
    given = config(world, home, there.url)
    done = run(given)
    first, second = (asked(given, number) for number in (1, 2))
    assert sorted(first + second) == [f"q{n}" for n in range(QUESTIONS)]
    homes = [given.out / f"round-{number}" for number in (1, 2)]
    starts = [
        read_json(folder / stage / "run.json")["config"]["model"] for folder in homes for stage in ("judge", "dpo")
    ]
    assert starts == [world.model] * 2 + [str(homes[0] / "dpo" / "model")] * 2
    assert done["model"] == str(homes[1] / "dpo" / "model")
    assert [one["kept"] for one in done["rounds"]] == [QUESTIONS // ROUNDS] * 2
    for folder in homes:
        (row, *_) = read_jsonl(folder / "dpo" / "metrics.jsonl")
        assert row["margin"] == pytest.approx(0, abs=CLOSE)  # the reference is what the round begins with
        assert row["reward_chosen"] == pytest.approx(0, abs=CLOSE)
    one, other = (learned(folder / "dpo") for folder in homes)
    assert all(not one[name].equal(other[name]) for name in one if "lora_B" in name)
    assert read_json(given.out / "run.json")["status"] == "done"
    assert read_json(given.out / "summary.json") == done == run(given)


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(world: World, home: Path, tmp_path: Path, there: Endpoint, death: Death) -> None:
    whole, cut = (config(world, folder, there.url) for folder in (home, tmp_path / "cut"))
    want = run(whole)
    killed("longtake.recipes.rounds", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut)["rounds"] == want["rounds"]
    assert summary(cut.out) == summary(whole.out)
    for number in (1, 2):
        one, other = (given.out / f"round-{number}" for given in (whole, cut))
        for name, weight in learned(one / "dpo").items():
            assert weight.equal(learned(other / "dpo")[name]), name
        assert metrics(one / "dpo") == metrics(other / "dpo")
        assert asked(whole, number) == asked(cut, number)


def test_a_judge_without_an_opinion_ends_the_run(world: World, tmp_path: Path) -> None:
    with endpoint(lambda *_: says("A is better.")) as there:
        given = config(world, tmp_path / "run", there.url)
        for _ in range(2):  # again: what was judged is known
            with pytest.raises(UserError, match="round 1 has too few pairs") as caught:
                run(given)
    assert "kept 0 pairs of 4, a step learns from 2" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 6
    assert read_json(given.out / "run.json")["status"] != "done"
    assert not (given.out / "round-1" / "dpo").exists()


def test_fewer_questions_than_rounds(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="8 questions for 9 rounds"):
        run(config(world, tmp_path / "run", "http://127.0.0.1:9/v1", rounds=9))


def test_films_are_found_from_the_rows(world: World, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not for rounds"):
        config(world, tmp_path, "http://x/v1", video=world.video(4, root=tmp_path))
