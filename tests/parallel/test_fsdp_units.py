"""Units of weights in shares: what is whole when, what is summed, and in which dtype."""

from __future__ import annotations

import pytest
import torch
from tests.parallel.test_fsdp import LENGTHS, Learner, full, gradients, learn, learner, one_round
from tests.plain.training import everyone
from tests.ranks import run
from tests.runtime.test_prefix import decoder, text_prompts
from torch import nn

from longtake.parallel.axis import ALONE
from longtake.parallel.fsdp import held, in_shares, learning, shard, share_backward, share_forward, whole
from longtake.runtime.prefix import TILE


def decoded(world, _):
    """Ranks that call the model as often as they like."""
    own = learner("llama", world)
    model, found = own.model, []
    with whole(model.layers), torch.no_grad():
        for length in range(1, 2 + 3 * world.index):
            ids = torch.arange(3, 3 + length)
            position = torch.arange(length).expand(3, -1)
            none = torch.zeros(length, dtype=torch.bool)
            hidden = model.hidden(model.embed(ids), position, none, None, everyone)
            found.append(model.head(hidden[-1:]))
    return found, [in_shares(p) for p in (*own.params, *own.frozen.parameters())]


def test_decoding_speaks_to_nobody() -> None:
    (want, _), *_ = run(1, decoded, None)
    first, second, third = run(3, decoded, None)
    assert [len(found) for found, _ in (first, second, third)] == [1, 4, 7]
    for found, shares in (first, second, third):
        assert torch.equal(found[0], want[0])
        assert shares == [True] * (len(shares) - 3) + [False] * 3


def counted(world, keep):
    """How many layers hold whole weights: whenever one is called, while all else learns, and at the end."""
    model, seen, most = decoder("llama"), {}, []
    shard([model.text, model.lm_head], model.layers, world)

    def see(layer, _):
        seen[layer] = layer.self_attn.q_proj.weight
        most.append(bytes_of(seen))

    def bytes_of(weights):
        return sum(w.untyped_storage().nbytes() > 0 for w in weights.values())

    for layer in model.layers:
        layer.register_forward_pre_hook(see)
    with learning(model.layers):
        one_round(model, world, text_prompts()[0], LENGTHS[0], keep, 1, TILE)
        return len(seen), set(most), bytes_of(seen), [in_shares(p) for p in model.lm_head.parameters()]


@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_one_layer_is_whole_at_a_time(keep) -> None:
    assert run(2, counted, keep) == [(3, {1}, 0, [False])] * 2


def halves(world, _):
    model = decoder("llama")
    model.text.bfloat16()
    model.lm_head.bfloat16()
    shard([model.text, model.lm_head], model.layers, world)
    layer, given = model.layers[1], (256.0, 1.0, 1.0)[world.index]
    with held(layer):
        for p in layer.parameters():
            assert not in_shares(p)
            p.grad = torch.full_like(p, given)
    return [full(p.grad) for p in layer.parameters()], [p.grad for p in model.layers[0].parameters()]


def test_gradients_are_summed_in_float32() -> None:
    """Not averaged; 256 + 1 is 256 in bfloat16."""
    for found, others in run(3, halves, None):
        assert all(x.dtype == torch.bfloat16 and x.unique().tolist() == [258.0] for x in found)
        assert others == [None] * len(others)


def rounded(world, keep, tokens):
    model = decoder("llama")
    model.text.bfloat16()
    if world.size > 1:
        shard([model.text, model.lm_head], model.layers, world)
    own = Learner(model, nn.Linear(1, 1), nn.Linear(1, 1), nn.Parameter(torch.zeros(1)))
    learn(own, world, keep, 10**6, tokens)
    return gradients(own)[:-3]


@pytest.mark.parametrize(("keep", "tokens"), [("graph", TILE), ("layers", 7)])
def test_half_precision_is_half_precision(keep, tokens) -> None:
    want = rounded(ALONE, keep, tokens)
    for found in run(2, rounded, keep, tokens):
        for got, own in zip(found, want, strict=True):
            assert got.dtype == torch.bfloat16
            assert (got - own).norm() < 0.02 * own.norm()


def test_a_model_that_is_whole_is_left_alone() -> None:
    model = decoder("llama")
    with learning(model.layers), whole(model.layers), held(model.layers[0]):
        share_forward(model.layers)
        share_backward(model.layers)
    assert not any(in_shares(p) for p in model.text.parameters())
