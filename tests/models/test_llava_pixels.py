"""Frames and pictures on the squares of a CLIP tower, against transformers' own rules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.models import tiny, tiny_llava
from torch.testing import assert_close
from transformers import CLIPImageProcessorPil, LlavaNextImageProcessorPil
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_transforms import get_resize_output_image_size
from transformers.models.llava_next.modeling_llava_next import unpad_image
from transformers.models.llava_next_video.processing_llava_next_video import LlavaNextVideoProcessor

from longtake.errors import UserError
from longtake.models.llava_pixels import LlavaPixels, best

SINGLE = 1e-5  # float32, numbers of size 1
CPU = torch.device("cpu")
POINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
CLIP = LlavaPixels(336, 14, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), 336, "crop", POINTS)
quick = settings(max_examples=300, deadline=None, derandomize=True, database=None)
sides = st.integers(1, 4000)


def shaped(width: int, height: int) -> np.ndarray:
    """A picture of that size that takes no memory."""
    return np.broadcast_to(np.zeros(1, np.uint8), (3, height, width))


@quick
@given(sides, sides, st.integers(1, 300))
def test_a_films_fit_is_the_processors_resize(width: int, height: int, frames: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    high, wide = get_resize_output_image_size(
        shaped(width, height), 336, default_to_square=False, input_data_format="channels_first"
    )
    assert CLIP.fit(width, height, frames) == (wide, high)
    assert CLIP.fit(wide, high, frames) == (wide, high)
    assert replace(CLIP, shape="squash").fit(width, height, frames) == (336, 336)
    pad = replace(CLIP, shape="pad").fit(width, height, frames)
    assert max(pad) == 336
    assert min(pad) == max(1, int(336 * min(width, height) / max(width, height)))


@settings(max_examples=1500, deadline=None, derandomize=True, database=None)
@given(sides, sides)
def test_a_pictures_fit_is_tiled_and_counted_as_the_picture_itself(width: int, height: int) -> None:
    """By transformers' rules, of the picture's own size; the pixels may be one fewer where rounding would lie."""
    if max(width, height) > 200 * min(width, height):
        return
    on = select_best_resolution((height, width), [list(point) for point in POINTS])
    assert best(width, height, POINTS) == on
    size = CLIP.fit(width, height, None)
    high, wide = get_patch_output_size(shaped(width, height), on, input_data_format="channels_first")
    assert 0 <= wide - size[0] <= 2
    assert 0 <= high - size[1] <= 2
    how = CLIP.tiling(*size)
    assert (how.rows * 336, how.columns * 336) == on
    plane = torch.empty(1, how.rows * 24, how.columns * 24)
    assert unpad_image(plane, (height, width)).shape[1:] == (how.high, how.wide)
    assert CLIP.fit(*size, None) == size


@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1920, 1080), (300, 900), (50, 50), (336, 336), (4000, 300)])
def test_counts_of_pictures_are_the_processors(size) -> None:
    processor = LlavaNextVideoProcessor.__new__(LlavaNextVideoProcessor)
    processor.patch_size, processor.num_additional_image_tokens = 14, 0
    processor.image_processor = LlavaNextImageProcessorPil(image_grid_pinpoints=[list(point) for point in POINTS])
    how = CLIP.tiling(*CLIP.fit(*size, None))
    assert 576 + how.high * (how.wide + 1) == processor._get_number_of_features(size[1], size[0], 336, 336)


@pytest.mark.parametrize(("width", "height"), [(40, 24), (24, 24), (24, 33), (25, 24), (20, 18), (18, 40)])
def test_squares_equal_the_processor(width: int, height: int) -> None:
    """Also where the resize is smaller than the crop, and the processor adds black."""
    film, edge = tiny.film(0, 3, width, height), min(width, height)
    pixels = replace(tiny_llava.PIXELS, shortest_edge=edge)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": edge}, crop_size={"height": 24, "width": 24}, image_mean=tiny.MEAN, image_std=tiny.STD
    )
    want = processor(list(film), return_tensors="pt")["pixel_values"]
    assert_close(pixels.normalised(pixels.squares(film), CPU), want, rtol=SINGLE, atol=SINGLE)


@pytest.mark.parametrize(("width", "height"), [(48, 48), (48, 30), (17, 48), (72, 24), (24, 50), (24, 24), (47, 48)])
def test_tiles_equal_the_processor(width: int, height: int) -> None:
    picture = tiny.film(1, 1, width, height)[0]
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=tiny.MEAN, image_std=tiny.STD,
        image_grid_pinpoints=[list(point) for point in tiny_llava.POINTS],
    )  # fmt: skip
    want = processor(picture, return_tensors="pt")["pixel_values"][0]
    tiles = tiny_llava.PIXELS.tiles(picture)
    assert_close(tiny_llava.PIXELS.normalised(tiles, CPU), want, rtol=SINGLE, atol=SINGLE)


def test_a_decoded_picture_and_the_original_differ_in_the_whole_picture_alone() -> None:
    """The square that shows all of it is made of the picture on its tiles, the processor makes it of the original."""
    y, x = np.mgrid[0:60, 0:80]
    picture = np.stack([3 * x, 4 * y, 255 - 3 * x], -1).astype(np.uint8)
    size = tiny_llava.PIXELS.fit(80, 60, None)
    small = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": 24}, crop_size={"height": 24, "width": 24}, image_mean=tiny.MEAN, image_std=tiny.STD,
        image_grid_pinpoints=[list(point) for point in tiny_llava.POINTS],
    )  # fmt: skip
    want = processor(picture, return_tensors="pt")["pixel_values"][0]
    got = tiny_llava.PIXELS.normalised(tiny_llava.PIXELS.tiles(small), CPU)
    assert size == (48, 36)
    assert_close(got[1:], want[1:], rtol=SINGLE, atol=SINGLE)
    grey = (got[0] - want[0]).abs() * 255 * torch.tensor(tiny.STD)[:, None, None]
    assert 0 < grey.max() <= 8  # of 255, at the edges; in the middle of a ramp they are the same
    assert grey[:, 3:-3, 3:-3].max() <= 2


def test_padding_is_the_mean_colour_on_both_sides() -> None:
    pixels = replace(tiny_llava.PIXELS, shape="pad", pinpoints=())
    film = tiny.film(0, 2, 24, 13)
    made = pixels.squares(film)
    assert made.shape == (2, 24, 24, 3)
    assert (made[:, 5:18] == film).all()
    bars = np.concatenate([made[:, :5], made[:, 18:]], 1)
    assert (bars == [int(255 * part) for part in tiny.MEAN]).all()
    assert pixels.fit(80, 60, None) == pixels.fit(80, 60, 4) == (24, 18)  # a picture is shown as a frame is


def test_sizes_that_cannot_be() -> None:
    for frames in (8, None):
        with pytest.raises(UserError, match=r"too small[\s\S]*336 x 336 = 112896"):
            CLIP.fit(640, 480, frames, 112895)
        with pytest.raises(UserError, match="too long and thin"):
            CLIP.fit(8000, 8, frames)
    with pytest.raises(UserError, match="least tiles have 225792"):
        CLIP.fit(640, 480, None, 225791)
    assert CLIP.fit(640, 480, 8, 112896) == (448, 336)
    wide, high = CLIP.fit(640, 480, None, 225792)
    assert wide * high <= 225792
    assert CLIP.fit(640, 480, None) == (672, 504)
    for shape in ("pad", "squash"):
        with pytest.raises(ValueError, match="do not go into a square"):
            replace(CLIP, shape=shape).squares(tiny.film(0, 1, 400, 20))
    with pytest.raises(ValueError, match="does not go on its tiles"):
        CLIP.tiles(tiny.film(0, 1, 2000, 2000)[0])


@quick
@given(sides, sides, st.sampled_from([225792, 300000, 338688, 451584]))
def test_max_pixels_bounds_a_picture(width: int, height: int, most: int) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    wide, high = CLIP.fit(width, height, None, most)
    how = CLIP.tiling(wide, high)
    assert how.rows * how.columns * 336 * 336 <= most
