"""The door for others: transformers' own forward on a packed row against a row for every answer, by its own sdpa."""

import copy
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from tests.runtime.doors import (
    EXACT,
    LENGTHS,
    answered,
    asked,
    checkpointing,
    every_answer,
    gradients,
    lora,
    network,
    packed_loss,
    same,
    untouched,
)

import longtake
from longtake.maths.pack import pack
from longtake.records import Layout, Prompt

HALF = 0.1  # relative, of gradients in bfloat16 through three layers
KINDS = ("llama", "qwen2", "qwen2_5_vl", "qwen3_vl")


@pytest.mark.parametrize("kind", KINDS)
def test_a_shared_prefix_is_a_row_for_every_answer(kind):
    net = network(kind)
    ids, positions, other = asked(net)
    answers, weights = answered()
    before = untouched(net)
    want = every_answer(net, ids, positions, other, answers, weights)
    assert before[-1] == "sdpa"
    assert min(grad.abs().max() for grad in want[1].values()) > 0
    row = longtake.pack_row(ids, answers, positions)
    with longtake.shared_prefix(net, row.layout):
        losses = packed_loss(net, row, other, weights)
    assert untouched(net) == before
    losses.sum().backward()
    same((losses.tolist(), gradients(net)), want)


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen3_vl"])
def test_layers_that_run_again_know_the_layout(kind, reentrant, inside):
    """After the block too: transformers' sdpa function hands it to torch's, which asks it."""
    net = network(kind)
    ids, positions, other = asked(net)
    answers, weights = answered()
    want = every_answer(net, ids, positions, other, answers, weights)
    row = longtake.pack_row(ids, answers, positions)
    with checkpointing(net, reentrant):
        with longtake.shared_prefix(net, row.layout):
            losses = packed_loss(net, row, other, weights)
            if inside:
                losses.sum().backward()
        if not inside:
            losses.sum().backward()
    same((losses.tolist(), gradients(net)), want)


def test_trees_and_several_prompts():
    """[film | question | answers | question | answers], then a prompt of its own."""
    net = network("qwen2")
    generator = torch.Generator().manual_seed(2)
    film, first, second, alone = (torch.randint(1, 40, (n,), generator=generator).tolist() for n in (7, 3, 4, 6))
    prompts = [film + first, film + second, alone]
    made = [
        Prompt(str(n), tuple(p), (), torch.arange(len(p)).expand(3, -1), "film" if n < 2 else None, None)
        for n, p in enumerate(prompts)
    ]
    drawn = [answered(lengths, seed) for seed, lengths in enumerate(((4, 2), (3, 0, 1), (2, 5)))]
    answers = [[a.tolist() for a in own] for own, _ in drawn]
    row = pack(made, answers, [[w.tolist() for w in own] for _, own in drawn], dtype=torch.float64)
    assert len(row.layout.groups) == 2
    losses, total = [], {}
    for prompt, (own, weights) in zip(prompts, drawn, strict=True):
        found, grads = every_answer(net, torch.tensor(prompt), None, {}, own, weights)
        losses += found
        total = {name: total.get(name, 0) + grad for name, grad in grads.items()}
    with longtake.shared_prefix(net, row.layout):
        logits = net(input_ids=row.ids_T[None], position_ids=row.position_3T[:1]).logits[0, row.predict_R]
    logprob_R = logits.log_softmax(-1).gather(1, row.target_R[:, None])[:, 0]
    loss = -(logprob_R * row.weight_R).sum()
    loss.backward()
    same(([loss.item()], gradients(net)), ([sum(losses)], total))


def test_a_peft_model():
    model = lora(network("llama"))
    ids, _, _ = asked(network("llama"))
    answers, weights = answered()
    want = every_answer(model, ids, None, {}, answers, weights)
    assert want[1]
    assert all("lora" in name for name in want[1])
    row = longtake.pack_row(ids, answers)
    with longtake.shared_prefix(model, row.layout):
        losses = packed_loss(model, row, {}, weights)
        losses.sum().backward()
    same((losses.tolist(), gradients(model)), want)


def test_answers_without_tokens():
    net = network("qwen2")
    row = longtake.pack_row([1, 2, 3], [[], []])
    with longtake.shared_prefix(net, row.layout), torch.no_grad():
        out = net(input_ids=row.ids_1T, position_ids=row.position_ids, logits_to_keep=row.predict_R)
    assert [len(own) for own in row.per_answer(row.score(out.logits).logprob_R)] == [0, 0]


@pytest.mark.parametrize("inside", [True, False])
def test_autocast(inside):
    """Weights in float32 and keys that rotate in it, values in bfloat16: cast as for transformers' own."""
    net = copy.deepcopy(network("qwen2")).float()
    ids, _, _ = asked(net)
    answers, weights = answered()
    row = longtake.pack_row(ids, answers)
    with torch.autocast("cpu", torch.bfloat16):
        want = every_answer(net, ids, None, {}, answers, weights)
        with checkpointing(net):
            with longtake.shared_prefix(net, row.layout):
                losses = packed_loss(net, row, {}, weights)
                if inside:
                    losses.sum().backward()
            if not inside:
                losses.sum().backward()
    got = gradients(net)
    assert losses.tolist() == pytest.approx(want[0], rel=HALF)
    for name, grad in want[1].items():
        assert (got[name] - grad).norm() <= HALF * grad.norm(), name


def test_the_innermost_block_rules():
    net = network("qwen2")
    ids, _, _ = asked(net)
    cases = [answered(), answered((2, 6), seed=9)]
    wants = [every_answer(net, ids, None, {}, *case) for case in cases]
    rows = [longtake.pack_row(ids, answers) for answers, _ in cases]
    with checkpointing(net), longtake.shared_prefix(net, rows[0].layout):
        first = packed_loss(net, rows[0], {}, cases[0][1])
        with longtake.shared_prefix(net, rows[1].layout):
            second = packed_loss(net, rows[1], {}, cases[1][1])
            first.sum().backward()
            same((first.tolist(), gradients(net)), wants[0])
        second.sum().backward()
        same((second.tolist(), gradients(net)), wants[1])
        again = packed_loss(net, rows[0], {}, cases[0][1])
        again.sum().backward()
        same((again.tolist(), gradients(net)), wants[0])


def test_an_error_inside_leaves_nothing_behind():
    net = network("llama")
    before = untouched(net)
    with pytest.raises(KeyError), longtake.shared_prefix(net, Layout(((2, (1,)),))):
        raise KeyError
    assert untouched(net) == before


def test_a_mask_of_ones_is_no_mask_and_a_missing_cache_no_cache():
    net = network("qwen2")
    row = longtake.pack_row([1, 2, 3], [[4, 5], [6]])
    with longtake.shared_prefix(net, row.layout), torch.no_grad():
        bare = net(input_ids=row.ids_1T, position_ids=row.position_ids)
        masked = net(row.ids_1T, position_ids=row.position_ids, attention_mask=torch.ones_like(row.ids_1T))
    assert torch.equal(bare.logits, masked.logits)
    assert bare.past_key_values is None


DOC = Path(__file__).parents[2] / "docs" / "door.md"
LOOP, TRAINER = re.findall(r"^```python\n(.*?)^```$", DOC.read_text(), re.DOTALL | re.MULTILINE)


def test_the_loop_that_is_shown():
    net = copy.deepcopy(network("llama"))
    ids, _, _ = asked(net)
    answers, _ = answered()
    advantages = [0.5, -1.0, 2.0]
    want = every_answer(
        net, ids, None, {}, answers, [torch.full((n,), a) for n, a in zip(LENGTHS, advantages, strict=True)]
    )

    class Looks:
        """An optimizer that changes nothing."""

        def step(self):
            self.grads = {name: p.grad.clone() for name, p in net.named_parameters()}

        def zero_grad(self):
            net.zero_grad(set_to_none=True)

    optimizer = Looks()
    shown = {"model": net, "batches": [(ids, answers, advantages)], "optimizer": optimizer}
    exec(LOOP, shown)
    same(([shown["loss"].item()], optimizer.grads), ([sum(want[0])], want[1]))


def test_the_trainer_that_is_shown(monkeypatch):
    """Padded as TRL pads: prompts on the left, answers on the right."""
    monkeypatch.setitem(sys.modules, "trl", types.SimpleNamespace(GRPOTrainer=object))
    shown = {}
    exec(TRAINER, shown)
    trainer = shown["SharedGRPOTrainer"]()
    trainer.temperature = 0.9
    net = network("qwen2")
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(1, 40, (n,), generator=generator) for n in (7, 7, 4)]
    prompts[1] = prompts[0]
    answers, _ = answered((3, 5, 2))
    ids, mask = torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)
    for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        here = slice(7 - len(prompt), 7 + len(answer))
        ids[n, here], mask[n, here] = torch.cat([prompt, answer]), 1
    with torch.no_grad():
        logprobs, entropies, aux = trainer._get_per_token_logps_and_entropies(net, ids, mask, 5, compute_entropy=True)
        for n, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            logits = net(input_ids=torch.cat([prompt, answer])[None]).logits[0, len(prompt) - 1 : -1] / 0.9
            policy = logits.log_softmax(-1)
            assert torch.allclose(
                logprobs[n, : len(answer)], policy.gather(1, answer[:, None])[:, 0], rtol=0, atol=EXACT
            )
            assert torch.allclose(entropies[n, : len(answer)], -(policy.exp() * policy).sum(-1), rtol=0, atol=EXACT)
            assert not logprobs[n, len(answer) :].any()
    assert aux is None
