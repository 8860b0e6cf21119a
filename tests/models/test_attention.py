"""The registered attention functions on their own: ragged blocks against a loop, and what they refuse."""

import pytest
import torch
from tests.models import tiny
from torch import nn
from torch.testing import assert_close
from transformers import (
    AttentionInterface,
    LlamaConfig,
    MistralConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3NextConfig,
    Qwen3VLConfig,
)
from transformers.masking_utils import AttentionMaskInterface

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models import attention
from longtake.records import Layout

EXACT = 1e-12
H, D, SCALE = 2, 4, 0.4


def plain(q, k, v, lengths):
    """Full attention of every block on itself, one block and one head at a time; [1, H, T, D] → [1, T, H, D]."""
    at, outs = 0, []
    for length in lengths:
        block = slice(at, at + length)
        at += length
        heads = [(q[0, h, block] @ k[0, h, block].T * SCALE).softmax(-1) @ v[0, h, block] for h in range(H)]
        outs.append(torch.stack(heads, 1))
    return torch.cat(outs)[None]


@pytest.mark.parametrize("lengths", [(3, 3, 3), (4,), (2, 5, 2, 1, 5), (1, 1, 7)])
def test_blocks_equal_a_loop_in_value_and_gradient(lengths):
    generator = torch.Generator().manual_seed(0)
    shape = (1, H, sum(lengths), D)
    leaves = [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for _ in range(3)]
    edges = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    got, _ = attention.attend_blocks(
        nn.Identity(), *leaves, None, SCALE, cu_seq_lens_q=edges, max_length_q=max(lengths), is_causal=False
    )
    want = plain(*leaves, lengths)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    weight = torch.randn(want.shape, generator=generator, dtype=torch.float64)
    sides = [torch.autograd.grad((x * weight).sum(), leaves) for x in (got, want)]
    assert_close(*sides, rtol=EXACT, atol=EXACT)


def test_registered_without_a_mask_function():
    attention.register()
    for name in (attention.TEXT, attention.VISION):
        assert name in AttentionInterface()
        assert name not in AttentionMaskInterface()


def text(**other):
    x = torch.zeros(1, 1, 2, 4)
    module = nn.Identity()
    module.layer_idx = 0
    return attention.attend_text(module, x, x, x, None, 1.0, **other)


ROW = Row(Layout(((2, ()),)))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({}, "who sees whom"),
        ({"attention": "sdpa"}, "who sees whom"),
        ({"attention": ROW, "dropout": 0.1}, "dropout is 0.1"),
        ({"attention": ROW, "sliding_window": 4096}, "sliding window is 4096"),
        ({"attention": ROW, "softcap": 30.0}, "attends with softcap"),
        ({"attention": ROW, "s_aux": torch.zeros(1)}, "attends with s_aux"),
    ],
)
def test_what_cannot_be_exact_is_refused(other, says):
    with pytest.raises(ValueError, match=says):
        text(**other)
    assert text(attention=ROW, dropout=0.0, sliding_window=None)[0].shape == (1, 2, 1, 4)


def test_masks_and_vision_dropout_are_refused():
    x = torch.zeros(1, 1, 2, 4)
    with pytest.raises(ValueError, match="no attention mask"):
        attention.attend_text(nn.Identity(), x, x, x, torch.zeros(1, 1, 2, 2), 1.0, attention=ROW)
    with pytest.raises(ValueError, match=r"dropout of the vision tower is 0\.2"):
        attention.attend_blocks(nn.Identity(), x, x, x, None, 1.0, torch.tensor([0, 2]), 2, dropout=0.2)


@pytest.mark.parametrize(
    "config", [Qwen3VLConfig(), Qwen2Config(), LlamaConfig(), MistralConfig(sliding_window=None), Qwen2_5_VLConfig()]
)
def test_networks_that_attend_everywhere_share(config):
    attention.check_shareable(config)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (Qwen3NextConfig(num_hidden_layers=4), "3 of its 4 layers are linear_attention"),
        (Qwen2Config(num_hidden_layers=4, use_sliding_window=True, max_window_layers=1), "are sliding_attention"),
        (MistralConfig(), "sliding_window is 4096"),
        (LlamaConfig(attention_dropout=0.1), "attention_dropout is 0.1"),
        (Qwen3VLConfig(text_config={"attention_dropout": 0.2}), "attention_dropout is 0.2"),
    ],
)
def test_networks_that_cannot_share_a_prefix_are_refused(config, why):
    with pytest.raises(UserError, match=why) as caught:
        attention.check_shareable(config)
    assert len(str(caught.value).splitlines()) <= 6


def test_a_network_with_dropout_trains_not_silently(folder):
    model = tiny.load_model(folder, device="cpu")
    for layer in model.net.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.1
    model.net.train()
    none = torch.zeros(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"attention dropout is 0\.1"):
        model.hidden(model.embed(torch.tensor([1, 2])), torch.arange(2).expand(3, -1), none, None, ROW)
