"""Reward models at work: GRPO with one among its rewards, beside the policy's adapter or as a second network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.recipes.killing import Death, killed
from tests.recipes.test_reward import right_ones
from tests.world import World, metrics, silent, write

from longtake.data.pairs import read_pairs
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.models.adapters import add_adapter
from longtake.models.heads import add_head
from longtake.recipes import grpo, reward
from longtake.records import Answer, Group
from longtake.rewards.model import RewardModel
from longtake.rewards.model import write as describe
from longtake.runtime.load import load_model
from longtake.train.adapter_settings import Adapter
from longtake.train.settings import Optim

CLOSE = 1e-5  # of a sum in float32
LORA = Adapter(kind="lora", rank=4, alpha=8.0)
Make = Callable[..., grpo.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def trained(world: World, tmp_path: Path) -> Path:
    """An untrained reward model."""
    model = load_model(world.model)
    add_adapter(model, "lora", 2, 4.0)
    add_head(model, seed=3)
    (tmp_path / "reward").mkdir()
    model.save(tmp_path / "reward")
    describe(tmp_path / "reward", (), ())
    return tmp_path / "reward"


@pytest.fixture
def config(world: World, trained: Path, tmp_path: Path) -> Make:
    def make(name: str = "run", **changed: Any) -> grpo.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "steps": 3, "questions": 3,
            "group_size": 3, "max_tokens": 6, "reward": ("format=2", f"model:{trained}=0.5"), "checkpoint_every": 1,
            "video": world.video(), "optim": Optim(lr=0.003, warmup=0), "seed": 1, "adapter": LORA, "keep_rollouts": 1,
        }  # fmt: skip
        return grpo.Config(**given | changed)

    return make


def run(config: grpo.Config) -> dict[str, Any]:
    log = silent()
    done = grpo.run(config, log)
    log.close()
    return done


@pytest.mark.parametrize("adapter", [LORA, Adapter(kind="full")], ids=["beside", "second"])
def test_its_score_is_part_of_the_reward(config: Make, trained: Path, adapter: Adapter) -> None:
    run(config(adapter=adapter))
    name = f"model:{trained}"
    rows = read_jsonl(config().out / "metrics.jsonl")
    assert all(row["groups_kept"] == 1.0 for row in rows)  # no two answers have the same score
    for row in rows:
        assert row["reward"] == pytest.approx(0.5 * row[f"reward_{name}"] + 2 * row["reward_format"], abs=CLOSE)
    kept = read_jsonl(config().out / "rollouts" / "000001.jsonl")
    answers = [answer for row in kept for answer in row["answers"]]
    assert all(a["reward"] == pytest.approx(0.5 * a["parts"][name] + 2 * a["parts"]["format"]) for a in answers)
    assert len({a["parts"][name] for a in answers}) > 1
    assert sorted(p.name for p in (config().out / "model").iterdir() if p.is_dir()) == []


def test_a_kill_changes_nothing(config: Make) -> None:
    run(config("whole"))
    killed("longtake.recipes.grpo", config("cut"), Death("longtake.log.log:Log.step", 3))
    run(config("cut"))
    assert metrics(config("cut").out) == metrics(config("whole").out)
    files = (f"{config(name).out}/model/adapter_model.safetensors" for name in ("whole", "cut"))
    one, other = (Path(file).read_bytes() for file in files)
    assert one == other


def test_what_does_not_exist_is_said_before_anything_is_made(config: Make, world: World, tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", world.model):
        with pytest.raises(UserError):
            run(config(reward=(f"model:{source}",)))
    assert not config().out.exists()


def test_a_changed_reward_model_is_noticed(config: Make, trained: Path) -> None:
    run(config(steps=1))
    assert str(trained) in read_json(config().out / "run.json")["reads"]
    describe(trained, (), (7,))
    with pytest.raises(UserError, match="has changed since this run read it"):
        run(config(steps=1))


def test_its_scores_are_those_of_the_answers_kept(
    config: Make, trained: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer got the score of its own tokens."""
    found: list[Any] = []
    real = RewardModel.scores

    def spied(self: Any, groups: Any, features: Any, ranks: Any) -> Any:
        scores = real(self, groups, features, ranks)
        alone = [
            [real(self, [type(g)(g.prompt, (a,))], features)[0][0] for a in g.answers] for g in groups
        ]  # fmt: skip
        found.append((scores, alone))
        return scores

    monkeypatch.setattr(RewardModel, "scores", spied)
    run(config(steps=1))
    for scores, alone in found:
        assert [len(own) for own in scores] == [3] * len(scores)
        for own, single in zip(scores, alone, strict=True):
            assert own == pytest.approx(single, abs=CLOSE)


@pytest.mark.parametrize("kind", ["lora", "alora", "full"])
def test_the_saved_model_gives_the_scores_that_were_kept(
    world: World, tmp_path: Path, kind: Literal["lora", "alora", "full"]
) -> None:
    """Also behind another answer of the same prompt, and with a suffix."""
    rows = [
        row | {"question_id": str(n), "prompt": f"{n} where is the ball ?", "data_type": "text"}
        for n, row in enumerate(right_ones(world))
    ]
    given = reward.Config(
        rows=write(tmp_path / "text.jsonl", rows), model=world.model, out=tmp_path / "run", batch=4, epochs=0.5,
        held_out=0.3, suffix=("so ?",), optim=Optim(lr=0.01, warmup=0),
        adapter=Adapter(kind="full") if kind == "full" else Adapter(kind=kind, rank=4, alpha=8.0),
    )  # fmt: skip
    log = silent()
    reward.run(given, log)
    log.close()
    policy = load_model(world.model)
    if kind != "full":
        add_adapter(policy, kind, 2, 4.0)
    one, end = RewardModel.open(policy, given.out / "model", name="reward"), policy.end_ids[0]
    assert (one.model is policy) == (kind != "full")
    for row, found in zip(read_jsonl(given.out / "scores.jsonl"), read_pairs(given.out / "scores.jsonl"), strict=True):
        ids = [policy.tokenizer(text)["input_ids"] for text in (found.chosen, found.rejected)]
        answers = tuple(Answer((*own, end), (0.0,) * (len(own) + 1), "", "stop", 0, "") for own in ids)
        (scores,) = one.scores([Group(policy.prompt(found.question, None, None), answers)], lambda handles: [])
        assert scores == pytest.approx([row["model_chosen"], row["model_rejected"]], abs=CLOSE)
        assert [len(own) + 1 for own in ids] == [row["tokens_chosen"], row["tokens_rejected"]]
