"""Qwen2.5-VL against transformers given our positions, and these against Qwen's own rule."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny
from tests.plain import pixels as plain
from tests.runtime.test_rows import (  # noqa: F401 — collected again, with this file's network
    store,
    test_cached_features_equal_fresh_ones,
    test_decoding_equals_the_full_forward,
    test_row_equals_one_row_per_answer,
)
from torch.testing import assert_close
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from longtake.errors import UserError
from longtake.models.pixels import FramePixels
from longtake.models.qwen2_5_vl import Qwen25VL

ROUNDED = 1e-5  # float64, but pixels and the rotation of the vision tower are float32
PIXELS = FramePixels(4, 2, 2, tiny.MEAN, tiny.STD, 64, 64 * 1024, image_shortest_edge=64, image_longest_edge=4096)
FILMS = [tiny.film(0, 4, 16, 8), tiny.film(1, 8, 40, 24), tiny.film(2, 2, 8, 24)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, words = tmp_path_factory.mktemp("tiny"), tiny.tokenizer()
    Qwen25VL(tiny.network_2_5(words), words, PIXELS).save(made)
    return made


@pytest.fixture(scope="module")
def exact(folder: Path) -> Qwen25VL:
    return tiny.exact(folder)


@pytest.fixture(scope="module")
def reference(folder: Path):
    net = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    tiny.exact_norms(net)
    return net.eval()


def pixels(film: np.ndarray):
    grid = len(film) // 2, film.shape[1] // 4, film.shape[2] // 4
    return torch.from_numpy(plain.patchify(film, PIXELS)), torch.tensor([grid])


@torch.no_grad()
@pytest.mark.parametrize("film", FILMS)
def test_logits_and_features_equal_transformers(exact, reference, film) -> None:
    prompt = exact.prompt(tiny.ask(), tiny.receipt(film), "f")
    ids = torch.tensor([prompt.ids])
    patches, grid_thw = pixels(film)
    made = exact.encode([film])
    want = reference.model.visual(patches, grid_thw=grid_thw).pooler_output
    assert made[0].level_LNE.shape == (1, *want.shape)
    assert_close(made[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    whole = reference(
        input_ids=ids, pixel_values_videos=patches, video_grid_thw=grid_thw,
        mm_token_type_ids=2 * (ids == exact.net.config.video_token_id).int(),
        position_ids=prompt.position_3P[:, None], use_cache=False,
    )  # fmt: skip
    assert_close(tiny.logits(exact, prompt, made), whole.logits[0], rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
def test_films_together_equal_films_alone(exact) -> None:
    films = [FILMS[0], tiny.film(5, 6, 16, 8), *FILMS[1:]]
    for one, together in zip(films, exact.encode(films), strict=True):
        assert_close(exact.encode([one])[0].level_LNE, together.level_LNE, rtol=ROUNDED, atol=ROUNDED)


def rule(ids: list[int], pad: int, grids, seconds, rate: float) -> list[list[int]]:
    """Qwen's own get_rope_index, a token at a time: what follows begins at the largest position so far, plus one."""
    rows: list[list[int]] = [[], [], []]
    films, at, start = iter(zip(grids, seconds, strict=True)), 0, 0
    while at < len(ids):
        start = max((max(row) for row in rows if row), default=-1) + 1
        if ids[at] != pad:
            for row in rows:
                row.append(start)
            at += 1
            continue
        (t, h, w), apart = next(films)
        for k in range(t):
            for y in range(h // 2):
                for x in range(w // 2):
                    for row, place in zip(rows, (int(np.float32(k) * (np.float32(apart) * rate)), y, x), strict=True):
                        row.append(start + place)
                    at += 1
    return rows


films = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)), max_size=3)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(films.map(lambda gs: [(t, 2 * h, 2 * w) for t, h, w in gs]), st.sampled_from([0.2, 0.5, 1.0, 3.7]))
def test_positions_are_qwens_rule(exact, grids, apart) -> None:
    pad = exact.net.config.video_token_id
    ids = [20]
    for t, h, w in grids:
        ids += [21, *[pad] * (t * h * w // 4), 22]
    got = exact.positions([*ids, 23], grids, [apart] * len(grids))
    assert got.tolist() == rule([*ids, 23], pad, grids, [apart] * len(grids), 2)


def test_transformers_agrees_where_the_grid_is_longer_than_the_film(exact) -> None:
    pad, grid = exact.net.config.video_token_id, (2, 8, 4)
    ids = [20, 21, *[pad] * 16, 22, 23]
    kinds = torch.tensor([[2 * (i == pad) for i in ids]])
    want, _ = exact.net.model.get_rope_index(torch.tensor([ids]), kinds, video_grid_thw=torch.tensor([grid]))
    assert torch.equal(exact.positions(ids, [grid]), want[:, 0])


@pytest.mark.parametrize("frames", [4, 64, 512, 2000])
def test_time_goes_on_behind_long_films(exact, frames: int) -> None:
    film = replace(tiny.receipt(tiny.film(0, 2)), indices=(0,) * frames, seconds=tuple(k / 4 for k in range(frames)))
    prompt = exact.prompt(tiny.ask(), film, "f")
    (start, stop), position = prompt.visual[0], prompt.position_3P
    last = int(position[0, stop - 1])
    assert last - int(position[0, start]) == frames // 2 - 1  # two positions a second, two patches a second
    assert position[:, stop].tolist() == [max(last, int(position[:, start:stop].max())) + 1] * 3


def test_a_film_of_one_frame_takes_no_time(exact) -> None:
    """Where a temporal patch is one frame."""
    assert exact.seconds(tiny.receipt(tiny.film(0, 1))) == 0.0


def test_a_film_of_two_frames_lasts_from_one_to_the_other(exact) -> None:
    film = replace(tiny.receipt(tiny.film(0, 2)), indices=(0, 72), seconds=(0.0, 3.0))
    assert exact.seconds(film) == 3.0 * exact.temporal_patch


def test_a_film_is_one_block(exact) -> None:
    prompt = exact.prompt(tiny.ask(), tiny.receipt(FILMS[1]), "f")
    assert exact.tokenizer.decode(prompt.ids).count("<|vision_start|>") == 1
    assert [stop - start for start, stop in prompt.visual] == [4 * 15]
    assert prompt.receipt.tokens == 60


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(28, 3000), st.integers(28, 3000), st.integers(2, 900), st.booleans())
def test_fit_is_the_processors_rule(width: int, height: int, frames: int, cap: bool) -> None:
    if max(width, height) > 200 * min(width, height):
        return
    pixels = FramePixels(14, 2, 2, tiny.MEAN, tiny.STD, 3136, 12845056, cap_pixels_per_frame=cap)
    share = int(128000 * 28 * 28 * 0.9) * 2 // frames
    most = max(min(12845056, share), int(3136 * 1.05)) if cap else 12845056
    high, wide = smart_resize(height, width, 28, 3136, most)
    assert pixels.fit(width, height, frames) == (wide, high)


def test_files_of_the_released_checkpoints(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "video_preprocessor_config.json").unlink()
    old = json.loads((tmp_path / "preprocessor_config.json").read_text())
    old.pop("size")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old | {"min_pixels": 64, "max_pixels": 4096}))
    model = tiny.load_model(tmp_path, device="cpu")
    want = replace(PIXELS, longest_edge=4096)
    assert model.pixels == want
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="incomplete"):
        tiny.load_model(tmp_path, device="cpu")


def test_saved_and_loaded_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    model = tiny.load_model(folder, device="cpu")
    model.save(tmp_path)
    again = tiny.load_model(tmp_path, device="cpu")
    assert (type(again), again.pixels) == (Qwen25VL, PIXELS)
    prompt = model.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f")
    with torch.no_grad():
        first, second = (tiny.logits(m, prompt, m.encode([FILMS[0]])) for m in (model, again))
    assert torch.equal(first, second)
