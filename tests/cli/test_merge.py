"""`longtake merge`: an adapter's folder becomes one plain model that says the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models.test_adapters import logits
from tests.world import World

from longtake.cli.main import main
from longtake.log import read_json
from longtake.models import adapters, heads
from longtake.rewards import model as reward
from longtake.runtime.load import load_model

SINGLE = 1e-5  # of states in float32: products in another order
Captured = pytest.CaptureFixture[str]


def adapter(world: World, folder: Path, kind: adapters.Kind = "lora", *, scores: bool = False) -> Path:
    """A model with an adapter that does something."""
    model = load_model(world.model)
    adapters.add_adapter(model, kind, 4, 8.0, seed=5)
    random = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=random) * 0.2)
    if scores:
        heads.add_head(model, seed=7)
    folder.mkdir()
    model.save(folder)
    return reward.write(folder, ("rate it",), (1, 2)) if scores else folder


def states(folder: Path) -> torch.Tensor:
    model = load_model(folder)
    with torch.no_grad():
        return logits(model, model.tokenizer("where is the ball at the end ?")["input_ids"])


def test_it_says_the_same_without_an_adapter(world: World, tmp_path: Path, capsys: Captured) -> None:
    folder, out = adapter(world, tmp_path / "adapter"), tmp_path / "plain"
    assert main(["merge", str(folder), "--out", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    assert not (out / "adapter_config.json").exists()
    assert load_model(out).adapter is None
    want = states(folder)
    assert (states(out) - want).abs().max() <= SINGLE * want.abs().max()
    base = states(Path(world.model))
    assert (want - base).abs().max() > 0.01 * base.abs().max()


def test_in_another_dtype(world: World, tmp_path: Path) -> None:
    folder, out = adapter(world, tmp_path / "adapter"), tmp_path / "plain"
    assert main(["merge", str(folder), "--out", str(out), "--dtype", "bfloat16"]) == 0
    assert {x.dtype for x in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_a_reward_model_stays_one(world: World, tmp_path: Path) -> None:
    folder, out = adapter(world, tmp_path / "adapter", scores=True), tmp_path / "plain"
    assert main(["merge", str(folder), "--out", str(out)]) == 0
    assert reward.find(out) == out
    assert read_json(out / reward.FILE) == {"suffix": ["rate it"], "suffix_ids": [1, 2]}
    assert (out / heads.FILE).read_bytes() == (folder / heads.FILE).read_bytes()


def test_what_cannot_be_merged_is_said(world: World, tmp_path: Path, capsys: Captured) -> None:
    activated = adapter(world, tmp_path / "activated", "alora")
    for model, said in (
        (world.model, "nothing to merge\n  where: "),
        (str(activated), f"an aLoRA cannot be merged\n  where: {activated}\n"),
        ("/no/such/model", "no such model\n"),
    ):
        assert main(["merge", model, "--out", str(tmp_path / "plain")]) == 1
        err = capsys.readouterr().err
        assert err.startswith(said)
        assert "  do: " in err
        assert not (tmp_path / "plain").exists()


def test_nothing_is_written_over(world: World, tmp_path: Path, capsys: Captured) -> None:
    folder = adapter(world, tmp_path / "adapter")
    before = (folder / "adapter_config.json").read_bytes()
    assert main(["merge", str(folder), "--out", str(folder)]) == 1
    assert capsys.readouterr().err.startswith("there is something already\n")
    assert (folder / "adapter_config.json").read_bytes() == before
    (tmp_path / "empty").mkdir()
    assert main(["merge", str(folder), "--out", str(tmp_path / "empty")]) == 0
