"""PPO on real films of the simulated world, against reward models that are known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary

from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.maths.ppo import AdaptiveKL
from longtake.models import adapters, heads
from longtake.recipes import ppo
from longtake.rewards import model as reward
from longtake.runtime import rows as runtime_rows
from longtake.runtime.load import load_model
from longtake.train import step
from longtake.train.adapter_settings import Adapter
from longtake.train.settings import Optim

Make = Callable[..., ppo.Config]
TOKENS, RANK = 6, 4
DEATHS = [
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.log.log:Log.step", 4),
    Death("longtake.train.session:step_optimizer", 6),
    Death("longtake.models.qwen3_vl:Qwen3VL.save", 2),
    Death("longtake.recipes.ppo:finish", 1),
]


@pytest.fixture(scope="module")
def base(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The world's network with words far enough apart for a LoRA to choose among them."""
    model, folder = load_model(world.model), tmp_path_factory.mktemp("base")
    with torch.no_grad():
        model.net.get_input_embeddings().weight.mul_(8)
    model.save(folder)
    return str(folder)


def reward_model(base: str, folder: Path, kind: str = "lora") -> Path:
    """A reward model whose scores depend on the answer."""
    model = load_model(base)
    adapters.add_adapter(model, kind, RANK, 8.0, seed=5)
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=random) * 0.2)
    heads.add_head(model, seed=7)
    folder.mkdir()
    model.save(folder)
    reward.write(folder, (), ())
    return folder


@pytest.fixture
def config(world: World, base: str, tmp_path: Path) -> Make:
    made: dict[str, Path] = {}

    def make(name: str = "run", kind: str = "lora", **changed: Any) -> ppo.Config:
        if kind not in made:
            made[kind] = reward_model(base, tmp_path / f"reward-{kind}", kind)
        given = {
            "rows": world.rows("rl"), "model": base, "reward_model": str(made[kind]), "out": tmp_path / name,
            "steps": 5, "questions": 4, "group_size": 3, "max_tokens": TOKENS, "checkpoint_every": 2,
            "keep_rollouts": 2, "video": world.video(), "optim": Optim(lr=0.003, warmup=0), "seed": 1,
            "adapter": Adapter(kind=kind, rank=RANK, alpha=8.0),
        }  # fmt: skip
        return ppo.Config(**given | changed)

    return make


def run(config: ppo.Config) -> dict[str, Any]:
    log = silent()
    done = ppo.run(config, log)
    log.close()
    return done


def steps(config: ppo.Config) -> list[dict[str, Any]]:
    return read_jsonl(config.out / "metrics.jsonl")


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_it_learns_what_the_reward_model_likes(config: Make, kind: str) -> None:
    given = config(kind=kind, steps=25, questions=8, group_size=8, kl=ppo.KL(beta=0.0), optim=Optim(lr=0.01, warmup=0))
    run(given)
    found = [row["score"] for row in steps(given)]
    assert sum(found[-3:]) / 3 > sum(found[:3]) / 3 + steps(given)[0]["score_std"] / 2
    assert read_json(given.out / "summary.json")["score"] == pytest.approx(sum(found[-2:]) / 2)


def test_the_kl_holds_it_back(config: Make) -> None:
    moved = {}
    for beta in (0.0, 5.0):
        given = config(f"beta-{beta:g}", steps=12, questions=8, kl=ppo.KL(beta=beta), optim=Optim(lr=0.01, warmup=0))
        run(given)
        moved[beta] = steps(given)[-1]["kl_ref"]
    assert moved[5.0] < 0.5 * moved[0.0]


def test_at_the_start_policy_and_reference_are_one(config: Make) -> None:
    run(config(steps=1, epochs=1, minibatches=1))
    (row,) = steps(config())
    assert row["kl_ref"] == pytest.approx(0, abs=1e-4)
    assert row["clipped"] == 0


def test_an_adaptive_weight_follows_the_kl(config: Make) -> None:
    given = config(kl=ppo.KL(beta=0.1, target=1e-4, horizon=10.0), optim=Optim(lr=0.01, warmup=0))
    run(given)
    found = steps(given)
    assert found[0]["beta"] == 0.1
    for before, after in pairwise(found):
        want = AdaptiveKL(before["beta"], 1e-4, 10.0).after(before["kl_ref"], 12)
        assert after["beta"] == pytest.approx(want.beta, rel=1e-9)
        assert after["beta"] != before["beta"]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    given = {"kl": ppo.KL(beta=0.1, target=0.01, horizon=20.0)}
    whole, cut = config("whole", **given), config("cut", **given)
    want = run(whole)
    killed("longtake.recipes.ppo", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) | {"model": want["model"]} == want
    for part in (".", "value"):
        for file in ("adapter_model.safetensors", "scalar_head.safetensors"):
            found = [out / "model" / part / file for out in (whole.out, cut.out)]
            if part == "value" or file.startswith("adapter"):
                one, other = map(load_file, found)
                assert all(one[name].equal(other[name]) for name in one)
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)


def test_the_value_model_begins_as_the_reward_model(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says of an answer's end, before it has learned, is the score."""
    from longtake.train import ppo as pieces

    seen: list[float] = []
    real = pieces.experience

    def spy(session: Any, answered: Any, *more: Any) -> Any:
        model = session.model
        same = [
            torch.equal(model.adapter.weights("value")[name], weight)
            for name, weight in model.adapter.weights("reward").items()
        ]
        hidden = torch.randn(3, model.heads["reward"].weight.shape[0])
        seen.append(all(same) and torch.equal(model.heads["value"](hidden), model.heads["reward"](hidden)))
        return real(session, answered, *more)

    monkeypatch.setattr(pieces, "experience", spy)
    run(config(steps=2))
    assert seen == [True, False]


def test_a_prefix_is_computed_once_in_all_under_an_alora(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    prefixes: list[int] = []
    real = runtime_rows.compute

    def spy(model: Any, row: Any, *more: Any) -> Any:
        prefixes.append(sum(segment.length for segment in row.layout.segments))
        return real(model, row, *more)

    for module in (runtime_rows, step, reward):
        monkeypatch.setattr(module, "compute", spy)
    given = config(kind="alora", steps=4, questions=8, video=config().video.model_copy(update={"frames": (4,)}))
    run(given)
    assert len(prefixes) == 8  # every film once in the whole run, whichever of four adapters acts on its answers


def test_an_answer_that_is_cut_off_is_punished(config: Make) -> None:
    run(config("plain", steps=1))
    run(config("hard", steps=1, reward=ppo.Reward(unfinished=3.0, length=2.0)))
    plain, hard = steps(config("plain"))[0], steps(config("hard"))[0]
    assert plain["score"] == hard["score"]  # the model's own
    lost = 3.0 * (1 - plain["finished"]) + 2.0 * plain["length"] / TOKENS
    assert hard["shaped"] == pytest.approx(plain["shaped"] - lost, abs=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"adapter": Adapter(kind="full")}, "ppo trains adapters"),
        ({"minibatches": 9}, "do not make 9"),
        ({"clip": (0.0, 0.2)}, "above 0"),
    ],
)
def test_settings_that_cannot_be(config: Make, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**wrong)


def test_a_reward_model_of_another_kind(config: Make, base: str, tmp_path: Path) -> None:
    other = reward_model(base, tmp_path / "other", "alora")
    with pytest.raises(UserError, match="two kinds"):
        run(config(reward_model=str(other)))
    with pytest.raises(UserError, match="no reward model"):
        run(config("second", reward_model=base))
