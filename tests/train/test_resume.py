"""Checkpoints: whole or not there, the newest is found, older ones go, and a run taken up again steps as before."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.world import World, weights

from longtake.models.qwen3_vl import Qwen3VL
from longtake.runtime.load import load_model
from longtake.train import resume
from longtake.train.resume import Progress
from longtake.train.step import adamw, step_optimizer

FILES = {
    *("config.json", "generation_config.json", "model.safetensors", "optimizer.pt", "preprocessor_config.json"),
    *("progress.json", "tokenizer.json", "tokenizer_config.json", "video_preprocessor_config.json"),
}


class Killed(BaseException):
    """Nobody catches it."""


@pytest.fixture
def model(world: World) -> Qwen3VL:
    return load_model(world.model, device="cpu")


def optimizer_of(model: Qwen3VL) -> torch.optim.Optimizer:
    return adamw(model.net.parameters(), 0.01, (0.9, 0.95), 0.01)


def learn(model: Qwen3VL, optimizer: torch.optim.Optimizer, seed: int) -> None:
    """A step on gradients that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    params = list(model.net.parameters())
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)
    step_optimizer(optimizer, params, count=1.0, lr=0.01, max_norm=1.0)


def same(model: Qwen3VL, other: Qwen3VL) -> bool:
    return all(torch.equal(a, b) for a, b in zip(model.net.parameters(), other.net.parameters(), strict=True))


def test_training_goes_on_as_if_it_had_never_stopped(model: Qwen3VL, world: World, tmp_path: Path) -> None:
    whole, optimizer = load_model(world.model, device="cpu"), optimizer_of(model)
    straight = optimizer_of(whole)
    for seed in range(4):
        learn(whole, straight, seed)
        if seed < 2:
            learn(model, optimizer, seed)
    resume.save(tmp_path, Progress(2, 8), model, optimizer)
    progress, folder = resume.latest(tmp_path) or pytest.fail("nothing found")
    assert progress == Progress(2, 8, False, "")
    again = load_model(folder, device="cpu")
    assert same(again, model)
    optimizer = optimizer_of(again)
    optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    for seed in (2, 3):
        learn(again, optimizer, seed)
    assert same(again, whole)


def test_a_checkpoint_is_all_that_is_needed(model: Qwen3VL, tmp_path: Path) -> None:
    target = resume.save(tmp_path, Progress(7, 3, True, "reached"), model, optimizer_of(model))
    assert target == tmp_path / "000007"
    assert {file.name for file in target.iterdir()} >= FILES - {"preprocessor_config.json"}
    assert json.loads((target / "progress.json").read_text()) == {
        "step": 7, "taken": 3, "done": True, "reason": "reached", "beta": None,
    }  # fmt: skip


@pytest.mark.parametrize("keep", [1, 2])
def test_older_ones_go(model: Qwen3VL, tmp_path: Path, keep: int) -> None:
    for step in (2, 4, 10):
        resume.save(tmp_path, Progress(step), model, optimizer_of(model), keep=keep)
    assert [path.name for path in resume.whole(tmp_path)] == ["000002", "000004", "000010"][-keep:]
    assert resume.latest(tmp_path) == (Progress(10), tmp_path / "000010")


@pytest.mark.parametrize("dies", ["model", "optimizer", "rename"])
def test_half_a_checkpoint_is_none(model: Qwen3VL, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str) -> None:
    optimizer = optimizer_of(model)
    resume.save(tmp_path, Progress(2, 1), model, optimizer)
    before = weights(tmp_path / "000002")
    learn(model, optimizer, 0)

    def kill(*_: object) -> None:
        raise Killed

    owner, name = {"model": (Qwen3VL, "save"), "optimizer": (torch, "save"), "rename": (Path, "replace")}[dies]
    monkeypatch.setattr(owner, name, kill)
    with pytest.raises(Killed):
        resume.save(tmp_path, Progress(4, 2), model, optimizer)
    monkeypatch.undo()
    assert (tmp_path / "000004.part").exists()
    assert not (tmp_path / "000004").exists()
    assert resume.latest(tmp_path) == (Progress(2, 1), tmp_path / "000002")
    assert weights(tmp_path / "000002") == before
    resume.save(tmp_path, Progress(4, 2), model, optimizer)
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]


def test_the_same_step_may_be_saved_again(model: Qwen3VL, tmp_path: Path) -> None:
    optimizer = optimizer_of(model)
    resume.save(tmp_path, Progress(4, 1), model, optimizer)
    resume.save(tmp_path, replace(Progress(4, 1), done=True), model, optimizer)
    assert resume.latest(tmp_path) == (Progress(4, 1, True), tmp_path / "000004")


def test_without_a_checkpoint(tmp_path: Path) -> None:
    assert resume.latest(tmp_path / "none") is None
    (tmp_path / "000003").mkdir()
    assert resume.latest(tmp_path) is None


def test_the_trained_model_replaces_an_older_one(model: Qwen3VL, tmp_path: Path) -> None:
    target = resume.save_model(tmp_path / "model", model)
    (target / "left over").touch()
    learn(model, optimizer_of(model), 0)
    assert resume.save_model(tmp_path / "model", model) == target
    assert same(load_model(target, device="cpu"), model)
    assert not (target / "left over").exists()
    assert not (target / "optimizer.pt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
