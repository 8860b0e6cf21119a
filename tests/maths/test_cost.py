"""The cost model counts what the core multiplies, and its seconds are those of the design's table."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaConfig, LlamaModel

from longtake.maths.cost import SLICE, Both, Rates, Seconds, Tokens, Way, Work, predict, reading
from longtake.maths.devices import DEVICES, cpu
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack, stem
from longtake.maths.shapes import PRESETS, Shape
from longtake.models.decoder import Decoder
from longtake.models.tiled import pointwise, tile
from longtake.records import Prompt
from longtake.runtime.prefix import extend, finish, prefill

NEVER = 1e30  # a rate at which a part costs nothing
COUNTED = 0.02  # relative: the ends of segments go through the last layer once more
TABLE = 0.03  # relative, against the seconds of performance.md
SHAPE = Shape(layers=3, width=32, heads=4, kv_heads=2, head_width=8, inner=48, vocab=40, tied=False)
WORK = Work(frames=8, visual=150, question=50, group=4, answer=17)
FREE = Rates(
    linear=Both(NEVER, NEVER), attend=Both(NEVER, NEVER), head=Both(NEVER, NEVER), decode=NEVER, encode=NEVER,
    memory=NEVER, host=NEVER, disk=NEVER, decoded=NEVER, learn=NEVER,
)  # fmt: skip
FLOPS = replace(FREE, linear=Both(1.0, 1.0), head=Both(1.0, 1.0))  # seconds are FLOP of matrix products


class Counter(TorchDispatchMode):
    """FLOP of matrix products, forward and backward; flash attention is none."""

    flop = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
            self.flop += 2 * out.numel() * args[1 if func is torch.ops.aten.addmm.default else 0].shape[-1]
        return out


def decoder() -> Decoder:
    sizes = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "head_dim": 8}
    torch.manual_seed(0)
    net = LlamaModel(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2))
    return Decoder(net, torch.nn.Linear(32, 40, bias=False), rope_rows=1)


def multiplied(keep: str, answer_tokens: int = 10**6, tokens_of_tile: int = 10**6) -> tuple[float, float, float]:
    """FLOP of matrix products in (prefill, answers, prefix backward) of WORK, counted."""
    model = decoder()
    tile(pointwise(model.layers, model.norm), tokens_of_tile)
    prompt = Prompt("p", tuple(range(40)) * 5, (), torch.arange(WORK.prefix).expand(3, -1), None, None)
    length = WORK.answer + 1  # the last token of an answer is never fed
    answers = [[[1] * length for _ in range(WORK.group)]]
    row = pack([prompt], answers, [[[1.0] * length for _ in range(WORK.group)]])
    bare = stem(row)
    counts = []
    with Counter() as counter:
        embed_UE = model.embed(bare.ids_T).detach().requires_grad_()
        made = prefill(model, bare, lambda: (embed_UE, None), keep)
        counts.append(counter.flop)
        for part in answer_rows(row, answer_tokens):
            score_tokens(model.head, extend(model, made, part), part.target_R).logprob_R.sum().backward()
        counts.append(counter.flop)
        if keep != "nothing":
            finish(model, made, tile=tokens_of_tile)
        counts.append(counter.flop)
    return counts[0], counts[1] - counts[0], counts[2] - counts[1]


@pytest.mark.parametrize("keep", ["graph", "attention", "layers", "nothing"])
def test_a_step_multiplies_what_is_counted(keep: str) -> None:
    way = Way("exact" if keep != "nothing" else "none", keep)
    counted, found = multiplied(keep), predict(SHAPE, WORK, way, FLOPS)
    scored = 6 * SHAPE.head * WORK.group  # the token that the prefix predicts is scored but never fed
    assert found.prefill == pytest.approx(counted[0], rel=COUNTED)
    assert found.answers + scored == pytest.approx(counted[1], rel=COUNTED)
    assert found.prefix_backward == pytest.approx(counted[2], rel=COUNTED)


@pytest.mark.parametrize("keep", ["graph", "layers", "attention"])
def test_tiles_are_multiplied_again(keep: str) -> None:
    counted = multiplied(keep, tokens_of_tile=64)
    found = predict(SHAPE, WORK, Way("exact", keep, tile=64), FLOPS)
    assert found.prefix_backward == pytest.approx(counted[2], rel=COUNTED)
    assert found.prefix_backward > predict(SHAPE, WORK, Way("exact", keep), FLOPS).prefix_backward


def test_kept_attention_is_not_computed_again() -> None:
    pairs = replace(FREE, attend=Both(1.0, 1.0))
    kept, again = (predict(SHAPE, WORK, Way("exact", keep), pairs).prefix_backward for keep in ("attention", "layers"))
    assert again / kept == pytest.approx(3.5 / 2.5)


def test_attention_counts_every_pair_once() -> None:
    """Two questions of 2 tokens on a film of 3, two answers of 2 tokens each, by hand: halves are the diagonal's."""
    work = Work(frames=1, visual=3, question=2, questions=2, group=2, answer=2)
    assert work.inner == Tokens(7, 3 * 3 / 2 + 2 * (2 * 3 + 2 * 2 / 2))
    assert work.answers == Tokens(8, 4 * (2 * 5 + 2 * 2 / 2))
    assert work.rows == Tokens(28, 4 * 7 * 7 / 2)
    pairs = replace(FREE, attend=Both(1.0, 0.5))
    found = predict(SHAPE, work, Way("exact", "graph"), pairs)
    forward = 4 * SHAPE.heads * SHAPE.head_width
    assert found.prefill == pytest.approx((SHAPE.layers - 1) * forward * work.inner.pairs)
    assert found.prefix_backward == pytest.approx((SHAPE.layers - 1) * 2 * 2.5 * forward * work.inner.pairs)
    assert found.answers == pytest.approx(SHAPE.layers * (1 + 2 * 2.5) * forward * work.answers.pairs)


def test_calls_are_counted_by_what_goes_through_together() -> None:
    calls = replace(FREE, layer=Both(1.0, 10.0))
    found = predict(SHAPE, WORK, Way("exact", "layers", answer_tokens=34), calls)
    assert found.prefill == SHAPE.layers - 1
    assert found.answers == 11 * SHAPE.layers * 2  # 4 answers of 17 tokens, two at a time
    assert found.prefix_backward == 11 * (SHAPE.layers - 1)


def test_logits_of_several_slices_are_made_again_in_the_backward() -> None:
    heads = replace(FREE, head=Both(1.0, 1.0))
    few, many = (replace(WORK, group=1, answer=length) for length in (SLICE, SLICE + 1))
    each = [predict(SHAPE, work, Way(), heads).answers / work.answer / SHAPE.head for work in (few, many)]
    assert each == pytest.approx([6, 10])


def test_modes_are_made_of_the_same_parts() -> None:
    rates = DEVICES["h200"].rates(2)
    shape, work = PRESETS["qwen2.5-vl-7b"], Work(512, 35840, 256)
    exact, none, alora = (
        predict(shape, work, Way(mode, keep, adapter=adapter), rates)
        for mode, keep, adapter in (
            ("exact", "graph", "lora"),
            ("none", "nothing", "lora"),
            ("alora", "nothing", "alora"),
        )
    )
    assert none.prefix_backward == alora.prefix_backward == 0
    assert (none.prefill, none.answers) == (exact.prefill, exact.answers)
    assert alora.prefill == 0
    cold = predict(shape, work, Way("alora", "nothing", adapter="alora", warm=False), rates)
    assert cold.prefill == pytest.approx(exact.prefill)
    half = predict(shape, work, Way("exact", "graph", adapter="lora", chance=0.25), rates)
    assert half.prefix_backward == pytest.approx(exact.prefix_backward / 4)
    again = predict(shape, work, Way("exact", "graph", adapter="lora", repeats=True, epochs=2), rates)
    assert again.score == pytest.approx(2 * exact.prefill)
    assert again.answers == pytest.approx(2 * exact.answers)
    referred = predict(shape, work, Way("exact", "graph", adapter="lora", kl=True), rates)
    assert referred.score > exact.prefill
    assert exact.total == pytest.approx(sum(getattr(exact, field.name) for field in fields(Seconds)))
    assert exact.cached == pytest.approx(exact.total - exact.decode - exact.encode)


def test_whole_rows_pay_the_prefix_for_every_answer() -> None:
    rates = DEVICES["h200"].rates(2)
    shape, work = PRESETS["qwen2.5-vl-7b"], Work(512, 35840, 256)
    once, own, three, grouped, ours = (
        predict(shape, work, Way(mode, "graph", row_tokens=1 << 20, answer_tokens=1 << 20, tile=1 << 20), rates)
        for mode in ("encode_once", "per_answer", "per_answer_3pass", "prefix_grouper", "exact")
    )
    encoded = own.answers - once.answers
    assert encoded == pytest.approx(8 * once.encode)
    assert three.answers == own.answers
    assert three.score > 0.5 * three.answers
    whole = ours.prefill + ours.prefix_backward + ours.answers
    assert whole < grouped.answers < 1.1 * whole  # it computes the last layer of the prefix as well
    assert 6 < once.answers / whole < 8


@pytest.mark.parametrize(
    ("frames", "prefill", "generate"), [(512, 1.23, 4.81), (3600, 31.68, 7.58)], ids=["512 frames", "an hour"]
)
def test_seconds_are_those_of_the_design(frames: int, prefill: float, generate: float) -> None:
    """The design's table (performance.md §2): one H200 with the kernels that it assumes."""
    rates = replace(
        DEVICES["h200"].half, linear=Both(790e12 * 0.88, 790e12 * 0.88), attend=Both(790e12 * 0.6, 790e12 * 0.52),
        head=Both(NEVER, NEVER), memory=4.3e12 * 0.8, step=1.5e-3 / 28, layer=Both(0, 0), decode=NEVER,
    )  # fmt: skip
    shape = PRESETS["qwen2.5-vl-7b"]
    found = predict(shape, Work(frames, 70 * frames, 256), Way("exact", "layers", adapter="lora"), rates)
    assert found.prefill / 27 * 28 == pytest.approx(prefill, rel=TABLE)  # the table has no dead last layer
    widened = 8 * shape.head / rates.memory * 768  # nor a head that is widened for its float32 logits
    assert found.generate - widened == pytest.approx(generate, rel=TABLE)


def test_decoding_is_bound_by_reading_or_by_arithmetic() -> None:
    rates = replace(FREE, memory=2.0, linear=Both(4.0, 1.0), head=Both(4.0, 1.0))
    numbers = SHAPE.layers * SHAPE.layer + SHAPE.head
    assert reading(SHAPE, 1, 4.0, rates) == pytest.approx(4 * numbers / 2)
    assert reading(SHAPE, 100, 4.0, rates) == pytest.approx(2 * 100 * numbers / 4)


def test_float32_is_slow_on_a_gpu_and_all_there_is_on_a_cpu() -> None:
    h100 = DEVICES["h100"]
    assert h100.rates(4).linear.forward < h100.rates(2).linear.forward / 5
    assert cpu(4, 1e10).rates(4).linear == cpu(4, 1e10).rates(2).linear
    assert cpu(4, 1e10).rates(4).linear.forward == 2 * cpu(2, 1e10).rates(4).linear.forward
