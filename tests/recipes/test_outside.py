"""GRPO and PPO on answers from elsewhere: an engine that computes the same learns the same, any other is corrected."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.train.test_outside import Elsewhere
from tests.world import World, metrics, silent

from longtake.engines.local import LocalEngine
from longtake.errors import UserError
from longtake.recipes import grpo
from longtake.train import engines
from longtake.train.adapter_settings import Adapter
from longtake.train.engine_settings import Engine
from longtake.train.outside import Outside
from longtake.train.settings import Optim

CLOSE = 1e-3  # of weights: log-probabilities of both engines are float32
VLLM = Engine(kind="vllm", python=Path(sys.executable), gate=9.0)

Make = Callable[..., grpo.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    (tmp_path / "my.py").write_text("def score(text, row):\n    return sum(map(ord, text)) % 17 / 16\n")

    def make(name: str, **changed: Any) -> grpo.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "steps": 3, "questions": 3,
            "group_size": 4, "max_tokens": 8, "reward": (f"{tmp_path / 'my.py'}:score",), "video": world.video(),
            "optim": Optim(lr=0.003, warmup=0), "seed": 1, "adapter": Adapter(kind="full"),
        }  # fmt: skip
        return grpo.Config(**given | changed)

    return make


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], list[str]]:
    """Puts an engine that is off by so much in vLLM's place; returns the versions of weights that it gets."""

    def put(off: float) -> list[str]:
        loaded: list[str] = []

        @contextmanager
        def outside_of(settings: Engine, session: Any, log: Any) -> Iterator[Outside | None]:
            if settings.kind == "local":
                yield None
                return
            engine = Elsewhere(LocalEngine(session.model, session.films.features, "elsewhere"), off)
            engine.loaded = loaded
            yield Outside(engine, session.passes, settings.cap, settings.gate)

        monkeypatch.setattr(engines, "outside_of", outside_of)
        return loaded

    return put


def run(config: grpo.Config) -> dict[str, torch.Tensor]:
    log = silent()
    try:
        return load_file(Path(grpo.run(config, log)["model"]) / "model.safetensors")
    finally:
        log.close()


@pytest.mark.parametrize("more", [{}, {"epochs": 2, "minibatches": 2}, {"algorithm": "rloo"}])
def test_the_same_kernels_learn_the_same(config: Make, elsewhere: Callable[[float], list[str]], more: Any) -> None:
    loaded = elsewhere(0.0)
    here, there = run(config("here", **more)), run(config("there", engine=VLLM, **more))
    assert loaded == ["step-0", "step-1", "step-2"]
    assert max(float((here[name] - there[name]).abs().max()) for name in here) < CLOSE
    rows = metrics(config("there").out)
    assert all(row["engine_gap"] < 1e-4 and row["engine_masked"] == 0 for row in rows)
    assert "engine_gap" not in metrics(config("here").out)[0]


def test_other_kernels_are_weighed(config: Make, elsewhere: Callable[[float], list[str]]) -> None:
    elsewhere(0.02)
    plain, weighed = (
        run(config(name, engine=VLLM.model_copy(update={"cap": cap}))) for name, cap in (("p", 0.0), ("w", 1.02))
    )
    rows = metrics(config("w").out)
    assert all(row["engine_kl"] > 0 for row in rows)
    assert any(0 < row["engine_masked"] < 1 for row in rows)
    assert all(row["engine_masked"] == 0 for row in metrics(config("p").out))
    assert max(float((plain[name] - weighed[name]).abs().max()) for name in plain) > 1e-5


def test_the_gate_is_shut(config: Make, elsewhere: Callable[[float], list[str]]) -> None:
    elsewhere(0.02)
    with pytest.raises(UserError, match="do not agree"):
        run(config("shut", engine=VLLM.model_copy(update={"gate": 1e-4})))
