"""Adapter folders: the base is found, the adapter fits it, and what does not is said in a few lines."""

import json
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from tests.models import tiny
from tests.runtime.test_load import edit, refused

from longtake.models import adapters
from longtake.runtime import load
from longtake.runtime.load import load_model, weights_version


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


@pytest.fixture
def adapter(copy, tmp_path):
    """A LoRA on `copy`."""
    model = load_model(copy, device="cpu")
    adapters.add_adapter(model, "lora", 2, 4.0)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapters_base_is_found(monkeypatch, copy, adapter, tmp_path):
    config = adapter / "adapter_config.json"
    assert json.loads(config.read_text())["base_model_name_or_path"] == str(copy.resolve())
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for name, saved in (("../model", copy.resolve()), (str(copy), copy.resolve())):  # beside the adapter; here
        edit(config, base_model_name_or_path=name)
        model = load_model(adapter, device="cpu")
        assert model.adapter.kind == "lora"
        assert model.adapter.config.base_model_name_or_path == str(saved)
    edit(config, base_model_name_or_path="someone/tiny")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(copy))
    assert load_model(adapter, device="cpu").adapter.config.base_model_name_or_path == "someone/tiny"


def test_an_adapters_base_is_not_found(copy, adapter):
    config = adapter / "adapter_config.json"
    copy.rename(copy.with_name("moved"))
    text = refused(adapter)
    assert "base model is missing" in text
    assert str(copy) in text
    assert str(config) in text
    edit(config, base_model_name_or_path=None)
    assert "names no base model" in refused(adapter)
    edit(config, base_model_name_or_path=str(adapter))
    assert "is an adapter itself" in refused(adapter)
    shutil.copy(copy.with_name("moved") / "model.safetensors", adapter)
    assert "both a model and an adapter" in refused(adapter)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"peft_type": "IA3"}, "longtake has LORA"),
        ({"use_dora": True}, "use_dora is True"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"of_a_later_peft": True}, "of_a_later_peft is True"),
        ({"r": 3}, "was not made for"),
        ({"r": "eight"}, "was not made for"),
        ({"target_modules": ["q_proj"]}, "the model needs none"),
        ({"target_modules": ["qkv"]}, "no linear layer of the decoder"),
        ({"target_modules": ["query"]}, "not found"),
        ({"alora_invocation_tokens": [1, 2]}, "acts from tokens [1, 2] on"),
    ],
)
def test_adapters_that_do_not_fit(adapter, changes, says):
    edit(adapter / "adapter_config.json", **changes)
    text = refused(adapter)
    assert says in text
    assert str(adapter) in text


def test_an_adapter_for_a_wider_model(copy, adapter, tmp_path):
    words = tiny.tokenizer()
    config = tiny.network(words).config
    config.text_config.intermediate_size = 80
    wide = tmp_path / "wide"
    tiny.Qwen3VL(tiny.Qwen3VLForConditionalGeneration(config), words, tiny.PIXELS).save(wide)
    edit(adapter / "adapter_config.json", base_model_name_or_path=str(wide))
    (adapter / "base.json").unlink()
    text = refused(adapter)
    assert "was not made for" in text
    assert "(2, 48), the model needs (2, 80)" in text


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_damaged_adapters(adapter, keep):
    weights = adapter / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:keep])
    assert "adapter's weights are damaged" in refused(adapter)
    weights.unlink()
    assert "adapter_model.safetensors is missing" in refused(adapter)


def test_a_base_that_was_trained_on(copy, adapter):
    base = load_model(copy, device="cpu")
    with torch.no_grad():
        base.net.lm_head.weight[0, 0] += 1
    base.save(copy)
    text = refused(adapter)
    assert "other weights" in text
    assert str(copy) in text
    (adapter / "base.json").unlink()
    assert load_model(adapter, device="cpu").adapter.kind == "lora"


def test_the_adapters_own_tokenizer_goes_first(copy, adapter):
    (adapter / "chat_template.jinja").write_text(tiny.TEMPLATE.replace("assistant", "helper"))
    assert "helper" in load_model(adapter, device="cpu").tokenizer.chat_template
    for name in ("tokenizer.json", "video_preprocessor_config.json"):
        (adapter / name).unlink()
    assert load_model(adapter, device="cpu").tokenizer.chat_template == tiny.TEMPLATE


def test_the_name_of_adapted_weights_costs_the_adapter(adapter, monkeypatch):
    model = load_model(adapter, device="cpu")
    names, read = [weights_version(model)], []
    one = load._digest
    monkeypatch.setattr(load, "_digest", lambda x: read.append(x.numel()) or one(x))
    names.append(weights_version(model))
    assert names[0] == names[1] == weights_version(load_model(adapter, device="cpu"))
    read.clear()
    optimizer = torch.optim.AdamW(model.adapter.weights().values(), lr=1e-3, weight_decay=0.1)
    for x in model.adapter.weights().values():
        x.grad = torch.ones_like(x)
    optimizer.step()
    assert weights_version(model) != names[0]
    assert sum(read) == sum(x.numel() for x in model.adapter.weights().values())


def test_peft_is_imported_for_adapters_only(folder):
    code = "import sys; from longtake.runtime.load import load_model; load_model(sys.argv[1], device='cpu')"
    code += "; sys.exit(len({'peft', 'bitsandbytes'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
