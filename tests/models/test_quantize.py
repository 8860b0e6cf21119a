"""QLoRA: four-bit decoder layers, an adapter that learns on them, checkpoints that hold the adapter alone."""

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from tests.models import tiny
from torch import nn
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models import adapters, quantize
from longtake.records import Layout
from longtake.runtime.load import load_model, tower_fingerprint, weights_version

SINGLE = 1e-5  # float32, numbers of size 1
RELATIVE = 0.1  # NF4's error of normal weights, root mean square of theirs: 0.092
IDS = [1, 40, 41, 42, 43]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The tiny network with layers as wide as a block of weights."""
    words = tiny.tokenizer()
    config = tiny.network(words).config
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size, text.head_dim, vision.out_hidden_size = 64, 128, 16, 64
    text.rope_parameters["mrope_section"] = [4, 2, 2]
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("wide")
    tiny.Qwen3VL(tiny.Qwen3VLForConditionalGeneration(config), words, tiny.PIXELS).save(folder)
    return folder


def quantized(folder, dtype="float32"):
    return load_model(folder, dtype, "cpu", "nf4")


def logits(model):
    ids_T = torch.tensor(IDS)
    none_T = torch.zeros(len(IDS), dtype=torch.bool)
    hidden_TE = model.hidden(model.embed(ids_T), model.positions(IDS, []), none_T, None, Row(Layout(((len(IDS), ()),))))
    return model.head(hidden_TE)


def four_bit(model):
    return {name: part for name, part in model.net.named_modules() if type(part).__name__ == "Linear4bit"}


def unpacked(weight):
    return dequantize_4bit(weight.data, weight.quant_state)


def test_the_decoders_linear_layers_alone_are_four_bit(wide):
    model, whole = quantized(wide), load_model(wide, device="cpu")
    small = four_bit(model)
    assert len(small) == 2 * 7
    for name, part in small.items():
        assert ".language_model.layers." in name
        assert part.weight.dtype == torch.uint8
        before = whole.net.get_parameter(f"{name}.weight")
        error = (unpacked(part.weight) - before).std() / before.std()
        assert 0 < error < RELATIVE, name
    for name, x in model.net.named_parameters():
        if name.removesuffix(".weight") not in small:
            assert torch.equal(x, whole.net.get_parameter(name))
    assert tower_fingerprint(model) == tower_fingerprint(whole)


@torch.no_grad()
def test_it_computes_with_the_weights_that_four_bits_hold(wide):
    model, plain = quantized(wide), load_model(wide, device="cpu")
    for name, part in four_bit(model).items():
        plain.net.get_parameter(f"{name}.weight").copy_(unpacked(part.weight))
    assert_close(logits(model), logits(plain), rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_adapter_learns_and_the_base_stays(wide, tmp_path, dtype):
    model = quantized(wide, dtype)
    adapters.add_adapter(model, "lora", 4, 8.0)
    assert {x.dtype for x in model.adapter.weights().values()} == {torch.float32}
    base = {name: x.detach().clone() for name, x in model.net.named_parameters() if not x.requires_grad}
    names = [weights_version(model)]
    optimizer = torch.optim.AdamW(model.adapter.weights().values(), lr=1e-2)
    with torch.no_grad():
        before = logits(model)
    for _ in range(2):  # B is 0 at first: A learns from the second step on
        optimizer.zero_grad()
        loss = logits(model).log_softmax(-1)[:, 50].sum().neg()
        loss.backward()
        optimizer.step()
        names.append(weights_version(model))
    for x in model.adapter.weights().values():
        assert x.grad.isfinite().all()
        assert x.grad.abs().max() > 0
    assert len(set(names)) == 3
    for name, x in base.items():
        assert torch.equal(model.net.get_parameter(name), x)
    with torch.no_grad(), model.adapter.off():
        assert torch.equal(logits(model), before)
    model.save(tmp_path)
    assert [file.name for file in tmp_path.glob("*.safetensors")] == ["adapter_model.safetensors"]
    with torch.no_grad():
        assert torch.equal(logits(load_model(tmp_path, dtype, "cpu", "nf4")), logits(model))
        assert load_model(tmp_path, dtype, "cpu").adapter.kind == "lora"  # also on the whole base
    with pytest.raises(UserError, match="load it without quantize"):
        adapters.merge(model)


def test_without_the_library_or_with_another_way(wide, monkeypatch):
    with pytest.raises(UserError, match="no quantization 'int3'"):
        load_model(wide, device="cpu", quantize="int3")
    monkeypatch.setattr(quantize, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"longtake\[qlora\]"):
        quantized(wide)


def test_layers_with_biases_and_none():
    """As in Qwen2.5, whose q, k and v have one."""
    torch.manual_seed(0)
    net = nn.Module()
    net.layers = nn.ModuleList([nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 64, bias=False))])
    x = torch.randn(3, 64)
    want = net.layers[0](x)
    quantize.nf4(net.layers)
    net.to("cpu")
    assert [part.bias is None for part in net.layers[0]] == [False, True]
    got = net.layers[0](x)
    assert 0 < (got - want).std() / want.std() < 2 * RELATIVE


def test_widths_that_the_library_gets_wrong(folder):
    with pytest.raises(UserError, match="multiple of 64") as caught:
        quantized(folder)
    assert str(folder) in str(caught.value)
