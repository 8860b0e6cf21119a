"""Scaled positions and reduced frames of every family come back from their folders."""

import pytest
import torch
from tests.models import tiny, tiny_llava, tiny_nvila

from longtake.errors import UserError
from longtake.models import adapters
from longtake.runtime.load import load_model, tower_fingerprint

FAMILIES = ("llava_next_video", "llava_original", "nvila")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("families")
    for name in FAMILIES:
        (root / name).mkdir()
    tiny_llava.checkpoint(root / FAMILIES[0])
    tiny_llava.original(root / FAMILIES[1])
    tiny_nvila.model().save(root / FAMILIES[2])
    return root


def saved(model, folder):
    folder.mkdir()
    model.save(folder)
    return load_model(folder, device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["linear:2", "dynamic:2", "yarn:4"])
def test_positions(folders, tmp_path, family, spec):
    plain, model = (load_model(folders / family, device="cpu", rope=rope) for rope in (None, spec))
    assert model.text.config is model.net.config.get_text_config()
    assert not torch.equal(plain.text.rotary_emb.inv_freq, model.text.rotary_emb.inv_freq)
    again = saved(model, tmp_path / "again")
    assert torch.equal(again.text.rotary_emb.inv_freq, model.text.rotary_emb.inv_freq)
    assert again.text.rotary_emb.attention_scaling == model.text.rotary_emb.attention_scaling


@pytest.mark.parametrize("family", FAMILIES)
def test_frames(folders, tmp_path, family):
    plain, model = (load_model(folders / family, device="cpu", reduce=spec) for spec in (None, "time:2"))
    assert plain.reduction != model.reduction
    assert tower_fingerprint(plain) != tower_fingerprint(model), "cached features would be mixed up"
    again = saved(model, tmp_path / "again")
    assert (again.reduction, again.context.reduce) == (model.reduction, "time:2")
    assert tower_fingerprint(again) == tower_fingerprint(model)
    adapters.add_adapter(again, "lora", 2, 4.0)
    adapter = saved(again, tmp_path / "adapter")
    assert adapter.reduction == model.reduction
    other = load_model(tmp_path / "adapter", device="cpu", reduce="time:4")
    assert other.context.reduce == "time:4", "frames may be reduced otherwise than in training"
    assert other.reduction != model.reduction


def test_the_file_lies_beside_weights_of_models_and_of_adapters_alone(folders, tmp_path):
    model = load_model(folders / "nvila", device="cpu", rope="linear:2")
    saved(model, tmp_path / "whole")
    assert (tmp_path / "whole" / "llm").is_dir()
    assert list(tmp_path.rglob("context.json")) == [tmp_path / "whole" / "context.json"]
    base = load_model(folders / "nvila", device="cpu", rope="linear:2")
    adapters.add_adapter(base, "lora", 2, 4.0)
    state = {name: x.detach().clone() for name, x in base.adapter.weights().items()}
    base.adapter.add("value", base.adapter.config, state, trainable=True)
    saved(base, tmp_path / "adapter")
    files = {file.parent.name for file in (tmp_path / "adapter").rglob("context.json")}
    assert files == {"adapter", "value"}


def test_a_context_file_that_tells_of_other_positions_is_refused(tmp_path):
    folder = tiny.checkpoint(tmp_path)
    (folder / "context.json").write_text('{"rope": "linear:2", "reduce": null}')
    with pytest.raises(UserError, match="disagree"):
        load_model(folder, device="cpu")
    (folder / "context.json").write_text('{"rope": "liner:2", "reduce": null}')
    with pytest.raises(UserError, match="no way to scale"):
        load_model(folder, device="cpu")
