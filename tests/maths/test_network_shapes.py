"""Shapes for the cost model are those of transformers' networks, and the presets those of the published checkpoints."""

from __future__ import annotations

import pytest
from tests.models import tiny
from transformers import LlamaConfig, LlamaModel

from longtake.maths.shapes import PRESETS, Shape, UnknownShape, shape_of

CLOSE = 0.02  # norms, biases and position embeddings are not counted
PUBLISHED = {
    "qwen2.5-vl-3b": 3.75e9, "qwen2.5-vl-7b": 8.29e9, "qwen2.5-vl-32b": 33.5e9, "qwen2.5-vl-72b": 73.4e9,
    "qwen3-vl-2b": 2.13e9, "qwen3-vl-4b": 4.44e9, "qwen3-vl-8b": 8.77e9,
}  # fmt: skip


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_have_the_published_size(name: str) -> None:
    assert PRESETS[name].params == pytest.approx(PUBLISHED[name], rel=CLOSE)


def test_a_config_is_read_as_transformers_builds_it() -> None:
    net = tiny.network(tiny.tokenizer())
    found = shape_of(net.config.to_dict())
    text = net.model.language_model
    assert (found.layers, found.width, found.kv_heads, found.head_width) == (2, 32, 2, 8)
    assert found.normed
    assert found.tied
    assert found.levels == 2
    linear = [m for m in text.layers[0].modules() if hasattr(m, "out_features")]
    assert found.layer == sum(m.weight.numel() for m in linear)
    assert found.head == net.lm_head.weight.numel()
    assert {n: (m.in_features, m.out_features) for n, m in text.layers[0].mlp.named_children() if n != "act_fn"} == {
        n: sizes for n, sizes in found.matrices().items() if n in ("gate_proj", "up_proj", "down_proj")
    }
    visual = net.model.visual
    blocks = [m for block in visual.blocks for m in block.modules() if hasattr(m, "out_features")]
    assert found.tower == sum(m.weight.numel() for m in blocks)
    mergers = [m for part in (visual.merger, visual.deepstack_merger_list) for m in part.modules()]
    assert found.merger == sum(m.weight.numel() for m in mergers if hasattr(m, "out_features"))


def test_a_text_config_has_no_tower() -> None:
    config = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, head_dim=16
    )
    found, net = shape_of(config.to_dict()), LlamaModel(config)
    assert (found.tower, found.normed, found.head_width, found.kv_heads) == (0, False, 16, 4)
    matrices = sum(p.numel() for p in net.layers.parameters() if p.dim() == 2)
    assert found.layers * found.layer == matrices
    assert found.adapter(3) == sum(3 * sum(p.shape) for p in net.layers.parameters() if p.dim() == 2)
    assert found.adapter(3, ("q_proj",)) == 2 * 3 * (32 + 64)


def test_a_config_that_is_none_says_what_it_lacks() -> None:
    with pytest.raises(UnknownShape, match="num_hidden_layers"):
        shape_of({"hidden_size": 32})
    with pytest.raises(UnknownShape, match="hidden_size"):
        shape_of({"num_hidden_layers": 2, "hidden_size": "32"})


def test_keys_and_values_of_a_7b_are_those_of_the_design() -> None:
    assert 2 * PRESETS["qwen2.5-vl-7b"].kv == 57_344
    assert isinstance(PRESETS["qwen3-vl-8b"], Shape)
