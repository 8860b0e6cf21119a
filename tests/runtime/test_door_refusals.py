"""What the door refuses, in the words that tell what to do, and that it is left as it was found."""

import pytest
import torch
from tests.runtime.doors import TEXT, answered, asked, checkpointing, lora, network, packed_loss, untouched
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import longtake
from longtake.errors import UserError
from longtake.records import Layout
from longtake.runtime.door import Packed

SMALL = TEXT | {"num_hidden_layers": 2}
ROW = longtake.pack_row([1, 2, 3], [[4, 5], [6, 7]])
GOOD = {"input_ids": ROW.ids_1T, "position_ids": ROW.position_ids}


def test_layers_that_run_again_after_the_block_under_another_attention_are_refused():
    net = network("qwen2")
    ids, _, _ = asked(net)
    answers, weights = answered()
    row = longtake.pack_row(ids, answers)
    net.set_attn_implementation("eager")
    with checkpointing(net):
        with longtake.shared_prefix(net, row.layout):
            losses = packed_loss(net, row, {}, weights)
        assert net.config._attn_implementation == "eager"
        with pytest.raises(UserError, match=r"call backward\(\) inside"):
            losses.sum().backward()
    net.set_attn_implementation("sdpa")
    net.zero_grad(set_to_none=True)


def test_what_stands_for_a_mask_says_so_to_any_attention():
    packed = Packed(Layout(((2, (1,)),)))
    for use in (
        lambda: packed.sum(dim=-1),
        lambda: packed[:, :, 0],
        lambda: torch.ones(2) + packed,
        lambda: scaled_dot_product_attention(*[torch.ones(1, 2, 3, 4)] * 3, attn_mask=packed, dropout_p=0.1),
    ):
        with pytest.raises(UserError, match="another attention function") as caught:
            use()
        assert len(str(caught.value).splitlines()) <= 6
    assert not hasattr(packed, "to")  # accelerate asks


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"use_cache": True}, "takes no cache"),
        ({"past_key_values": DynamicCache()}, "takes no cache"),
        ({"attention_mask": torch.tensor([[0, 1, 1, 1, 1]])}, "takes no attention mask"),
        ({"attention_mask": torch.ones(1, 1, 5, 5)}, "takes no attention mask"),
        ({"position_ids": None}, "needs position_ids"),
        ({"position_ids": torch.arange(5)[None]}, "begin at different positions"),
        ({"input_ids": ROW.ids_1T[:, :4], "position_ids": None}, r"\(1, 4\), the layout says \(1, 5\)"),
        ({"input_ids": ROW.ids_1T.expand(2, -1)}, r"\(2, 5\)"),
        ({"labels": ROW.ids_1T}, "takes no labels"),
    ],
)
def test_arguments_that_would_not_mean_what_they_say_are_refused(other, says):
    net = network("qwen2")
    with longtake.shared_prefix(net, ROW.layout):
        net(**GOOD)
        with pytest.raises(UserError, match=says) as caught:
            net(**GOOD | other)
    assert len(str(caught.value).splitlines()) <= 6


def test_arguments_by_place_are_refused():
    with longtake.shared_prefix(network("llama"), ROW.layout), pytest.raises(UserError, match="name them"):
        network("llama").model(ROW.ids_1T, None, ROW.position_ids)


def test_dropout_of_an_adapter_is_refused_while_it_trains():
    model = lora(network("llama"), dropout=0.1)
    with longtake.shared_prefix(model, ROW.layout):
        with pytest.raises(UserError, match=r"dropout is 0\.1"):
            model(**GOOD)
        model.eval()(**GOOD)
        with pytest.raises(UserError, match="takes no labels"):
            model(**GOOD, labels=ROW.ids_1T)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, attention_dropout=0.1)), "attention_dropout is 0.1"),
        (lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=4)), "sliding_window is 4"),
        (
            lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL, use_sliding_window=True, max_window_layers=1)),
            "1 of its 2 layers are sliding_attention",
        ),
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=60, d_model=8, d_kv=4, d_ff=8, num_layers=1)),
            "has an encoder",
        ),
        (lambda: torch.nn.Linear(2, 2), "no transformers model inside Linear"),
    ],
)
def test_networks_that_cannot_share_are_refused(make, says):
    with pytest.raises(UserError, match=says), longtake.shared_prefix(make(), ROW.layout):
        pass


def test_an_attention_that_cannot_be_replaced_is_refused(monkeypatch):
    net = network("llama")
    before = untouched(net)
    monkeypatch.setattr(type(net.model), "_can_set_attn_implementation", classmethod(lambda cls: False))
    with pytest.raises(UserError, match="cannot be replaced"), longtake.shared_prefix(net, ROW.layout):
        pass
    assert untouched(net) == before


def test_a_model_on_the_same_config_is_told():
    net = network("llama")
    other = LlamaForCausalLM(net.config)
    with longtake.shared_prefix(net, ROW.layout):
        net(**GOOD)
        with pytest.raises(UserError, match="without its row's layout"):
            other(ROW.ids_1T)
