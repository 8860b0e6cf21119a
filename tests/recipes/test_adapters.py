"""GRPO and SFT with adapters and cheap prefix gradients, end to end on real films."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent

from longtake.errors import UserError
from longtake.log import read_json
from longtake.recipes import grpo, sft
from longtake.runtime.load import load_model
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.settings import Optim

SINGLE = 1e-4  # weights of two runs in float32 whose sums were added in another order
LORA = {kind: Adapter(kind=kind, rank=4, alpha=8.0) for kind in ("lora", "alora")}

Make = Callable[..., grpo.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    (tmp_path / "my.py").write_text("def score(text, row):\n    return sum(map(ord, text)) % 17 / 16\n")

    def make(name: str = "run", **changed: Any) -> grpo.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "steps": 4, "questions": 3,
            "group_size": 3, "max_tokens": 6, "reward": (f"{tmp_path / 'my.py'}:score",), "checkpoint_every": 2,
            "video": world.video(), "optim": Optim(lr=0.003, warmup=0), "seed": 1,
        }  # fmt: skip
        return grpo.Config(**given | changed)

    return make


def run(config: Any) -> dict[str, Any]:
    log = silent()
    done = (grpo if isinstance(config, grpo.Config) else sft).run(config, log)
    log.close()
    return done


def adapters(folder: Path) -> dict[str, torch.Tensor]:
    model = load_model(folder, device="cpu")
    return {name: p.detach() for name, p in model.adapter.weights().items()}


def counts(config: grpo.Config) -> dict[str, int]:
    return read_json(config.out / "run.json")["counts"]["prefixes"]


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_an_adapter_learns_and_alone_is_saved(world: World, config: Make, kind: str) -> None:
    run(config("run", adapter=LORA[kind]))
    folder = config("run").out / "model"
    assert not (folder / "model.safetensors").exists()
    learned = adapters(folder)
    assert any(x.abs().max() > 1e-4 for name, x in learned.items() if "lora_B" in name)
    assert load_model(folder).adapter.kind == kind
    notes = read_json(config("run").out / "run.json")["notes"]
    assert any("self-check" in note for note in notes)


def test_prefixes_of_an_alora_are_computed_once_in_a_run(config: Make) -> None:
    """Eight steps of three out of eight questions, each at one of two numbers of frames."""
    run(config("run", adapter=LORA["alora"], steps=8))
    found = counts(config())
    assert found["made"] <= 16
    assert found["made"] + found["ram"] == 24
    assert found["remade"] == found["disk"] == 0


def test_prefixes_on_disk_outlive_the_run(config: Make, tmp_path: Path) -> None:
    shared = Memory(prefixes=tmp_path / "prefixes")
    run(config("one", adapter=LORA["alora"], memory=shared))
    run(config("two", adapter=LORA["alora"], memory=shared))
    run(config("three", adapter=LORA["alora"]))
    assert counts(config("one"))["made"] > 0
    assert counts(config("two"))["made"] == 0
    assert counts(config("two"))["disk"] > 0
    want = adapters(config("three").out / "model")
    for name in ("one", "two"):
        for key, x in adapters(config(name).out / "model").items():
            assert torch.equal(x, want[key])


@pytest.mark.parametrize("memory", [Memory(keep="layers"), Memory(row_tokens=1), Memory(answer_tokens=1, tile=3)])
def test_what_is_held_at_once_changes_nothing(config: Make, memory: Memory) -> None:
    run(config("plain", adapter=LORA["lora"]))
    run(config("other", adapter=LORA["lora"], memory=memory))
    want = adapters(config("plain").out / "model")
    for name, x in adapters(config("other").out / "model").items():
        assert (x - want[name]).abs().max() < SINGLE


@pytest.mark.parametrize("gradient", ["exact", "none", 0.5])
def test_the_backward_through_prefixes_comes_as_often_as_asked(
    config: Make, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished, backward = [], []
    step = __import__("longtake.train.step", fromlist=["finish"])
    real, whole = step.finish, step.backward
    monkeypatch.setattr(
        step, "finish", lambda model, made, scale, tile: finished.append(scale) or real(model, made, scale, tile)
    )
    policy = __import__("longtake.train.policy", fromlist=["backward"])
    monkeypatch.setattr(policy, "backward", lambda *a, **k: backward.append(1) or whole(*a, **k))
    run(config("run", prefix_gradient=gradient, steps=6))
    assert len(backward) > 10
    if gradient == 0.5:
        assert set(finished) == {2.0}
        assert 0.2 * len(backward) < len(finished) < 0.8 * len(backward)
    else:
        assert finished == ([1.0] * len(backward) if gradient == "exact" else [])


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_a_kill_changes_nothing(config: Make, kind: str, tmp_path: Path) -> None:
    run(config("whole", adapter=LORA[kind], prefix_gradient="exact" if kind == "alora" else 0.5))
    cut = config("cut", adapter=LORA[kind], prefix_gradient="exact" if kind == "alora" else 0.5)
    killed("longtake.recipes.grpo", cut, Death("longtake.train.session:step_optimizer", 4))
    run(cut)
    want = adapters(config("whole").out / "model")
    for name, x in adapters(cut.out / "model").items():
        assert torch.equal(x, want[name])
    assert [r["reward"] for r in metrics(cut.out)] == [r["reward"] for r in metrics(config("whole").out)]


def test_supervised_learning_with_an_alora(world: World, tmp_path: Path) -> None:
    """Chains are learned by the adapter; a second run goes on with it."""
    given = {
        "rows": world.rows("sft"), "model": world.model, "out": tmp_path / "one", "steps": 40, "batch": 8,
        "adapter": LORA["alora"], "optim": Optim(lr=0.03, warmup=0), "video": world.video(),
    }  # fmt: skip
    run(sft.Config(**given))
    losses = [row["loss"] for row in metrics(tmp_path / "one")]
    assert losses[-1] < 0.9 * losses[0]
    run(sft.Config(**given | {"model": str(tmp_path / "one" / "model"), "out": tmp_path / "two", "steps": 2}))
    assert metrics(tmp_path / "two")[0]["loss"] < 0.95 * losses[0]


def test_settings_without_effect_are_refused(config: Make, tmp_path: Path) -> None:
    for flag, memory, kind in (
        ("prefixes", Memory(prefixes=tmp_path), "lora"),
        ("keep", Memory(keep="layers"), "alora"),
        ("prefixes-disk", Memory(prefixes_disk=3.0), "alora"),
    ):
        with pytest.raises(UserError, match=rf"--memory\.{flag}"):
            run(config(flag, adapter=LORA[kind], memory=memory))
    with pytest.raises(UserError, match="--prefix-gradient"):
        run(config("gradient", adapter=LORA["alora"], prefix_gradient=0.5))


def test_a_finished_run_is_known(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    done = run(config("run", adapter=LORA["lora"], steps=1))
    monkeypatch.setattr("longtake.train.session.open_session", lambda *_, **__: pytest.fail("it began again"))
    assert run(config("run", adapter=LORA["lora"], steps=1)) == done
