"""Tiled MLPs and norms against the same modules at once: values, gradients, peft's LoRA inside; what they keep."""

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

from longtake.models.tiled import Tiled, pointwise, tile

EXACT = 1e-12
ROUNDED = 1e-2  # sums over tokens of bfloat16 numbers, relative
T, E = 23, 8
CONFIG = LlamaConfig(hidden_size=E, intermediate_size=20, num_attention_heads=2, num_key_value_heads=2)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Block(nn.Module):
    """A norm and an MLP, as in a decoder layer, in float64."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = nn.RMSNorm(E), LlamaMLP(CONFIG)
        self.double()
        with torch.no_grad():
            for seed, p in enumerate(self.parameters()):
                p.copy_(normal(*p.shape, seed=seed))

    def forward(self, x):
        return x + self.mlp(self.norm(x))


def full():
    return Block()


def lora():
    """Frozen weights, LoRA on two of the MLP's layers, its B not zero."""
    block = Block().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=3, target_modules=["gate_proj", "down_proj"]), block)
    for name, p in block.named_parameters():
        if "lora_" in name:
            p.data = normal(*p.shape, seed=len(name))
    return block


def frozen():
    return Block().requires_grad_(False)


def gradients(block, x, grad):
    out = block(x)
    out.backward(grad)
    found = {name: p.grad for name, p in block.named_parameters()}
    return out.detach(), x.grad, found


def tiled(block, tokens):
    twin = copy.deepcopy(block)
    tile([twin.norm, twin.mlp], tokens)
    return twin


@pytest.mark.parametrize("tokens", [1, 7, 22, 23, 24, 100])
@pytest.mark.parametrize("make", [full, lora, frozen])
def test_tiles_equal_the_whole(make, tokens):
    block = make()
    twin = tiled(block, tokens)
    grad = normal(1, T, E, seed=9)
    sides = [gradients(each, normal(1, T, E, seed=8).requires_grad_(), grad) for each in (block, twin)]
    (out, dx, grads), (twin_out, twin_dx, twin_grads) = sides
    assert_close(twin_out, out, rtol=EXACT, atol=EXACT)
    assert_close(twin_dx, dx, rtol=EXACT, atol=EXACT)
    assert grads.keys() == twin_grads.keys()
    assert any(g is not None for g in grads.values()) == (make is not frozen)
    for name, want in grads.items():
        assert_close(twin_grads[name], want, rtol=EXACT, atol=EXACT)
    with torch.no_grad():
        assert_close(twin(normal(1, T, E, seed=8)), out, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("make", [full, lora])
def test_an_input_without_gradient_still_teaches_the_weights(make):
    block, sides = make(), []
    for each in (block, tiled(block, 5)):
        learned = [p for p in each.parameters() if p.requires_grad]
        sides.append(torch.autograd.grad(each(normal(1, T, E)).square().sum(), learned))
    for got, want in zip(*sides, strict=True):
        assert_close(got, want, rtol=EXACT, atol=EXACT)


def test_gradients_add_up_over_calls():
    block = full()
    twin = tiled(block, 6)
    for each in (block, twin):
        for seed in (0, 1):
            each(normal(1, T, E, seed=seed)).sum().backward()
    for got, want in zip(twin.parameters(), block.parameters(), strict=True):
        assert_close(got.grad, want.grad, rtol=EXACT, atol=EXACT)


def test_bfloat16_sums_over_tiles_are_wide():
    block = full()
    rough = tiled(block, 1).bfloat16()
    x = normal(1, 400, E)
    block(x).sum().backward()
    rough(x.bfloat16()).sum().backward()
    for got, want in zip(rough.parameters(), block.parameters(), strict=True):
        assert got.grad.dtype == torch.bfloat16
        assert float((got.grad.double() - want.grad).norm() / want.grad.norm()) < ROUNDED


def test_no_tile_is_larger_and_nothing_between_is_kept():
    block = lora()
    twin = tiled(block, 6)
    seen, kept = [], []
    twin.mlp.act_fn.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        out = twin(normal(1, T, E).requires_grad_())
    assert kept == [T * E] * 2  # the inputs of norm and MLP
    out.sum().backward()
    assert seen == [6, 6, 6, 5] * 2


def test_names_and_state_stay():
    block = full()
    twin = tiled(block, 6)
    assert isinstance(twin.mlp, LlamaMLP)
    assert twin.state_dict().keys() == block.state_dict().keys()
    tile([twin.mlp], 9)
    assert (type(twin.mlp).__mro__.count(Tiled), twin.mlp.tile_tokens) == (1, 9)
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["up_proj"]), twin)
    assert "mlp.up_proj.lora_A.default.weight" in dict(twin.named_parameters())


def test_what_of_a_decoder_is_tiled():
    layers = nn.ModuleList([LlamaDecoderLayer(CONFIG, 0)])
    final = LlamaRMSNorm(E)
    found = pointwise(layers, final)
    assert found == [final, layers[0].mlp, layers[0].input_layernorm, layers[0].post_attention_layernorm]
    with pytest.raises(ValueError, match="Linear has no mlp"):
        pointwise(nn.ModuleList([nn.Linear(2, 2)]), final)


def test_what_cannot_be_exact_is_refused():
    with pytest.raises(ValueError, match="at least one token"):
        tile([], 0)
    block = Block()
    inject_adapter_in_model(LoraConfig(r=2, target_modules=["up_proj"], lora_dropout=0.1), block)
    block.double()
    twin = tiled(block, 6)
    with pytest.raises(ValueError, match="TiledLlamaMLP has dropout"):
        twin(normal(1, T, E))
    twin.eval()(normal(1, T, E))
