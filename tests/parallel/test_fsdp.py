"""Weights in shares: rows of many ranks learn what one process learns from all of them, whoever has which."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import pytest
import torch
from tests.models import tiny
from tests.ranks import run
from tests.runtime.test_prefix import EXACT, KEEPS, decoder, drawn, filler, text_prompts
from torch import nn
from torch.distributed.tensor import DTensor

from longtake.maths.pack import answer_rows, pack, stem
from longtake.models.tiled import pointwise, tile
from longtake.parallel.axis import ALONE
from longtake.parallel.fsdp import (
    clip_,
    in_shares,
    kinds,
    learning,
    norm_of,
    shard,
    share_backward,
    share_forward,
    whole,
)
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import TILE, extend, finish, prefill

LENGTHS = ((5, 3, 1), (1, 2), (6,))  # answers of one token alone go through no layer
OWNERS = {1: (0, 0, 0), 2: (0, 0, 0), 3: (0, 0, 2), 4: (3, 1, 1)}  # of the three prompts, by ranks: some have none
SIZES = tuple(OWNERS)


@dataclass
class Learner:
    """A decoder, beside it a tower that only films touch, and a head that is whole everywhere, as what is frozen is."""

    model: object
    tower: nn.Linear
    frozen: nn.Linear
    head: nn.Parameter

    @property
    def params(self):
        found = dict.fromkeys([*self.model.text.parameters(), *self.model.lm_head.parameters()])
        return [*found, *self.tower.parameters(), self.head]

    @property
    def optimizer(self):
        groups = [{"params": own} for own in kinds(self.params)]
        return torch.optim.AdamW(groups, 0.01, (0.9, 0.95), weight_decay=0.1, foreach=True)


def learner(kind, world=ALONE, *, tied=True, tokens=None):
    model = decoder(kind)
    if not tied:
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().flip(0).clone())
    if tokens is not None:
        tile(pointwise(model.layers, model.norm), tokens)
    tower = nn.Linear(5, 3, dtype=torch.float64)
    nn.init.constant_(tower.weight, 0.5)
    nn.init.constant_(tower.bias, 0.5)
    frozen = nn.Linear(5, 3, dtype=torch.float64).requires_grad_(False)
    if world.size > 1:
        shard([model.text, model.lm_head, frozen, tower], model.layers, world)
    return Learner(model, tower, frozen, nn.Parameter(torch.full((2,), 0.5, dtype=torch.float64)))


def score(model, made, part):
    logprob = model.head(extend(model, made, part)).log_softmax(-1)
    (-logprob[torch.arange(len(part.target_R)), part.target_R] * part.weight_R).sum().backward()


def one_round(model, world, prompt, lengths, keep, most, tokens, *, apart=False):
    """The backward of one row a rank; `prompt` None: of none. apart: prefilled while all is whole."""
    layers, made, parts = model.layers, None, []
    if prompt is not None:
        row = pack([prompt], *drawn([lengths]), dtype=torch.float64)
        parts = list(answer_rows(row, most))
    with whole(layers) if apart else learning(nn.ModuleList([nn.Identity()])):
        if prompt is not None:
            made = prefill(model, stem(row), filler(model, stem(row), {}), keep)
        elif not apart:
            share_forward(layers)
    for place in range(max(world.gather(len(parts)))):
        if place < len(parts):
            score(model, made, parts[place])
        if place >= len(parts) or not len(parts[place].ids_A):
            share_forward(layers)
            share_backward(layers)
    if made is not None:
        finish(model, made, 1.0, tokens)
    else:
        share_backward(layers)


def learn(own, world, keep, most, tokens, **how):
    """All rows of a step, on whom OWNERS say."""
    rows = list(zip(text_prompts(), LENGTHS, strict=True))
    mine = [row for row, owner in zip(rows, OWNERS[world.size], strict=True) if owner == world.index]
    with learning(own.model.layers):
        for place in range(max(world.gather(len(mine)))):
            row = mine[place] if place < len(mine) else (None, ())
            one_round(own.model, world, *row, keep, most, tokens, **how)


def full(x):
    return None if x is None else x.full_tensor() if isinstance(x, DTensor) else x.detach().clone()


def gradients(own):
    found = [full(p.grad) for p in own.params]
    for p in own.params:
        p.grad = None
    return found


def equal(got, want):
    assert [x is None for x in got] == [x is None for x in want]
    for a, b in zip(got, want, strict=True):
        if b is not None:
            assert (a - b).abs().max() <= EXACT * max(b.abs().max(), 1e-3)


CASES = [
    ("llama", True, [(keep, 10**6, TILE, {}) for keep in KEEPS]),
    ("qwen2_5", False, [("graph", 1, TILE, {}), ("layers", 1, 7, {}), ("attention", 1, 7, {}), ("host", 1, 7, {})]),
    ("llama", False, [("graph", 4, TILE, {"apart": True}), ("layers", 4, 7, {"apart": True})]),
]


def learned(world, kind, tied, ways):
    own, found = learner(kind, world, tied=tied, tokens=3), []
    for keep, most, tokens, how in ways:
        learn(own, world, keep, most, tokens, **how)
        found.append(gradients(own))
    return found


@pytest.mark.parametrize("size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "tied", "ways"), CASES)
def test_rows_of_many_ranks_give_the_gradient_of_one(kind, tied, ways, size) -> None:
    want = learned(ALONE, kind, tied, ways)
    assert all(x.abs().max() > 0 for x in want[0][:-3])
    assert want[0][-3:] == [None] * 3  # nobody touched the tower
    for rank in run(size, learned, kind, tied, ways):
        for got, own in zip(rank, want, strict=True):
            equal(got, own)


def stepped(world, steps):
    """Weights after some steps, and the norms; the tower learns in the second, on one rank."""
    own = learner("llama", world)
    optimizer, norms, shares = own.optimizer, [], []
    for step in range(steps):
        with learning(own.model.layers):
            if step == 1 and world.index == world.size - 1:
                own.tower(torch.arange(5, dtype=torch.float64)).square().sum().backward()
        learn(own, world, "layers", 10**6, TILE)
        own.head.grad = torch.full((2,), 30.0, dtype=torch.float64)
        for p in own.params:
            if p.grad is not None:
                p.grad.div_(7.0)
        norms.append(clip_(own.params, 0.5))
        norms.append(float(norm_of([p.grad for p in own.params if p.grad is not None])))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        shares = [
            sum(x.to_local().numel() if in_shares(x) else 0 for x in state.values())
            for state in optimizer.state.values()
        ]
    return [full(p) for p in own.params], norms, sum(shares)


@pytest.mark.parametrize("size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_steps_are_those_of_one(size) -> None:
    want, norms, _ = stepped(ALONE, 3)
    assert all(norm > 0.5 for norm in norms[::2])
    assert norms[1::2] == pytest.approx([0.5] * 3, rel=1e-5)
    start = [full(p) for p in learner("llama").params]
    assert all((a - b).abs().max() > 0 for a, b in zip(want, start, strict=True))
    found = run(size, stepped, 3)
    for got, own_norms, _ in found:
        assert own_norms == pytest.approx(norms, rel=EXACT)
        equal(got, want)
    assert sum(shares for _, _, shares in found) == 2 * sum(
        x.numel() for x in want[:-1]
    )  # the state, once in the world


def inputs(model, row, films):
    return fill(model, row.ids_T, row.visual_T, model.encode(films) if films else [])


def watched(world, folder, keep):
    """Films on the first ranks, none on the last, a tower in training, which lies beside the layers."""
    model = tiny.exact(folder)
    model.net.requires_grad_(True)
    if world.size > 1:
        shard([model.net], model.layers, world)
    films = [tiny.film(0, 6), tiny.film(1, 2), None]
    own = [film for place, film in enumerate(films) if place % world.size == world.index]
    with learning(model.layers):
        for place in range(-(-len(films) // world.size)):
            if place >= len(own):
                share_forward(model.layers)
                share_forward(model.layers)
                share_backward(model.layers)
                share_backward(model.layers)
                continue
            film = [] if own[place] is None else [own[place]]
            prompt = model.prompt(tiny.ask(), tiny.receipt(*film) if film else None, "f" if film else None)
            row = pack([prompt], *drawn([(3, 2)]), dtype=torch.float64)
            made = prefill(model, stem(row), partial(inputs, model, stem(row), film), keep)
            (part,) = answer_rows(row, 10**6)
            score(model, made, part)
            finish(model, made)
    return [full(p.grad) for p in model.net.parameters()]


@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_a_tower_learns_where_films_are(tmp_path_factory, keep) -> None:
    folder = tiny.checkpoint(tmp_path_factory.mktemp("tiny"))
    want = watched(ALONE, folder, keep)
    assert sum(x is None for x in want) < 3
    for got in run(2, watched, folder, keep):
        equal(got, want)
