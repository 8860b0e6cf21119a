"""Folders of LLaVA models that are not what they should be, and those that are otherwise than usual."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from tests.models import tiny, tiny_llava
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.runtime.load import load_model

ROUNDED = 1e-5  # float64, but pixels are normalised in float32
FILMS = [tiny.film(0, 5, 40, 24), tiny.film(1, 3, 24, 24)]


@pytest.fixture
def broken(tmp_path_factory):
    made = tmp_path_factory.mktemp("broken") / "model"
    return tiny_llava.checkpoint(made)


FILMS_FILE, IMAGES_FILE = "video_preprocessor_config.json", "preprocessor_config.json"
WRONG = [
    (FILMS_FILE, {"crop_size": {"height": 28, "width": 28}}, "no multiples of 28"),
    (FILMS_FILE, {"crop_size": {"height": 24, "width": 20}}, "no square"),
    (FILMS_FILE, {"size": None}, "incomplete"),
    (FILMS_FILE, {"do_center_crop": False}, "do_center_crop is off"),
    (FILMS_FILE, {"do_resize": False}, "do_resize is off"),
    (FILMS_FILE, {"rescale_factor": 1.0}, "rescale_factor"),
    (FILMS_FILE, {"image_mean": [0.5, 0.5]}, "wrong"),
    (FILMS_FILE, {"image_mean": [0.5, 0.5, 0.5]}, "for pictures than for films"),
    (FILMS_FILE, {"longtake": {"reduction": "pol:2"}}, "did you mean pool"),
    (IMAGES_FILE, {"image_grid_pinpoints": [[24, 48]]}, "others in config.json"),
    (IMAGES_FILE, {"size": {"shortest_edge": 30}}, "resized to 30"),
    ("config.json", {"spatial_pool_mode": "conv"}, "convolution|do not belong together"),
    ("config.json", {"vision_feature_select_strategy": "full"}, "would be no grid"),
    ("config.json", {"spatial_pool_stride": 9}, "leaves no tokens"),
    ("config.json", {"video_token_index": 100000}, "no token 100000"),
    ("config.json", {"model_type": "llava_next_vidio"}, "did you mean llava_next_video"),
]


@pytest.mark.parametrize(("name", "changes", "said"), WRONG)
def test_wrong_files_are_named(broken, name, changes, said) -> None:
    tiny_llava.edit(broken, name, **changes)
    if "spatial_pool_stride" in changes:
        tiny_llava.edit(broken, FILMS_FILE, longtake={})
    with pytest.raises(UserError, match=said) as caught:
        load_model(broken, device="cpu").prompt(tiny.ask(), tiny.receipt(FILMS[1]), None)
    assert len(str(caught.value).splitlines()) <= 6


def test_one_processor_file_as_transformers_5_writes_it_is_read(broken) -> None:
    nested = json.loads((broken / "processor_config.json").read_text())
    nested |= {"image_processor": json.loads((broken / IMAGES_FILE).read_text())}
    nested |= {"video_processor": json.loads((broken / FILMS_FILE).read_text()) | {"size": {"shortest_edge": 30}}}
    for name in (IMAGES_FILE, FILMS_FILE):
        (broken / name).unlink()
    (broken / "processor_config.json").write_text(json.dumps(nested))
    assert load_model(broken, device="cpu").pixels == replace(tiny_llava.PIXELS, shortest_edge=30)


def test_missing_and_damaged_files_are_named(broken) -> None:
    (broken / FILMS_FILE).unlink()
    assert load_model(broken, device="cpu").pixels == tiny_llava.PIXELS  # as older checkpoints: one file for both
    (broken / IMAGES_FILE).unlink()
    with pytest.raises(UserError, match="no processor"):
        load_model(broken, device="cpu")
    (broken / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(UserError, match="damaged"):
        load_model(broken, device="cpu")


@torch.no_grad()
def test_a_mistral_inside_is_read_unless_it_has_a_window(tmp_path) -> None:
    folder = tiny_llava.checkpoint(tmp_path / "model", "mistral")
    model, net = load_model(folder, "float64", "cpu"), tiny_llava.plain(folder)
    prompt = model.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f")
    whole = net(
        input_ids=torch.tensor([prompt.ids]),
        pixel_values_videos=tiny_llava.processed(folder, FILMS[0]),
        use_cache=False,
    )
    got = tiny_llava.logits(model, prompt, model.encode([FILMS[0]]))
    assert_close(got, whole.logits[0], rtol=1e-3, atol=1e-3)  # norms in float32
    said = json.loads((folder / "config.json").read_text())
    tiny_llava.edit(folder, "config.json", text_config=said["text_config"] | {"sliding_window": 64})
    with pytest.raises(UserError, match="cannot share a prefix"):
        load_model(folder, device="cpu")


def test_another_networks_tokenizer_is_refused(broken) -> None:
    words = tiny_llava.tokenizer(("<image>", "<video>", "<one>", "<more>"))
    words.save_pretrained(broken)
    with pytest.raises(UserError, match="do not belong together"):
        load_model(broken, device="cpu")


@torch.no_grad()
def test_a_resize_larger_than_the_crop_and_another_patch_are_followed(tmp_path) -> None:
    folder = tiny_llava.checkpoint(tmp_path / "model")
    tiny_llava.edit(folder, FILMS_FILE, size={"shortest_edge": 30}, longtake=None)
    model, net = tiny.exact(folder), tiny_llava.plain(folder)
    assert model.fit(90, 60, 4) == (45, 30)
    film = tiny.film(0, 2, 45, 30)
    want = net.model.get_video_features(tiny_llava.processed(folder, film)).pooler_output.flatten(0, 1)
    assert_close(model.encode([film])[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    assert model.prompt(tiny.ask(), tiny.receipt(film), "f").receipt.cut == "the middle 24 x 24 pixels of 45 x 30"
    model.save(tmp_path / "again")
    assert load_model(tmp_path / "again", device="cpu").pixels == model.pixels
