"""Bytes of the cost model are those that autograd and a prefill keep; what fits is found, what saves is ranked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

from longtake.maths.attention import Row
from longtake.maths.cost import Way, Work
from longtake.maths.devices import DEVICES
from longtake.maths.knobs import knobs, savings
from longtake.maths.pack import pack, stem
from longtake.maths.room import fits, graph_bytes, keep_for, largest_frames, longer, room
from longtake.maths.shapes import PRESETS, Shape
from longtake.models.decoder import Decoder
from longtake.models.tiled import pointwise, tile
from longtake.records import Layout, Prompt
from longtake.runtime.prefix import prefill

COUNTED = 0.02  # relative: numbers per token that the norms keep
TOKENS, TILE = 128, 32
SEVEN = PRESETS["qwen2.5-vl-7b"]
HOUR = Work(3600, 252_000, 256)
LORA = Way("exact", "layers", adapter="lora")


def decoder(layers: int, normed: bool, dtype: torch.dtype) -> tuple[Decoder, Shape]:
    shape = Shape(layers, 64, 4, 2, 16, 160, 40, tied=False, normed=normed)
    sizes = {
        "vocab_size": 40, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": layers, "head_dim": 16,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": None, "bos_token_id": None,
        "eos_token_id": None,
    }  # fmt: skip
    net = Qwen3Model(Qwen3Config(**sizes)) if normed else LlamaModel(LlamaConfig(**sizes))
    return Decoder(net.to(dtype), torch.nn.Linear(64, 40, bias=False).to(dtype), rope_rows=1), shape


def saved(layers: int, normed: bool, dtype: torch.dtype, tiled: bool) -> float:
    """Bytes that autograd keeps of a token, parameters aside."""
    model, _ = decoder(layers, normed, dtype)
    if tiled:
        tile(pointwise(model.layers, model.norm), TILE)
    own = {p.untyped_storage().data_ptr() for p in model.text.parameters()}
    seen: dict[int, torch.Tensor] = {}  # kept alive, or a place would be used twice

    def keep(x: torch.Tensor) -> torch.Tensor:
        if x.untyped_storage().data_ptr() not in own:
            seen[x.untyped_storage().data_ptr()] = x
        return x

    embed_TE = torch.randn(TOKENS, 64, dtype=dtype, requires_grad=True)
    none = torch.zeros(TOKENS, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model.hidden(embed_TE, torch.arange(TOKENS).expand(3, -1), none, None, Row(Layout(((TOKENS, ()),))))
    return sum(x.untyped_storage().nbytes() for x in seen.values()) / TOKENS


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_layer_keeps_what_is_counted(normed: bool, dtype: torch.dtype, tiled: bool) -> None:
    _, shape = decoder(2, normed, dtype)
    counted = saved(3, normed, dtype, tiled) - saved(2, normed, dtype, tiled)
    assert graph_bytes(shape, dtype.itemsize, tiled=tiled) == pytest.approx(counted, rel=COUNTED)


def test_a_prefill_keeps_what_is_counted() -> None:
    model, shape = decoder(3, False, torch.float32)
    prompt = Prompt("p", tuple(range(40)) * 3, (), torch.arange(120).expand(3, -1), None, None)
    row = stem(pack([prompt], [[]], [[]]))
    made = prefill(model, row, lambda: (model.embed(row.ids_T), None), "layers")
    found = room(shape, Work(1, 80, 40), Way("exact", "layers", item=4, weight=4))
    assert found.kept == sum(call.hidden.nbytes for call in made.calls)
    kv = sum(x.nbytes for pair in made.kv for x in pair)
    buffers = sum(x.nbytes for layer in range(3) for x in made.buffers(layer, once=False))
    assert found.kv == kv + buffers
    seen = prefill(model, row, lambda: (model.embed(row.ids_T), None), "attention")
    known = [x for call in seen.calls if call.known for x in call.known]
    more = room(shape, Work(1, 80, 40), Way("exact", "attention", item=4, weight=4)).kept - found.kept
    assert more == sum(x.nbytes for x in known)
    frozen = room(shape, Work(1, 80, 40), Way("none", "nothing", item=4, weight=4))
    assert (frozen.kept, frozen.kv, frozen.prefix_backward) == (0, kv, 0)


def test_weights_gradients_and_moments() -> None:
    work = Work(64, 4480, 256)
    full = room(SEVEN, work, Way("exact", "layers", item=4, weight=4))
    assert full.weights == 4 * SEVEN.params
    assert full.learning == 12 * (SEVEN.params - SEVEN.tower - SEVEN.merger)  # gradient and two moments
    lora = room(SEVEN, work, Way("exact", "layers", adapter="lora", rank=8))
    small = SEVEN.adapter(8)
    assert lora.weights == 2 * SEVEN.params + 4 * small
    assert lora.learning == 12 * small
    four = room(SEVEN, work, Way("exact", "layers", adapter="lora", rank=8, weight=0.5))
    assert lora.weights - four.weights == pytest.approx(1.5 * SEVEN.layers * SEVEN.layer)


def test_an_hour_of_film_is_what_the_design_says() -> None:
    """performance.md §2, memory: weights 16.6, layer inputs 51.9 (answers included: 2 %), keys and values 14.5 GB."""
    found = room(SEVEN, HOUR, LORA)
    assert found.kept / 1e9 == pytest.approx(51.9, rel=0.03)
    assert found.weights / 1e9 == pytest.approx(16.6, rel=0.03)
    assert room(SEVEN, HOUR, replace(LORA, mode="none")).kv / 1e9 == pytest.approx(14.5, rel=0.01)
    away = room(SEVEN, HOUR, replace(LORA, keep="host"))
    assert (away.kept, away.host) == (0, found.kept)
    assert room(SEVEN, HOUR, replace(LORA, keep="host", one_memory=True)) == found


def test_films_that_are_answered_together_are_held_together() -> None:
    one, three = (room(SEVEN, Work(64, 4480, 256), LORA, films) for films in (1, 3))
    assert (three.kv, three.kept) == (3 * one.kv, 3 * one.kept)
    assert (three.weights, three.answers) == (one.weights, one.answers)


def test_the_largest_film_fits_and_one_frame_more_does_not() -> None:
    for keep in ("graph", "layers", "host"):
        way = replace(LORA, keep=keep, answer_tokens=768)
        most = largest_frames(SEVEN, HOUR, way, 80e9, 128e9)
        assert 100 < most < 10_000
        assert fits(SEVEN, longer(HOUR, most), way, 80e9, 128e9)
        assert not fits(SEVEN, longer(HOUR, most + 1), way, 80e9, 128e9)
    assert largest_frames(SEVEN, HOUR, replace(LORA, keep="host"), 80e9, 1e9) < 100, "the host is full as well"
    assert largest_frames(SEVEN, HOUR, LORA, 8e9, 128e9) == 0


def test_the_fastest_way_that_fits_is_chosen() -> None:
    way = replace(LORA, answer_tokens=768)
    chosen = [keep_for(SEVEN, longer(HOUR, frames), way, 80e9, 128e9) for frames in (100, 900, 1400, 2000, 9000)]
    assert chosen == ["graph", "attention", "layers", "host", "host"]
    assert keep_for(SEVEN, HOUR, replace(way, one_memory=True), 80e9, 80e9) == "layers", "there is no other place"
    assert keep_for(SEVEN, HOUR, replace(way, mode="none"), 80e9, 128e9) == "nothing"
    assert keep_for(SEVEN, longer(HOUR, 100), way, 80e9, 128e9, films=9) == "attention"


def test_savings_are_differences_and_what_trains_the_same_comes_first() -> None:
    work, way = Work(512, 35_840, 256), replace(LORA, keep="graph")
    rates = DEVICES["h200"].rates(2)
    found = savings(SEVEN, work, way, rates=rates)
    for saving in found:
        after = room(SEVEN, saving.knob.work, saving.knob.way)
        assert saving.bytes == pytest.approx(room(SEVEN, work, way).peak - after.peak)
    order = [(not saving.knob.same, -saving.bytes) for saving in found]
    assert order == sorted(order)
    words = {saving.knob.words: saving for saving in found}
    assert words["--memory.keep layers"].seconds < 0 < words["--memory.keep layers"].bytes
    assert words["--video.frames 384"].seconds > 0
    more, less = (room(SEVEN, work, replace(way, answer_tokens=tokens)) for tokens in (way.answer_tokens, 1536))
    found = []
    for phase in ("answers", "prefill"):
        by_name = {saving.knob.words: saving.bytes for saving in savings(SEVEN, work, way, phase=phase)}
        found.append(by_name["--memory.answer-tokens 1536"])
        assert found[-1] == pytest.approx(more.at(phase) - less.at(phase))
    assert found[0] > found[1]


@pytest.mark.parametrize("mode", ["exact", "none", "alora"])
def test_only_what_can_be_turned_is_offered(mode: str) -> None:
    keep = "graph" if mode == "exact" else "nothing"
    way = Way(mode, keep, adapter="alora" if mode == "alora" else "lora", weight=0.5)
    words = [knob.words for knob in knobs(Work(64, 4480, 256), way)]
    assert any("keep" in word for word in words) == (mode == "exact")
    assert any("prefix-gradient" in word for word in words) == (mode == "exact")
    assert ("--adapter.kind alora" in words) == (mode != "alora")
    assert not any("quantize" in word or "kind lora" in word for word in words)
    assert not any("frames" in knob.words for knob in knobs(Work(1, 70, 256), way))
    assert "three quarters of --video.frames" in [knob.words for knob in knobs(Work(0, 4480, 256), way)]
