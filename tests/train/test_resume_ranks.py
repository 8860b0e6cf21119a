"""Checkpoints of several ranks: any number goes on from them, and whoever is killed or fails, one of them is whole."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from tests.models import tiny
from tests.ranks import run
from torch import nn
from torch.distributed.tensor import DTensor, distribute_tensor

from longtake.errors import UserError
from longtake.models.adapters import NAME
from longtake.models.heads import add_head
from longtake.models.qwen3_vl import Qwen3VL
from longtake.parallel import checkpoint as parts
from longtake.parallel.axis import ALONE
from longtake.parallel.fsdp import in_shares, shard
from longtake.runtime.load import load_model
from longtake.train import resume
from longtake.train.resume import Progress
from longtake.train.step import adamw


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("start"))


def opened(folder, world):
    """The model in shares (one process: whole), its tower frozen, a head that is whole everywhere, and an optimizer."""
    model = load_model(folder, device="cpu")
    model.net.requires_grad_(True)
    model.tower.requires_grad_(False)
    head = model.heads.get(NAME) or add_head(model)
    head.requires_grad_(True)
    if world.size > 1:
        shard([model.net], model.layers, world)
    params = [p for p in (*model.net.parameters(), *head.parameters()) if p.requires_grad]
    return model, params, adamw(params, 0.01, (0.9, 0.95), 0.1)


def step(params, optimizer, seed):
    """On gradients that depend on `seed` alone."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = distribute_tensor(gradient, p.device_mesh, p.placements) if isinstance(p, DTensor) else gradient
    optimizer.step()
    optimizer.zero_grad()


def goes(world, source, folder, first, last):
    """Takes up what there is in `folder`, makes steps first..last, writes a checkpoint; gives what it now holds."""
    found = resume.latest(folder)
    model, params, optimizer = opened(found[1] if found else source, world)
    if found:
        assert found[0].step == first
        resume.load_optimizer(found[1], optimizer)
    for seed in range(first, last):
        step(params, optimizer, seed)
    resume.save(folder, Progress(last), model, optimizer, world=world)
    state = [optimizer.state[p][name] for p in params for name in ("step", "exp_avg", "exp_avg_sq")]
    return [x.full_tensor().detach() if isinstance(x, DTensor) else x.detach() for x in (*params, *state)]


@pytest.mark.parametrize("sizes", [(3, 2, 1), (1, 3, 2)])
def test_any_number_of_ranks_goes_on(start: Path, tmp_path: Path, sizes: tuple[int, ...]) -> None:
    """As far as a rounding goes, that depends on where in a vector a number lies."""
    want = goes(ALONE, start, tmp_path / "straight", 0, 5)
    assert all(x.abs().max() > 0 for x in want)
    for size, first, last in zip(sizes, (0, 2, 3), (2, 3, 5), strict=True):
        args = start, tmp_path / "run", first, last
        every = run(size, goes, *args) if size > 1 else [goes(ALONE, *args)]
    for found in every:
        assert all((a - b).abs().max() <= 1e-6 * b.abs().max() for a, b in zip(found, want, strict=True))
    ((_, one), (_, other)) = resume.latest(tmp_path / "run"), resume.latest(tmp_path / "straight")
    assert [(one / name).exists() for name in ("optimizer", "optimizer.pt")] == [size > 1, size == 1]
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    again, *_ = opened(one, ALONE)
    learned = [p for p in (*again.net.parameters(), *again.heads[NAME].parameters()) if p.requires_grad]
    assert all(torch.equal(p, x) for p, x in zip(learned, every[0], strict=False))


def test_the_same_number_of_ranks_goes_on_exactly(start: Path, tmp_path: Path) -> None:
    want = run(2, goes, start, tmp_path / "straight", 0, 4)
    run(2, goes, start, tmp_path / "run", 0, 2)
    for found, own in zip(run(2, goes, start, tmp_path / "run", 2, 4), want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, own, strict=True))


def saved(world, folder):
    model, params, optimizer = opened(folder, world)
    step(params, optimizer, 0)
    with parts.gathered(model.net):
        kinds = {in_shares(p) for p in model.net.parameters()}
        tied = model.lm_head.weight is model.text.embed_tokens.weight
    after = [in_shares(p) for p in model.net.parameters() if p.requires_grad]
    target = resume.save_model(folder.parent / "model", model, world)
    return kinds, tied, all(after), target


def test_weights_are_whole_on_the_first_rank_alone(start: Path) -> None:
    """The frozen tower is so everywhere."""
    (first, *_), (other, *_) = found = run(2, saved, start)
    assert (first, other) == ({False}, {False, True})
    assert [more for _, *more in found] == [[True, True, start.parent / "model"]] * 2
    whole, source = load_model(start.parent / "model", device="cpu"), load_model(start, device="cpu")
    changed = [not torch.equal(a, b) for a, b in zip(whole.net.parameters(), source.net.parameters(), strict=True)]
    assert sum(changed) == len(changed) - len(list(source.tower.parameters()))


def writes(world, source, folder, who, what, error):
    """A second checkpoint, in which one rank dies or fails at a place."""
    model, params, optimizer = opened(source, world)
    step(params, optimizer, 0)
    resume.save(folder, Progress(2), model, optimizer, world=world)
    if world.index == who:
        owner, name = {
            "model": (Qwen3VL, "save"), "parts": (parts, "save"), "ready": (Path, "replace"), "mkdir": (Path, "mkdir"),
        }[what]  # fmt: skip
        own = getattr(owner, name)

        def broken(*args, **kwargs):
            if what == "mkdir" and args[0].name != "000004.part":
                return own(*args, **kwargs)
            if error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise error

        setattr(owner, name, broken)
    try:
        resume.save(folder, Progress(4), model, optimizer, world=world)
    except UserError as said:
        return said.what, said.why
    except ValueError as said:
        return str(said)


@pytest.mark.parametrize(("who", "what"), [(0, "model"), (1, "parts"), (0, "ready")])
def test_a_kill_of_any_rank_leaves_the_old_one(start: Path, tmp_path: Path, who: int, what: str) -> None:
    with pytest.raises(AssertionError, match=r"rank \d died|onnection|roken pipe"):
        run(2, writes, start, tmp_path, who, what, None)
    assert resume.latest(tmp_path) == (Progress(2), tmp_path / "000002")
    run(3, goes, start, tmp_path, 2, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["000004"]


@pytest.mark.parametrize("what", ["ready", "model", "mkdir"])
def test_a_failure_of_the_first_rank_is_said_by_all(start: Path, tmp_path: Path, what: str) -> None:
    full = OSError(28, "No space left on device")
    assert run(2, writes, start, tmp_path, 0, what, full) == [("the disk is full", "")] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]
    assert resume.latest(tmp_path) == (Progress(2), tmp_path / "000002")


def test_the_rank_that_fails_says_it_in_its_own_words(start: Path, tmp_path: Path) -> None:
    found = run(2, writes, start, tmp_path, 0, "model", ValueError("a shape"))
    assert found == ["a shape", ("rank 0 could not write its part", "a shape")]


def test_a_failure_of_any_part_is_said_by_all(start: Path, tmp_path: Path) -> None:
    found = run(2, fails_inside, start, tmp_path)
    assert found == ["the disk is full"] * 2
    assert [path.name for path in tmp_path.iterdir()] == ["000002"]


def fails_inside(world, source, folder):
    """In the midst of torch's own writing, on the second rank."""
    from torch.distributed.checkpoint import FileSystemWriter

    model, params, optimizer = opened(source, world)
    step(params, optimizer, 0)
    resume.save(folder, Progress(2), model, optimizer, world=world)
    if world.index == 1:

        def full(*_):
            raise OSError(28, "No space left on device")

        FileSystemWriter.write_data = full
    try:
        resume.save(folder, Progress(4), model, optimizer, world=world)
    except UserError as error:
        return error.what


@pytest.mark.parametrize("size", [1, 2])
def test_damaged_parts_are_said(start: Path, tmp_path: Path, size: int) -> None:
    run(2, goes, start, tmp_path, 0, 2)
    for name, why in (("__1_0.distcp", "optimizer: "), (".metadata", "optimizer: ")):
        (tmp_path / "000002" / "optimizer" / name).unlink()
        found = run(size, opens, tmp_path / "000002") if size > 1 else [opens(ALONE, tmp_path / "000002")]
        for what, said in found:
            assert what == "the checkpoint is damaged"
            assert said.startswith(why)
            assert name in said


def opens(world, folder):
    *_, optimizer = opened(folder, world)
    try:
        resume.load_optimizer(folder, optimizer)
    except UserError as error:
        return error.what, error.why


def test_parts_of_another_model_are_damaged(start: Path, tmp_path: Path) -> None:
    run(2, goes, start, tmp_path, 0, 1)
    few = [nn.Parameter(torch.zeros(300, 32))]
    with pytest.raises(UserError, match="damaged") as caught:
        resume.load_optimizer(tmp_path / "000001", adamw(few, 0.1, (0.9, 0.95), 0.0))
    assert "is of another model" in caught.value.why


def replicated(world, source, folder):
    """Weights that every rank has: the first writes."""
    model = load_model(source, device="cpu")
    params = list(model.net.parameters())
    optimizer = adamw(params, 0.01, (0.9, 0.95), 0.1)
    step(params, optimizer, 0)
    target = resume.save(folder, Progress(1), model, optimizer, world=world)
    again = adamw(params, 0.01, (0.9, 0.95), 0.1)
    resume.load_optimizer(target, again)
    return target, all(torch.equal(again.state[p]["exp_avg"], optimizer.state[p]["exp_avg"]) for p in params)


def test_ranks_that_all_have_the_weights_write_as_one_does(start: Path, tmp_path: Path) -> None:
    assert run(2, replicated, start, tmp_path / "two") == [(tmp_path / "two" / "000001", True)] * 2
    alone, _ = replicated(ALONE, start, tmp_path / "one")
    both = [{file.name: file.read_bytes() for file in folder.iterdir()} for folder in (alone, tmp_path / "two/000001")]
    assert both[0] == both[1]
