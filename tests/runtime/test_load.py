"""Loading: what is wrong with a model is said in at most six lines; names of weights follow the weights."""

import json
import shutil
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
from tests.models import tiny

from longtake.errors import UserError
from longtake.runtime.hub import PATIENCE
from longtake.runtime.load import base_version, load_model, tower_fingerprint, weights_version


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def refused(name, **options):
    with pytest.raises(UserError) as caught:
        load_model(name, device="cpu", **options)
    text = str(caught.value)
    assert len(text.splitlines()) <= 6
    assert all(len(line) < 300 for line in text.splitlines())
    return text


def edit(path, **changes):
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def test_dtypes(folder):
    assert load_model(folder, device="cpu").net.dtype == torch.float32
    assert load_model(folder, dtype="bfloat16", device="cpu").net.dtype == torch.bfloat16
    assert "auto, float32" in refused(folder, dtype="float8")


def test_nothing_is_printed_and_the_network_does_not_train(folder, capfd):
    assert not load_model(folder, device="cpu").net.training
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_config_lists_what_is_there(tmp_path):
    (tmp_path / "film.mp4").touch()
    assert "film.mp4" in refused(tmp_path)
    for number in range(20):
        (tmp_path / f"{number:02}.txt").touch()
    assert "and 13 more" in refused(tmp_path)
    assert "this is a file" in refused(tmp_path / "film.mp4")
    assert "no such model" in refused(tmp_path / "none")
    assert "hub id like" in refused("out/no-such-demo/sft/model")


def test_another_family(copy):
    edit(copy / "config.json", model_type="qwen3-vl")
    text = refused(copy)
    assert "longtake has qwen3_vl" in text
    assert "did you mean qwen3_vl?" in text
    edit(copy / "config.json", model_type="llama")
    assert "did you mean" not in refused(copy)


@pytest.mark.parametrize("name", ["config.json", "video_preprocessor_config.json"])
def test_files_that_are_no_json(copy, name):
    (copy / name).write_text("{")
    assert name in refused(copy)
    (copy / name).write_text("[]")
    assert "it is a list" in refused(copy)


@pytest.mark.parametrize("keep", [0, 5, 2000, -1])
def test_truncated_weights(copy, keep):
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    text = refused(copy)
    assert "weights are damaged" in text
    assert "model.safetensors" in text


def test_missing_weights(copy):
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    assert "model.safetensors is missing" in refused(copy)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(names)}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors is missing" in refused(copy)


def test_weights_of_another_shape(copy):
    config = json.loads((copy / "config.json").read_text())
    text = config["text_config"]
    for changes in ({"num_hidden_layers": 3}, {"num_hidden_layers": 1}, {"intermediate_size": 40}):
        edit(copy / "config.json", text_config=text | changes)
        refused(copy)


def test_missing_tokenizer_and_processor(copy):
    edit(copy / "video_preprocessor_config.json", patch_size=None)
    assert "no 'patch_size'" in refused(copy)
    (copy / "video_preprocessor_config.json").unlink()
    (copy / "preprocessor_config.json").unlink()
    assert "no video processor" in refused(copy)
    (copy / "tokenizer.json").write_text("{}")
    assert "tokenizer does not load" in refused(copy)
    (copy / "tokenizer.json").unlink()
    assert "no tokenizer" in refused(copy)


def test_no_template_or_one_in_the_old_place(copy):
    template = copy / "chat_template.jinja"
    template.rename(copy / "kept.jinja")
    assert "no chat template" in refused(copy)
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": tiny.TEMPLATE}))
    assert load_model(copy, device="cpu").tokenizer.chat_template == tiny.TEMPLATE


def test_a_tokenizer_of_another_model(copy):
    edit(copy / "config.json", video_token_id=5000)
    assert "no token 5000" in refused(copy)


def test_constants_where_transformers_5_saves_them(copy):
    """One nested processor_config.json instead of two files."""
    names = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}
    nested = {f"{kind}_processor": json.loads((copy / name).read_text()) for kind, name in names.items()}
    for name in names.values():
        (copy / name).unlink()
    (copy / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"} | nested))
    assert load_model(copy, device="cpu").pixels == tiny.PIXELS


def answer(error):
    def download(*_, **__):
        raise error

    return download


def response():
    return SimpleNamespace(headers={}, request=None)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (GatedRepoError("Access is restricted.\nmore", response=response()), "gated"),
        (RepositoryNotFoundError("404", response=response()), "check the spelling"),
        (LocalEntryNotFoundError("Got: ConnectError: Name or service not known\nmore"), "cannot be reached"),
        (ConnectionError("refused"), "cannot be reached"),
    ],
)
def test_the_hub(monkeypatch, error, says):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer(error))
    text = refused("Qwen/Qwen3-VL-2B-Instruct")
    assert says in text
    assert "more" not in text


def test_a_hub_id_loads_like_a_folder(monkeypatch, folder):
    asked = []
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda self, name, timeout: asked.append((name, timeout)))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **how: asked.append(how["local_files_only"]) or str(folder)
    )
    assert load_model("someone/tiny", device="cpu").family == "qwen3_vl"
    assert asked == [("someone/tiny", PATIENCE), False]


def test_without_the_hub_what_was_downloaded_before_is_used(monkeypatch, folder):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer(ConnectionError("no route to host")))
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, local_files_only, **_: local_files_only and str(folder)
    )
    assert load_model("someone/tiny", device="cpu").family == "qwen3_vl"
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer(LocalEntryNotFoundError("not in the cache")))
    assert "no route to host" in refused("someone/tiny")


def test_names_of_weights_follow_the_weights(folder):
    model, twin = (load_model(folder, device="cpu") for _ in range(2))
    names = [weights_version(model), tower_fingerprint(model)]
    assert names == [weights_version(twin), tower_fingerprint(twin)]
    with torch.no_grad():
        model.net.lm_head.weight[0, 0] += 1
    assert weights_version(model) != names[0]
    assert tower_fingerprint(model) == names[1]
    optimizer = torch.optim.AdamW(model.tower.parameters(), lr=1e-3)
    model.encode([tiny.film(0, 2)])[0].level_LNE.sum().backward()
    optimizer.step()
    assert tower_fingerprint(model) != names[1]
    half = load_model(folder, dtype="bfloat16", device="cpu")
    assert tower_fingerprint(half) != names[1]
    assert [weights_version(twin), tower_fingerprint(twin)] == names


def test_names_follow_what_config_json_says(folder, tmp_path):
    """The same weights compute other numbers under another config: nothing that was kept for one serves the other."""
    model = load_model(folder, device="cpu")

    def other(change):
        made = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, made)
        config = json.loads((made / "config.json").read_text())
        change(config)
        (made / "config.json").write_text(json.dumps(config))
        return load_model(made, device="cpu")

    tower = other(lambda config: config["vision_config"].update(deepstack_visual_indexes=[1, 2]))
    assert tower_fingerprint(tower) != tower_fingerprint(model)
    assert weights_version(tower) == weights_version(model)
    decoder = other(lambda config: config["text_config"]["rope_parameters"].update(rope_theta=5e5))
    assert tower_fingerprint(decoder) == tower_fingerprint(model)
    assert weights_version(decoder) != weights_version(model)
    assert base_version(decoder) != base_version(model)
    same = other(lambda config: config.update(transformers_version="5.0.0"))
    assert [name(same) for name in (weights_version, base_version, tower_fingerprint)] == [
        name(model) for name in (weights_version, base_version, tower_fingerprint)
    ]
