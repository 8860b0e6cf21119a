"""Sizes and patches against transformers' own rules and a plain twin."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.models.tiny import MEAN, PIXELS, STD, film
from tests.plain import pixels as plain
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize

from longtake.errors import UserError
from longtake.models.pixels import Pixels

SINGLE = 1e-5  # float32 against float64, whose numbers are of size 1
CPU = torch.device("cpu")
quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)


@pytest.mark.parametrize(("frames", "width", "height"), [(2, 8, 8), (4, 24, 16), (6, 8, 40)])
def test_patches_equal_the_plain_twin(frames, width, height):
    frames_FHWC = film(0, frames, width, height)
    got = PIXELS.patchify(frames_FHWC, CPU)
    np.testing.assert_allclose(got.numpy(), plain.patchify(frames_FHWC, PIXELS), rtol=SINGLE, atol=SINGLE)


def test_patches_of_a_still_equal_the_image_processor():
    still = film(1, 1, 24, 16)
    processor = Qwen2VLImageProcessorPil(
        patch_size=4, temporal_patch_size=2, merge_size=2, do_resize=False, image_mean=MEAN, image_std=STD
    )
    want = processor(still[0], return_tensors="np")
    got = PIXELS.patchify(np.repeat(still, 2, axis=0), CPU)
    np.testing.assert_allclose(got.numpy(), want["pixel_values"], rtol=SINGLE, atol=SINGLE)
    assert PIXELS.grid(24, 16, 2) == tuple(want["image_grid_thw"][0])


def test_a_read_only_memory_map_is_fine(tmp_path):
    np.save(tmp_path / "film.npy", film(2, 2))
    mapped = np.load(tmp_path / "film.npy", mmap_mode="r")
    assert torch.equal(PIXELS.patchify(mapped, CPU), PIXELS.patchify(film(2, 2), CPU))


@pytest.mark.parametrize(("frames", "width", "height"), [(3, 8, 8), (2, 12, 8), (2, 8, 9)])
def test_a_film_that_does_not_fill_its_patches_is_refused(frames, width, height):
    with pytest.raises(ValueError, match="multiple"):
        PIXELS.patchify(film(0, frames, width, height), CPU)


qwen = Pixels(16, 2, 2, (0.5,) * 3, (0.5,) * 3, shortest_edge=4096, longest_edge=25165824)
sides, frames = st.integers(1, 4000), st.integers(1, 800)


@quick
@given(sides, sides, frames, st.sampled_from([25165824, 786432, 8192]))
def test_fit_is_the_processors_rule(width, height, frames, longest):
    if max(width, height) > 200 * min(width, height):
        return
    high, wide = smart_resize(max(frames, 2), height, width, 2, 32, 4096, longest)
    assert replace(qwen, longest_edge=longest).fit(width, height, frames) == (wide, high)


@quick
@given(sides, sides, st.integers(2, 800))
def test_fit_with_the_cap_of_qwen_vl_utils(width, height, frames):
    if max(width, height) > 200 * min(width, height):
        return
    most = max(min(768 * 32 * 32, qwen.longest_edge // frames), int(qwen.shortest_edge * 1.05)) * frames
    high, wide = smart_resize(frames, height, width, 2, 32, 4096, most)
    assert replace(qwen, cap_pixels_per_frame=True).fit(width, height, frames) == (wide, high)


@quick
@given(st.integers(32, 2000), st.integers(32, 2000), frames.map(lambda n: 2 * n), st.integers(1024, 500_000))
@example(48, 240, 1538, 8192)
def test_max_pixels_bounds_a_frame(width, height, frames, most):
    wide, high = qwen.fit(width, height, frames, most)
    assert wide % 32 == high % 32 == 0
    assert wide * high <= most or 32 in (wide, high)  # a thin film keeps one row of tokens
    if qwen.fit(width, height, frames)[0] * qwen.fit(width, height, frames)[1] <= most:
        assert (wide, high) == qwen.fit(width, height, frames)


def test_sizes_that_cannot_be():
    with pytest.raises(UserError, match=r"too small[\s\S]*1024 pixels"):
        qwen.fit(640, 480, 8, 1023)
    with pytest.raises(UserError, match="too long and thin"):
        qwen.fit(8000, 8, 8)
