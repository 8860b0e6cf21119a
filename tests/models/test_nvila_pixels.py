"""How NVILA looks at films and pictures: tiles and counts of the reference, pixels of transformers' processor."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models import tiny_nvila as tiny
from torch.testing import assert_close
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from longtake.errors import UserError
from longtake.models.nvila_pixels import TilePixels

HALF = (0.5, 0.5, 0.5)
PIXELS = TilePixels(448, 32, 16, HALF, HALF, "dynamic", depth=26)
SCALED = replace(PIXELS, aspect="dynamic_s2", scales=(448, 896, 1344), onto=-1)
GRADIENT = 3  # grey levels between once and twice resized, at most, of a picture without noise


def picture(width, height, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height", "tiles"), [(448, 448, 1), (1920, 1080, 9), (640, 480, 13), (2000, 500, 5)])
def test_tiles_of_the_reference(width, height, tiles) -> None:
    patches = PIXELS.patches(*PIXELS.fit(width, height, None), None)
    assert PIXELS.tokens(patches) == [[256]] * tiles


@pytest.mark.parametrize(
    ("width", "height", "shape", "tokens"),
    [(448, 448, (3, 3), 2305), (1920, 1080, (3, 4), 3073), (1080, 1920, (5, 2), 2561)],
)
def test_maps_of_the_reference(width, height, shape, tokens) -> None:
    wide, high = SCALED.fit(width, height, None)
    assert (high // 448, wide // 448) == shape
    assert SCALED.tokens(SCALED.patches(wide, high, None)) == [[tokens - 1]]
    assert replace(SCALED, onto=0).tokens(SCALED.patches(wide, high, None)) == [[256]]
    assert replace(SCALED, onto=1).tokens(SCALED.patches(wide, high, None)) == [[1024]]


def test_of_two_aspects_as_near_a_large_picture_takes_the_later() -> None:
    two = replace(PIXELS, max_tiles=2)
    assert two.fit(300, 200, None) == (448, 448)
    assert two.fit(3000, 2000, None) == (896, 448)


def test_films_and_plain_pictures_are_one_square() -> None:
    assert PIXELS.fit(1920, 1080, 8) == SCALED.fit(100, 5000, 1) == (448, 448)
    assert replace(PIXELS, aspect="resize").fit(1920, 1080, None) == (448, 448)
    assert replace(PIXELS, min_tiles=4).fit(448, 448, None) == (896, 896)


def test_max_pixels_bounds_tiles_and_is_refused_where_none_fits() -> None:
    assert PIXELS.fit(1920, 1080, None, 6 * 448**2) == (896, 448)
    assert PIXELS.fit(1920, 1080, 8, 448**2) == (448, 448)
    for frames, pixels, most in ((8, PIXELS, 448**2 - 1), (None, SCALED, 8 * 448**2)):
        with pytest.raises(UserError, match="is too small"):
            pixels.fit(1920, 1080, frames, most)


@pytest.mark.parametrize(
    ("kind", "pools", "frames", "want"),
    [
        *(("mlp_downsample_2x2_fix", None, n, 10 * n) for n in (1, 2, 5, 8, 16)),
        *(("mlp_downsample_3x3_fix", None, n, 5 * n) for n in (1, 2, 5, 8, 16)),
        *(("mlp_downsample_2x2_fix", [[8, 1, 1]], 8 * n, 10 * n) for n in (1, 2, 4)),
        *(("mlp_downsample_3x3_fix", [[8, 1, 1]], 8 * n, 5 * n) for n in (1, 2, 4)),
        *(("mlp_downsample_2x2_fix", [[4, 1, 1], [8, 1, 1]], 8 * n, 30 * n) for n in (1, 2, 4)),
        *(("mlp_downsample_3x3_fix", [[4, 1, 1], [8, 1, 1]], 8 * n, 15 * n) for n in (1, 2, 4)),
        ("mlp_downsample_2x2_fix", [[8, 3, 3]], 8, 2),
    ],
)
def test_counts_of_the_reference(kind, pools, frames, want) -> None:
    pixels = tiny.model(kind, pools=pools).pixels
    counts = [count for block in pixels.tokens(pixels.patches(70, 70, frames)) for count in block]
    assert sum(counts) + len(counts) == want  # and a newline behind each


def test_counts_of_scales() -> None:
    pixels = tiny.model("mlp_downsample", **tiny.SCALED).pixels
    counts = [pixels.tokens(pixels.patches(*size, frames)) for *size, frames in ((210, 210, None), (350, 140, None))]
    assert counts == [[[81]], [[90]]]
    assert pixels.tokens(pixels.patches(70, 70, 4)) == [[9] * 4]
    plain = tiny.model("mlp_downsample", **tiny.SCALED | {"image_aspect_ratio": "resize"}).pixels
    assert plain.tokens(plain.patches(*plain.fit(350, 140, None), None)) == [[9]]


def test_what_fit_does_not_give_is_no_film() -> None:
    eight = tiny.model(pools=[[4, 1, 1], [6, 1, 1]]).pixels
    assert eight.frames == 12
    for size in ((70, 70, 8), (140, 70, 12), (71, 70, 12), (0, 70, None)):
        with pytest.raises(ValueError, match="multiple of 12 frames of 70 x 70"):
            eight.patches(*size)


def test_pixels_are_transformers_processors() -> None:
    frames = np.stack([picture(70, 70, seed) for seed in range(2)])
    processor = SiglipImageProcessorPil(size={"height": 70, "width": 70})
    want = processor([Image.fromarray(frame) for frame in frames], return_tensors="pt")["pixel_values"]
    got = tiny.model().pixels.normal(frames, torch.device("cpu"))
    assert_close(got, want, rtol=0, atol=1e-6)
    uneven = replace(PIXELS, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).normal(frames, torch.device("cpu"))
    for channel in range(3):
        grey = torch.from_numpy(frames[..., channel]) / 255
        assert_close(uneven[:, channel], (grey - 0.1 * (channel + 1)) / (0.4 + 0.1 * channel))


def test_tiles_lie_row_by_row_and_the_whole_is_last() -> None:
    small = replace(PIXELS, size=70, grid=5, side=3)
    shown = picture(210, 140)
    tiles = small.cut(shown)
    assert len(tiles) == 7
    for number, tile in enumerate(tiles[:-1]):
        top, left = number // 3 * 70, number % 3 * 70
        assert np.array_equal(tile, shown[top : top + 70, left : left + 70])
    assert np.array_equal(tiles[-1], np.asarray(Image.fromarray(shown).resize((70, 70), Image.Resampling.BICUBIC)))
    assert len(small.cut(picture(70, 70))) == 1


def test_the_whole_made_of_tiles_is_near_the_one_made_of_the_file() -> None:
    y, x = np.mgrid[:480, :640]
    shown = np.stack([128 + 100 * np.sin(x / 40), 128 + 100 * np.cos(y / 30), (x + y) / 5], -1).astype(np.uint8)
    wide, high = PIXELS.fit(640, 480, None)
    enlarged = np.asarray(Image.fromarray(shown).resize((wide, high), Image.Resampling.BICUBIC))
    once = np.asarray(Image.fromarray(shown).resize((448, 448), Image.Resampling.BICUBIC))
    assert np.abs(PIXELS.cut(enlarged)[-1].astype(int) - once.astype(int)).max() <= GRADIENT


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"image_aspect_ratio": "pad"}, "look at pictures"),
        ({"s2": True}, "look at pictures"),
        ({"image_aspect_ratio": "dynamic_s2"}, "look at pictures"),
        ({"image_aspect_ratio": "dynamic", "min_tiles": 13}, "config.json is wrong"),
        (tiny.SCALED | {"max_tiles": 8}, "config.json is wrong"),
        ({"pools": [[8, 2, 1]]}, "do not fill a frame"),
        ({"pools": [[8, 1, 2]]}, "do not fill a frame"),
        ({"pools": [[8, 1]]}, "unsupported video_encoder"),
        ({"pools": [[0, 1, 1]]}, "unsupported video_encoder"),
        ({"video_encoder": "{"}, "unsupported video_encoder"),
        ({"video_encoder": {"_target_": "a.PerceiverEncoder"}}, "unsupported video_encoder"),
        ({"image_encoder": {"end_tokens": None}}, "unsupported image_encoder"),
        ({"mm_vision_select_feature": "patch"}, "config.json is wrong"),
        (tiny.SCALED | {"kind": "linear", "mm_vision_select_feature": None}, "config.json is wrong"),
        ({"mm_vision_select_layer": -5}, "config.json is wrong"),
        ({"dynamic_s2": True, "s2_scales": "70,100"}, "config.json is wrong"),
        ({"dynamic_s2": True, "s2_scales": "35,70"}, "config.json is wrong"),
        ({"dynamic_s2": True, "s2_scales": "140,280"}, "config.json is wrong"),
        ({"dynamic_s2": True, "s2_scales": "70,large"}, "config.json is wrong"),
        ({"min_tiles": "few"}, "config.json is wrong"),
    ],
)
def test_a_config_that_cannot_be_followed_is_refused(more, match) -> None:
    with pytest.raises(UserError, match=match):
        tiny.model(**more)


def test_encoders_are_dicts_or_json() -> None:
    said = tiny.TSP | {"pool_sizes": [[2, 1, 1]]}
    for form in (said, json.dumps(said)):
        assert tiny.model(video_encoder=form).pixels.pools == ((2, 1, 1),)
    assert tiny.model(video_encoder={"_target_": "x.BasicVideoEncoder"}).pixels.pools == ()
