"""Scalar heads: what they say, how they begin, which are saved, what of a file does not load."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models import heads
from longtake.runtime.load import load_model

WIDTH = 32


def test_a_head_is_a_weighted_sum_of_every_state(exact):
    head = heads.add_head(exact, "one", seed=3)
    head.bias.data.fill_(0.7)
    hidden = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(0)).double()
    want = [sum(h * w for h, w in zip(row, head.weight, strict=True)) + 0.7 for row in hidden]
    assert_close(head(hidden), torch.stack(want))
    assert exact.heads.pop("one") is head


def test_it_begins_as_trls(folder):
    """N(0, 1 / (E + 1)) by its seed alone, in float32 also on a network in half precision."""
    model = load_model(folder, "bfloat16", "cpu")
    every = torch.stack([heads.add_head(model, seed=seed).weight.detach() for seed in range(200)])
    assert every.dtype == torch.float32
    assert abs(every.std() * math.sqrt(WIDTH + 1) - 1) < 0.005  # a deviation of the estimate is 0.009
    assert abs(every.mean()) < 0.01
    torch.manual_seed(99)
    assert torch.equal(heads.add_head(model, seed=7).weight, every[7])
    assert model.heads["default"].bias == 0
    assert model.heads["default"](torch.ones(2, WIDTH, dtype=torch.bfloat16)).dtype == torch.float32


def test_those_that_learn_are_saved_and_come_back(folder, tmp_path):
    model = load_model(folder, device="cpu")
    made = {name: heads.add_head(model, name, seed=n) for n, name in enumerate(("default", "value", "reward"))}
    made["value"].bias.data.fill_(0.3)
    made["reward"].requires_grad_(False)
    heads.save(model.heads, tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == [
        "scalar_head.safetensors",
        "value/scalar_head.safetensors",
    ]
    again = load_model(folder, device="cpu")
    assert heads.load(again, tmp_path, "default", trainable=False)
    assert heads.load(again, tmp_path / "value", "value", trainable=True)
    for name in ("default", "value"):
        assert torch.equal(again.heads[name].weight, made[name].weight)
        assert torch.equal(again.heads[name].bias, made[name].bias)
    assert [again.heads[name].weight.requires_grad for name in ("default", "value")] == [False, True]


def test_a_head_that_is_not_there_or_does_not_fit(folder, tmp_path):
    model = load_model(folder, device="cpu")
    assert not heads.load(model, tmp_path)
    assert model.heads == {}
    heads.add_head(model)
    heads.save(model.heads, tmp_path)
    state = load_file(tmp_path / heads.FILE)
    save_file({name: x[:-1] if x.dim() else x for name, x in state.items()}, tmp_path / heads.FILE)
    with pytest.raises(UserError, match="does not load"):
        heads.load(model, tmp_path)
    (tmp_path / heads.FILE).write_bytes(b"no tensors")
    with pytest.raises(UserError, match="does not load"):
        heads.load(model, tmp_path)
