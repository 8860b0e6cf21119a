"""Scaled positions: frequencies as the papers and transformers' own classes have them, kept by every kind of folder."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLForConditionalGeneration,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from longtake.errors import UserError
from longtake.models import adapters, rope
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3 import Qwen3
from longtake.runtime.load import base_version, load_model, weights_version

LONGEST, THETA, WIDTH = 4096, 1e4, 16
SPECS = ("linear:2", "dynamic:2", "yarn:4", "linear:1.5")


def text(kind=LlamaForCausalLM, config=LlamaConfig, **more):
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": WIDTH}
    own = {"rope_type": "default", "rope_theta": THETA} | more
    return kind(
        config(
            vocab_size=32, hidden_size=2 * WIDTH, intermediate_size=32, max_position_embeddings=LONGEST,
            rope_parameters=own, initializer_range=0.2, **shape,
        )
    ).eval()  # fmt: skip


def plain(spec):
    """(inverse frequencies, factor of cos and sin), one by one from the papers' formulas."""
    scaling = rope.parse(spec)
    base = THETA
    if scaling.way == "dynamic":  # transformers' formula at L = factor · Lmax
        ratio = scaling.factor * LONGEST / LONGEST
        base *= ((scaling.factor * ratio) - (scaling.factor - 1)) ** (WIDTH / (WIDTH - 2))
    found = [base ** (-i / WIDTH) for i in range(0, WIDTH, 2)]
    if scaling.way == "linear":
        found = [one / scaling.factor for one in found]
    if scaling.way != "yarn":
        return found, 1.0

    def place(turns):  # the dimension that makes so many turns within the trained length
        return WIDTH * math.log(LONGEST / (turns * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = max(math.floor(place(32)), 0), min(math.ceil(place(1)), WIDTH - 1)
    slow = [min(1.0, max(0.0, (i - low) / (high - low))) for i in range(WIDTH // 2)]
    blended = [one * (1 - share) + one / scaling.factor * share for one, share in zip(found, slow, strict=True)]
    return blended, 0.1 * math.log(scaling.factor) + 1


@pytest.mark.parametrize("spec", SPECS)
def test_frequencies_are_the_papers(spec):
    net = text()
    rope.scale(net.model, rope.parse(spec))
    want, factor = plain(spec)
    np.testing.assert_allclose(net.model.rotary_emb.inv_freq.numpy(), want, rtol=2e-6)
    assert net.model.rotary_emb.attention_scaling == pytest.approx(factor, rel=1e-12)
    assert net.model.config.rope_parameters["rope_theta"] is not None, "transformers' trap: a dict replaced whole"


def test_numbers_of_the_facts():
    net = text()
    rope.scale(net.model, rope.parse("yarn:4"))
    assert round(net.model.rotary_emb.attention_scaling, 4) == 1.1386
    assert plain("yarn:4")[0][0] == 1.0, "the fastest stays"


def test_linear_by_two_at_twice_the_place_is_the_default():
    net, twin = text(), text()
    rope.scale(net.model, rope.parse("linear:2"))
    place = torch.arange(50)[None]
    x = torch.zeros(1, 50, WIDTH)
    for mine, theirs in zip(net.model.rotary_emb(x, 2 * place), twin.model.rotary_emb(x, place), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_dynamic_is_transformers_at_the_longest_input_and_the_same_at_every_length():
    net = text()
    rope.scale(net.model, rope.parse("dynamic:3"))
    config = text().config
    config.rope_parameters = {**config.rope_parameters, "rope_type": "dynamic", "factor": 3.0}
    want, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, seq_len=3 * LONGEST)
    torch.testing.assert_close(net.model.rotary_emb.inv_freq, want, rtol=1e-6, atol=0)
    before = net.model.rotary_emb.inv_freq.clone()
    net.model.rotary_emb(torch.zeros(1, 1, WIDTH), torch.tensor([[5 * LONGEST]]))
    assert torch.equal(net.model.rotary_emb.inv_freq, before), "positions that were kept would stand on another base"


@pytest.mark.parametrize("spec", SPECS)
def test_a_prefix_that_was_kept_is_the_forward_over_both(spec):
    net = text().double()
    rope.scale(net.model, rope.parse(spec))
    ids = torch.randint(32, (1, 24), generator=torch.Generator().manual_seed(0))
    place = torch.arange(LONGEST - 12, LONGEST + 12)[None]  # the answer reaches beyond what was trained
    whole = net(ids, position_ids=place).logits
    first = net(ids[:, :12], position_ids=place[:, :12], use_cache=True)
    then = net(ids[:, 12:], position_ids=place[:, 12:], past_key_values=first.past_key_values)
    torch.testing.assert_close(torch.cat([first.logits, then.logits], 1), whole, rtol=1e-9, atol=1e-9)


def test_partial_rotary_width():
    """The base grows by the width that rotates, not by that of the head."""
    net = text(partial_rotary_factor=0.5)
    rope.scale(net.model, rope.parse("dynamic:2"))
    assert net.config.rope_parameters["rope_theta"] == pytest.approx(THETA * 3 ** (8 / 6), rel=1e-12)


@given(factor=st.floats(1.001, 64), way=st.sampled_from(rope.WAYS))
@settings(derandomize=True, database=None, deadline=None, max_examples=40)
def test_the_context_grows_by_the_factor(factor, way):
    net = text()
    rope.scale(net.model, rope.Scaling(way, factor))
    assert rope.known_to(net.config, ours=True) == int(factor * LONGEST)


@pytest.mark.parametrize(
    ("parameters", "longest", "want"),
    [
        ({"rope_type": "default"}, 4096, 4096),
        ({"rope_type": "linear", "factor": 4.0}, 1048576, 1048576),  # LongVILA-1M
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 32768, 131072),  # Qwen2.5
        ({"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840, 163840),  # DeepSeek-V3
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072, 131072),
    ],
)
def test_the_context_of_published_configs(parameters, longest, want):
    """What is not ours does not multiply what the config says, but for what it says of the time before."""
    config = LlamaConfig(max_position_embeddings=longest)
    config.rope_parameters = parameters
    assert rope.known_to(config, ours=False) == want


def test_the_context_of_vicuna_16k():
    """Its max_position_embeddings is that before scaling; what it was made for stands beside it."""
    parameters = {"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}
    config = LlamaConfig(max_position_embeddings=4096, max_sequence_length=16384, rope_parameters=parameters)
    assert rope.known_to(config, ours=False) == 16384
    del config.max_sequence_length
    assert rope.known_to(config, ours=False) == 4096


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("liner:2", "did you mean 'linear:2'?"),
        ("yarn", "a number above 1"),
        ("yarn:", "a number above 1"),
        ("linear:1", "a number above 1"),
        ("linear:nan", "a number above 1"),
        ("linear:inf", "a number above 1"),
        ("linear:two", "not 'two'"),
        ("2", "linear:2, dynamic:2, yarn:2"),
    ],
)
def test_what_is_no_scaling(spec, says):
    with pytest.raises(UserError, match="positions") as caught:
        rope.parse(spec)
    assert says in str(caught.value)
    assert str(rope.parse("linear:2.0")) == "linear:2"


def test_positions_are_scaled_once_and_only_where_there_are_some():
    with pytest.raises(UserError, match="scaled already") as caught:
        rope.scale(text(rope_type="linear", factor=2.0).model, rope.parse("linear:2"))
    assert "linear by 2" in caught.value.why
    other = text()
    other.config.rope_parameters = {"full_attention": {"rope_theta": 1e4}, "sliding_attention": {"rope_theta": 1e4}}
    with pytest.raises(UserError, match="cannot be scaled"):
        rope.scale(other.model, rope.parse("linear:2"))


def test_frequencies_that_follow_the_length_are_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["text_config"]["rope_parameters"] |= {"rope_type": "dynamic", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="cannot be kept") as caught:
        load_model(folder, device="cpu")
    assert "dynamic" in caught.value.why


# ---------------------------------------------------------------- folders


def spoken(folder, kind):
    """The rotary embedding that plain transformers builds from a folder."""
    net = kind.from_pretrained(folder)
    return (net.model.language_model if hasattr(net.model, "language_model") else net.model).rotary_emb


@pytest.mark.parametrize("spec", SPECS)
def test_a_whole_model_keeps_its_scaling(tmp_path, spec):
    model = load_model(tiny.checkpoint(tmp_path / "base"), device="cpu", rope=spec)
    assert model.text.config.rope_parameters.get("mrope_section") == [2, 1, 1]
    assert model.text.config is model.net.config.text_config
    model.save(tmp_path / "scaled")
    built = spoken(tmp_path / "scaled", Qwen3VLForConditionalGeneration)
    again = load_model(tmp_path / "scaled", device="cpu")
    assert again.context.rope == spec
    same = load_model(tmp_path / "scaled", device="cpu", rope=spec)
    for one in (built, again.text.rotary_emb, same.text.rotary_emb):
        assert torch.equal(one.inv_freq, model.text.rotary_emb.inv_freq)
        assert one.attention_scaling == model.text.rotary_emb.attention_scaling
    again.save(tmp_path / "twice")
    assert (tmp_path / "twice" / "config.json").read_text() == (tmp_path / "scaled" / "config.json").read_text()
    with pytest.raises(UserError, match="scaled already") as caught:
        load_model(tmp_path / "scaled", device="cpu", rope="linear:3")
    assert f"trained with {spec}" in caught.value.why


@pytest.mark.parametrize("spec", SPECS[:3])
def test_an_adapter_keeps_the_scaling_of_its_training(tmp_path, spec):
    base = tiny.checkpoint(tmp_path / "base")
    model = load_model(base, device="cpu", rope=spec)
    adapters.add_adapter(model, "lora", 2, 4.0)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    again = load_model(tmp_path / "adapter", device="cpu")
    assert torch.equal(again.text.rotary_emb.inv_freq, model.text.rotary_emb.inv_freq)
    assert not torch.equal(load_model(base, device="cpu").text.rotary_emb.inv_freq, again.text.rotary_emb.inv_freq)
    with pytest.raises(UserError, match="scaled already"):
        load_model(tmp_path / "adapter", device="cpu", rope="linear:3")
    adapters.merge(again)
    (tmp_path / "merged").mkdir()
    again.save(tmp_path / "merged")
    assert torch.equal(
        spoken(tmp_path / "merged", Qwen3VLForConditionalGeneration).inv_freq, model.text.rotary_emb.inv_freq
    )
    merged = load_model(tmp_path / "merged", device="cpu")
    assert merged.context.rope == spec
    adapters.add_adapter(merged, "lora", 2, 4.0)  # on a base whose config.json is scaled
    (tmp_path / "second").mkdir()
    merged.save(tmp_path / "second")
    second = load_model(tmp_path / "second", device="cpu", rope=spec)
    assert torch.equal(second.text.rotary_emb.inv_freq, model.text.rotary_emb.inv_freq), "scaled once, not twice"


def test_other_families(tmp_path):
    words = tiny.tokenizer()
    net = text(Qwen3ForCausalLM, Qwen3Config)
    net.resize_token_embeddings(len(words))
    Qwen3(net, words).save(tmp_path / "qwen3")
    Qwen25VL(tiny.network_2_5(words), words, tiny.PIXELS).save(tmp_path / "qwen25")
    for name in ("qwen3", "qwen25"):
        before = load_model(tmp_path / name, device="cpu").text.rotary_emb.inv_freq
        after = load_model(tmp_path / name, device="cpu", rope="linear:2")
        torch.testing.assert_close(2 * after.text.rotary_emb.inv_freq, before)
    after = load_model(tmp_path / "qwen3", device="cpu", rope="yarn:2")
    after.save(tmp_path / "longer")
    assert torch.equal(spoken(tmp_path / "longer", AutoModelForCausalLM).inv_freq, after.text.rotary_emb.inv_freq)


def test_a_damaged_file_of_the_context(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    for content in ('{"rope": 2}', '{"ropes": "linear:2"}', "["):
        (folder / "context.json").write_text(content)
        with pytest.raises(UserError) as caught:
            load_model(folder, device="cpu")
        assert "context.json" in caught.value.where
    (folder / "context.json").unlink()
    load_model(folder, device="cpu").save(tmp_path / "again")
    assert not (tmp_path / "again" / "context.json").exists()


def test_a_family_without_a_reduction_says_so(tmp_path):
    with pytest.raises(UserError, match="cannot be reduced"):
        load_model(tiny.checkpoint(tmp_path / "model"), device="cpu", reduce="stride:2")


def test_names_of_weights_tell_scaled_positions(tmp_path):
    folder = tiny.checkpoint(tmp_path / "model")
    names = {
        (weights_version(model), base_version(model))
        for spec in (None, "linear:2", "yarn:2")
        for model in [load_model(folder, device="cpu", rope=spec)]
    }
    assert len(names) == 3
    assert len({name for pair in names for name in pair}) == 3
