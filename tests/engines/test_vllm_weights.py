"""What vLLM is given to read: adapters in the weights, the model untouched, bare decoders under their text class."""

import json

import pytest
import torch
from safetensors import safe_open
from tests.engines import wide
from tests.models import tiny
from torch.testing import assert_close
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from longtake.engines.vllm_weights import export, merged
from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models import adapters
from longtake.models.quantize import nf4
from longtake.records import Layout
from longtake.runtime.load import load_model

EXACT = 1e-12  # float64
SINGLE = 1e-4  # float32: an adapter is added to the weights, or to what they give


def learned(model, kind="lora"):
    adapters.add_adapter(model, kind, 4, 8.0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=generator) * 0.3)


@torch.no_grad()
def logits(model):
    """[T, V] of some text."""
    ids_T = torch.arange(20, 32)
    row, none = Row(Layout(((len(ids_T), ()),))), torch.zeros(len(ids_T), dtype=torch.bool)
    return model.head(model.hidden(model.embed(ids_T), torch.arange(len(ids_T)).expand(3, -1), none, None, row))


@pytest.mark.parametrize("family", wide.FAMILIES)
def test_a_lora_is_in_the_weights_and_the_model_is_as_before(tmp_path, family):
    model = wide.model(tmp_path / "base", family, dtype="float64")
    plain = logits(model)
    learned(model)
    state = {name: x.clone() for name, x in model.net.state_dict().items()}
    want = logits(model)
    assert (want - plain).abs().max() > 0.1
    one = load_model(tmp_path / "base", "float64", "cpu")
    assert merged(model).keys() == one.net.state_dict().keys()
    one.net.load_state_dict(merged(model))
    assert_close(logits(one), want, rtol=EXACT, atol=EXACT)
    assert_close(logits(model), want, rtol=0, atol=0)
    assert all(torch.equal(x, state[name]) for name, x in model.net.state_dict().items())


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_a_network_with_mrope_goes_whole(tmp_path, family):
    model = wide.model(tmp_path / "base", family)
    learned(model)
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out", torch.float32, 5000)
    again = load_model(tmp_path / "out", "auto", "cpu")
    assert again.family == family
    assert_close(logits(again), logits(model), rtol=SINGLE, atol=SINGLE)
    film = tiny.film(0, 4, 16, 8)
    with torch.no_grad():
        assert_close(again.encode([film])[0].level_LNE, model.encode([film])[0].level_LNE, rtol=0, atol=0)
    largest = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())["size"]["longest_edge"]
    assert largest // model.pixels.factor**2 > 5000  # visual tokens that vLLM keeps room for
    assert again.text.config.max_position_embeddings >= 5000


@pytest.mark.parametrize(("family", "name"), [("qwen3", "Qwen3ForCausalLM"), ("llava_next_video", "LlamaForCausalLM")])
def test_a_network_with_plain_positions_goes_as_its_decoder(tmp_path, family, name):
    model = wide.model(tmp_path / "base", family)
    learned(model)
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out", torch.float32, 5000)
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.architectures == [name]
    assert config.max_position_embeddings == max(5000, model.text.config.max_position_embeddings)  # vLLM reads no more
    alone, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    with torch.no_grad():
        got = alone(torch.arange(20, 32)[None]).logits[0]
    assert_close(got, logits(model), rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize("family", wide.FAMILIES)
def test_a_tied_head_goes_apart(tmp_path, family):
    """vLLM on a CPU would pack it once: weights that come later would not reach it."""
    model = wide.model(tmp_path / "base", family)
    (tmp_path / "out").mkdir()
    export(model, tmp_path / "out", torch.float32, 5000)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert not config["tie_word_embeddings"]
    assert not config.get("text_config", config)["tie_word_embeddings"]
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("lm_head.weight"), model.lm_head.weight)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", wide.FAMILIES)
def test_weights_are_written_from_where_they_lie(tmp_path, family, tied, monkeypatch):
    """A copy of all would take the model's memory again in every step; a tied head alone needs one."""
    model, given = wide.build(family, tied=tied), {}
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda net, folder, state_dict: given.update(state_dict))
    monkeypatch.setattr(type(model), "files", lambda model: {})
    export(model, tmp_path, torch.float32, 5000)
    state = model.net.state_dict()
    own = {x.data_ptr() for x in state.values()}
    assert len(given) > 10
    shared = len(state) - len(own)
    assert [name for name, x in given.items() if x.data_ptr() not in own] == ["lm_head.weight"] * shared


def test_weights_go_in_the_engines_dtype(tmp_path):
    model = wide.build("qwen3")
    export(model, tmp_path, torch.bfloat16, 5000)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("lm_head.weight"), model.lm_head.weight.bfloat16())


@pytest.mark.parametrize("spec", ["linear:2", "yarn:2", "dynamic:2"])
@pytest.mark.parametrize("family", wide.FAMILIES)
def test_scaled_positions_go_where_vllm_computes_them(tmp_path, family, spec):
    wide.build(family).save(tmp_path / "base")
    model = load_model(tmp_path / "base", "float32", "cpu", rope=spec)
    (tmp_path / "out").mkdir()
    mrope = {"qwen2_5_vl": ("linear:2", "yarn:2"), "qwen3_vl": ("linear:2",)}
    if spec in mrope.get(family, ()):
        with pytest.raises(UserError, match=r"(?s)vLLM cannot scale.*--context.rope dynamic:N"):
            export(model, tmp_path / "out", torch.float32, 1000)
        return
    export(model, tmp_path / "out", torch.float32, 1000)
    config = AutoConfig.from_pretrained(tmp_path / "out").get_text_config()
    assert config.rope_parameters == model.text.config.rope_parameters


def test_what_vllm_cannot_compute_is_refused(tmp_path):
    model = wide.model(tmp_path / "base", "qwen3")
    learned(model, "alora")
    with pytest.raises(UserError, match=r"(?s)aLoRA cannot answer through vLLM.*--engine.kind local"):
        export(model, tmp_path, torch.float32, 5000)
    model = wide.model(tmp_path / "base", "qwen3")
    nf4(model.layers)
    model.net.to("cpu")
    for adapted in (False, True):
        if adapted:
            learned(model)
        with pytest.raises(UserError, match=r"(?s)quantized.*--engine.kind local"):
            export(model, tmp_path, torch.float32, 5000)
