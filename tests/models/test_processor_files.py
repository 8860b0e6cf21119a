"""What a checkpoint's JSON files say that this code would not do, and what they leave out, is refused when loading."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tests.models import tiny, tiny_llava, tiny_nvila
from transformers import LlavaNextImageProcessorPil, LlavaNextProcessor

from longtake.errors import UserError
from longtake.models.checkpoint import colours
from longtake.models.pixels import FramePixels
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.runtime.load import load_model

PICTURES, FILMS, BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
GENERATION = "generation_config.json"
EYES = {"qwen3_vl": FILMS, "qwen2_5_vl": FILMS, "llava": FILMS, "nvila": f"vision_tower/{PICTURES}"}
EYES |= {"original": f"vision_tower/{PICTURES}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of each family."""
    folder, words = tmp_path_factory.mktemp("models"), tiny.tokenizer()
    tiny.checkpoint(folder / "qwen3_vl")
    pixels = FramePixels(4, 2, 2, tiny.MEAN, tiny.STD, 64, 64 * 1024)
    Qwen25VL(tiny.network_2_5(words), words, pixels).save(folder / "qwen2_5_vl")
    tiny_llava.checkpoint(folder / "llava")
    tiny_llava.picture_checkpoint(folder / "llava_next")
    tiny_llava.original(folder / "original")
    tiny_nvila.model().save(folder / "nvila")
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path):
    return lambda family: Path(shutil.copytree(made / family, tmp_path / family))


def edit(file: Path, **changes) -> None:
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def refused(folder: Path, match: str) -> UserError:
    with pytest.raises(UserError, match=match) as told:
        load_model(folder, device="cpu")
    assert len(str(told.value).splitlines()) <= 6
    return told.value


ODD = [
    ({"do_resize": False}, "do_resize is off"),
    ({"do_rescale": False}, "do_rescale is off"),
    ({"do_normalize": False}, "do_normalize is off"),
    ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
    ({"resample": 0}, "resample is 0"),
    ({"image_std": [0.5, 0, 0.5]}, "not above 0"),
    ({"image_std": [0.5, -0.5, 0.5]}, "not above 0"),
    ({"image_mean": [0.5, 0.5]}, "not three numbers"),
    ({"image_std": 0.5}, "not three numbers"),
    ({"image_mean": [0.5, 0.5, None]}, "wrong"),
]


@pytest.mark.parametrize("family", EYES)
@pytest.mark.parametrize(("changes", "said"), ODD)
def test_pixels_treated_in_another_way_are_refused(copy, family, changes, said) -> None:
    folder = copy(family)
    edit(folder / EYES[family], **changes)
    assert "wrong" in refused(folder, said).what


def test_colours_are_the_files_and_what_is_null_is_usual() -> None:
    usual = dict.fromkeys(("do_resize", "do_rescale", "do_normalize", "rescale_factor", "resample"))
    said = {"do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    for more in ({}, usual, said):
        assert colours({"image_mean": tiny.MEAN, "image_std": tiny.STD} | more) == (tiny.MEAN, tiny.STD)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl"])
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"image_mean": [0.5, 0.5, 0.5]}, "for pictures than for films"),
        ({"image_std": [0.5, 0.5, 0.5]}, "for pictures than for films"),
        ({"patch_size": 8}, "patch_size is 8 for pictures, 4 for films"),
        ({"merge_size": 1}, "merge_size is 1 for pictures, 2 for films"),
        ({"do_normalize": False}, "do_normalize is off"),
    ],
)
def test_pictures_of_qwen_are_made_as_films_are(copy, family, changes, said) -> None:
    folder = copy(family)
    edit(folder / PICTURES, **changes)
    refused(folder, said)


def test_nvilas_processor_makes_the_squares_of_its_tower(copy) -> None:
    folder = copy("nvila")
    square = {"height": 70, "width": 70}
    file = folder / EYES["nvila"]
    for name in ("size", "crop_size"):
        for odd in (384, 70, {"shortest_edge": 70}, {"height": 70, "width": 56}):
            edit(file, **({"size": square, "crop_size": square} | {name: odd}))
            assert refused(folder, rf"the processor's {name} is").where == str(file)
    edit(file, size=None, crop_size=square)
    load_model(folder, device="cpu")


def test_films_of_qwen3_are_not_bounded_as_pictures(copy) -> None:
    folder = copy("qwen3_vl")
    (folder / FILMS).unlink()
    assert "copy video_preprocessor_config.json" in refused(folder, "no video processor").fix
    edit(folder / PICTURES, min_pixels=64, max_pixels=4096)
    refused(folder, "no video processor")


def test_a_processor_that_transformers_5_saved_of_an_image_model_is_read(copy) -> None:
    folder = copy("llava_next")
    want, said = load_model(folder, device="cpu"), json.loads((folder / PICTURES).read_text())
    names = ("size", "crop_size", "image_mean", "image_std", "image_grid_pinpoints")
    image = LlavaNextImageProcessorPil(**{name: said[name] for name in names})
    processor = LlavaNextProcessor(image, want.tokenizer, patch_size=4, vision_feature_select_strategy="default")
    for name in (PICTURES, FILMS, BOTH):
        (folder / name).unlink()
    processor.save_pretrained(folder)
    assert not (folder / PICTURES).exists()
    assert load_model(folder, device="cpu").pixels == want.pixels


def test_an_empty_file_is_not_passed_over(copy) -> None:
    folder = copy("llava")
    (folder / FILMS).write_text("{}")
    refused(folder, "image_mean is None|incomplete")


def test_tiles_of_the_original_layout_are_the_towers(copy) -> None:
    folder = copy("original")
    for points, said in (([[25, 48]], "no multiples of 24"), ([[24, 48], [0, 24]], "no multiples"), ([[24]], "wrong")):
        edit(folder / "config.json", image_grid_pinpoints=points)
        assert refused(folder, said).what == "config.json is wrong"


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava", "original", "nvila"])
def test_a_damaged_generation_config_is_named(copy, family) -> None:
    folder = copy(family)
    file = folder / ("llm" if family == "nvila" else "") / GENERATION
    file.write_text('{"eos_token_id": ')
    assert refused(folder, "not a JSON file").where == str(file)


@pytest.mark.parametrize(
    ("family", "file", "changes", "said"),
    [
        ("original", EYES["original"], {"image_mean": ..., "image_std": ...}, "image_mean is None"),
        ("original", "config.json", {"hidden_size": "x"}, "hidden_size"),
        ("original", "config.json", {"mm_vision_select_layer": -5}, "mm_vision_select_layer is -5"),
        ("original", "config.json", {"mm_vision_select_layer": 4}, "mm_vision_select_layer is 4"),
        ("original", "config.json", {"mm_vision_select_layer": "last"}, "no whole number"),
        ("original", "config.json", {"mm_spatial_pool_stride": 2.5}, "no whole number"),
        ("nvila", "llm/config.json", {"hidden_size": ...}, "no hidden_size"),
        ("llava", "config.json", {"vision_feature_layer": -5}, "vision_feature_layer is -5, the tower has 3 layers"),
        ("llava", "config.json", {"vision_feature_layer": 4}, "vision_feature_layer is 4"),
        ("nvila", "config.json", {"video_encoder": {"_target_": "x.BasicVideoEncoder", "end_tokens": 5}}, "are text"),
    ],
)
def test_what_would_end_in_somebody_elses_error_is_said(copy, family, file, changes, said) -> None:
    folder = copy(family)
    edit(folder / file, **changes)
    refused(folder, said)


def test_no_network_is_built_of_a_config_that_does_not_say_its_size(copy, monkeypatch) -> None:
    from transformers import Qwen3VLForConditionalGeneration

    def built(*_, **__):
        raise AssertionError("a network of transformers' own size")

    monkeypatch.setattr(Qwen3VLForConditionalGeneration, "from_pretrained", built)
    folder = copy("qwen3_vl")
    edit(folder / "config.json", text_config=...)
    assert refused(folder, "config.json is incomplete").where == str(folder / "config.json")


def test_a_flat_config_of_qwen2_5_is_read(copy) -> None:
    """As on the hub: the language model's keys stand in the root."""
    folder = copy("qwen2_5_vl")
    said = json.loads((folder / "config.json").read_text())
    want = load_model(folder, device="cpu")
    edit(folder / "config.json", **(said["text_config"] | said | {"text_config": ...}))
    got = load_model(folder, device="cpu")
    assert got.net.config.text_config.hidden_size == want.net.config.text_config.hidden_size == 32


@pytest.mark.parametrize(
    "kind", ["qwen2_vl", "llava_onevision", "qwen2_5_omni", "qwen3_5", "qwen3_vl_moe", "llava", "qwen2"]
)
def test_another_family_is_no_typo(copy, kind) -> None:
    folder = copy("qwen3_vl")
    edit(folder / "config.json", model_type=kind)
    told = refused(folder, "unsupported model")
    assert told.fix == ""
    assert f"'{kind}', another family; longtake has qwen3_vl, qwen2_5_vl" in told.why
