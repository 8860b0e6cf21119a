"""NVILA beside a plain composition of transformers' classes: features, prompts, logits, gradients."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models import tiny as any_tiny
from tests.models import tiny_nvila as tiny
from tests.runtime import test_rows
from tests.runtime.test_rows import (  # noqa: F401 — collected again, with this file's network
    adapted,
    store,
    test_a_prefix_key_names_all_that_keys_and_values_depend_on,
    test_an_aloras_prefix_is_the_base_models_and_ends_before_the_header,
    test_cached_features_equal_fresh_ones,
    test_decoding_equals_the_full_forward,
    test_row_equals_one_row_per_answer,
)
from torch.nn.functional import interpolate
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models import nvila
from longtake.models.nvila import NVILA
from longtake.runtime.load import load_model, tower_fingerprint

EXACT = {"rtol": 1e-10, "atol": 1e-10}
TWO, THREE = "mlp_downsample_2x2_fix", "mlp_downsample_3x3_fix"
KINDS = {
    "basic": {"kind": TWO},
    "three": {"kind": THREE, "mm_vision_select_layer": -1},
    "columns": {"kind": "mlp_downsample", "column_major": True},
    "pools": {"kind": TWO, "pools": [[2, 1, 1], [4, 3, 3]]},
    "scales": {"kind": TWO, **tiny.SCALED},
    "tiles": {"kind": TWO, "image_aspect_ratio": "dynamic"},
}


@pytest.fixture(autouse=True)
def films(monkeypatch: pytest.MonkeyPatch) -> None:
    """The films of the tests that are collected again: as this family takes them."""
    monkeypatch.setattr(test_rows, "FILMS", {"a": tiny.film(0, 6), "b": tiny.film(1, 2)})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            tiny.model(**KINDS[name]).save(made[name])
        return made[name]

    return folder


@pytest.fixture(scope="module")
def folder(folders) -> Path:
    return folders("basic")


@pytest.fixture(scope="module")
def exact(folder: Path) -> NVILA:
    return any_tiny.exact(folder)


@pytest.mark.parametrize("name", ["basic", "three", "columns", "scales", "tiles"])
def test_features_and_logits_of_a_film_are_the_plain_ones(folders, name) -> None:
    model, plain, film = any_tiny.exact(folders(name)), tiny.Plain(folders(name)), tiny.film(0, 4)
    patches = plain.patches(film, KINDS[name].get("mm_vision_select_layer", -2))
    patches = torch.cat([patches] * 3, -1) if name == "scales" else patches
    want = plain.project(patches, name == "columns").flatten(0, 1)
    made = model.encode([film])
    assert_close(made[0].level_LNE, want[None], **EXACT)
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(film), "f")
    assert_close(tiny.logits(model, prompt, made), plain.logits(prompt, want), **EXACT)


def test_patch_leaves_out_the_first() -> None:
    model, film = tiny.model("linear", mm_vision_select_feature="patch"), tiny.film(0, 2)
    pixels = model.pixels.normal(film, torch.device("cpu"))
    hidden = model.net.eyes.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
    made = model.encode([film])[0].level_LNE[0]
    assert made.shape == (48, tiny.WIDTH)
    assert_close(made, model.net.eyes.mm_projector.layers(hidden[:, 1:]).flatten(0, 1))
    assert model.prompt(any_tiny.ask(), any_tiny.receipt(film), "f").visual[0] == (31, 55)


def test_a_film_of_pools(folders) -> None:
    model, plain, film = any_tiny.exact(folders("pools")), tiny.Plain(folders("pools")), tiny.film(0, 8)
    each = plain.project(plain.patches(film))  # [8, 9, E]
    pairs = [(each[f] + each[f + 1]) / 2 for f in range(0, 8, 2)]
    quads = [each[f : f + 4].flatten(0, 1).mean(0)[None] for f in (0, 4)]
    made = model.encode([film])
    assert model.temporal_patch == 4
    assert_close(made[0].level_LNE[0], torch.cat(pairs + quads), **EXACT)
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(film), "f")
    assert [stop - start for start, stop in prompt.visual] == [9] * 4 + [1] * 2
    assert prompt.receipt.tokens == 38
    shown = tiny.picture(70, 70)
    assert_close(model.encode([shown])[0].level_LNE, plain.project(plain.patches(shown[None])), **EXACT)


def test_a_picture_in_tiles(folders) -> None:
    model, plain, shown = any_tiny.exact(folders("tiles")), tiny.Plain(folders("tiles")), tiny.picture(140, 70)
    whole = np.asarray(Image.fromarray(shown).resize((70, 70), Image.Resampling.BICUBIC))
    want = plain.project(plain.patches(np.stack([shown[:, :70], shown[:, 70:], whole]))).flatten(0, 1)
    made = model.encode([shown])
    assert_close(made[0].level_LNE[0], want, **EXACT)
    prompt = model.prompt(any_tiny.ask(), tiny.still(shown), "f")
    assert tiny.said(model, prompt).count("<image>" * 9 + "\n\n") == 3
    assert_close(tiny.logits(model, prompt, made), plain.logits(prompt, want), **EXACT)


def test_a_picture_at_three_scales(folders) -> None:
    model, plain, shown = any_tiny.exact(folders("scales")), tiny.Plain(folders("scales")), tiny.picture(350, 140)
    maps = []
    for edge in (70, 140, None):
        one = np.asarray(Image.fromarray(shown).resize((edge, edge), Image.Resampling.BICUBIC)) if edge else shown
        rows = []
        for top in range(0, len(one), 70):
            tiles = np.stack([one[top : top + 70, left : left + 70] for left in range(0, one.shape[1], 70)])
            rows.append(torch.cat(list(plain.patches(tiles).view(-1, 5, 5, 16)), dim=1))
        at = torch.cat(rows)  # [rows * 5, columns * 5, 16]
        maps.append(interpolate(at.permute(2, 0, 1)[None].float(), (10, 25), mode="area")[0].permute(1, 2, 0).double())
    whole = torch.cat(maps, -1)
    lines = []
    for top in (0, 5):
        parts = [plain.project(whole[top : top + 5, left : left + 5].reshape(1, 25, 48)) for left in range(0, 25, 5)]
        lines.append(torch.cat([part[0].view(3, 3, -1) for part in parts], dim=1))
    want = torch.cat(lines).flatten(0, 1)
    made = model.encode([shown])
    assert_close(made[0].level_LNE[0], want, **EXACT)
    prompt = model.prompt(any_tiny.ask(), tiny.still(shown), "f")
    assert (prompt.receipt.tokens, len(prompt.visual)) == (90, 1)
    assert_close(tiny.logits(model, prompt, made), plain.logits(prompt, want), **EXACT)


@pytest.mark.parametrize("name", ["basic", "three"])
def test_gradients_of_every_part_are_the_plain_ones(folders, name) -> None:
    model, plain, film = any_tiny.exact(folders(name)), tiny.Plain(folders(name)), tiny.film(3, 3)
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(film), "f")
    weight = torch.randn(len(prompt.ids), model.lm_head.out_features, generator=torch.Generator().manual_seed(0))
    (tiny.logits(model, prompt, model.encode([film])).log_softmax(-1) * weight).sum().backward()
    token_NE = plain.project(plain.patches(film, KINDS[name].get("mm_vision_select_layer", -2))).flatten(0, 1)
    (plain.logits(prompt, token_NE).log_softmax(-1) * weight).sum().backward()
    got = {name: x.grad for name, x in model.net.named_parameters() if x.grad is not None}
    want = {name: x.grad for name, x in plain.named() if x.grad is not None and x.grad.any()}
    assert got.keys() == want.keys()
    assert any("mm_projector" in name for name in got)
    for key, gradient in want.items():
        assert_close(got[key], gradient, rtol=1e-8, atol=1e-8 * gradient.abs().max().item())


@torch.no_grad()
@pytest.mark.parametrize("name", ["pools", "scales", "tiles"])
def test_films_together_equal_films_alone(folders, name, monkeypatch) -> None:
    model = any_tiny.exact(folders(name))
    films = [tiny.film(0, 4), tiny.picture(210, 140), tiny.film(1, 8), tiny.picture(70, 70), tiny.film(2, 4)]
    films = [film for film in films if name != "scales" or film.shape[0] != 70]
    alone = [model.encode([film])[0].level_LNE for film in films]
    seen: list[int] = []
    model.tower.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    for slab in (nvila.SLAB, 3 * 25):  # in slabs of three frames as well
        monkeypatch.setattr(nvila, "SLAB", slab)
        for one, together in zip(alone, model.encode(films), strict=True):
            assert_close(together.level_LNE, one, **EXACT)
    assert max(seen[1:]) == 3
    assert model.encode([]) == []


def test_the_fingerprint_covers_tower_projector_and_config() -> None:
    def seen(**more):
        return tower_fingerprint(tiny.model("mlp_downsample", **more))

    first = tiny.model("mlp_downsample")
    prints = {
        tower_fingerprint(first),
        seen(column_major=True),
        seen(pools=[[2, 1, 1]]),
        seen(mm_vision_select_layer=-1),
    }
    with torch.no_grad():
        next(first.net.eyes.mm_projector.parameters()).add_(1.0)
        prints.add(tower_fingerprint(first))
        next(first.net.eyes.vision_tower.parameters()).add_(1.0)
        prints.add(tower_fingerprint(first))
    assert len(prints) == 6
    before = tower_fingerprint(first)
    with torch.no_grad():
        next(first.net.llm.parameters()).add_(1.0)
    assert tower_fingerprint(first) == before


def test_a_later_layer_and_the_last_norm_do_not_matter(folder: Path) -> None:
    model, film = load_model(folder, device="cpu"), tiny.film(0, 1)
    with torch.no_grad():
        before = model.encode([film])[0].level_LNE
        for part in (model.net.eyes.vision_tower.encoder.layers[2], model.net.eyes.vision_tower.post_layernorm):
            for x in part.parameters():
                x.fill_(torch.nan)
        assert torch.equal(model.encode([film])[0].level_LNE, before)


@torch.no_grad()
def test_a_reduction_takes_the_place_of_the_pools(folders) -> None:
    film = tiny.film(0, 8)
    want = any_tiny.exact(folders("pools")).encode([film])[0].level_LNE[:, :36]  # its first pool: pairs of frames
    model = any_tiny.exact(folders("pools"))
    before = tower_fingerprint(model)
    model.set_reduction("time:2")
    assert model.pixels.pools == ()
    assert_close(model.encode([film])[0].level_LNE, want, **EXACT)
    assert tower_fingerprint(model) != before
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(film), "f")
    assert tiny.said(model, prompt).count("<vila/video>" * 9 + "\n") == 4 == len(prompt.visual)
    odd = tiny.film(1, 7)  # the last frame is averaged with none
    each = any_tiny.exact(folders("basic")).encode([odd])[0].level_LNE[0].view(7, 9, -1)
    assert_close(model.encode([odd])[0].level_LNE[0, -9:], each[-1], **EXACT)
    assert (model.temporal_patch, model.prompt(any_tiny.ask(), any_tiny.receipt(odd), "f").receipt.tokens) == (1, 36)
    model.set_reduction("pool:3")
    assert_close(model.encode([odd])[0].level_LNE[0], each.mean(1), **EXACT)
    shown = tiny.picture(70, 70)
    assert (
        model.encode([shown])[0].level_LNE.shape[1]
        == model.prompt(any_tiny.ask(), tiny.still(shown), "f").receipt.tokens
    )
    for spec in ("pool:3,before", "time:2,grid"):
        with pytest.raises(UserError, match="cannot be reduced"):
            model.set_reduction(spec)


@torch.no_grad()
def test_a_checkpoint_of_scales_that_resizes_pictures_shows_one_at_each(folders) -> None:
    plain, shown = tiny.Plain(folders("scales")), tiny.picture(70, 70)
    model = tiny.model(**KINDS["scales"] | {"image_aspect_ratio": "resize"})
    want = plain.project(torch.cat([plain.patches(shown[None])] * 3, -1))
    assert_close(model.encode([shown])[0].level_LNE, want.float(), rtol=1e-4, atol=1e-4)
