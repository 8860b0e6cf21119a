"""Qwen3-VL against transformers' own forward: logits of pixels and prompt, features, save and load."""

import numpy as np
import pytest
import torch
from tests.models import tiny
from tests.plain import pixels as plain
from torch.testing import assert_close
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration

from longtake.models import qwen_vl

ROUNDED = 1e-5  # float64, but pixels and the rotation of the vision tower are float32
SINGLE = 1e-5  # float32, numbers of size 1
FILMS = [tiny.film(0, 4, 16, 8), tiny.film(1, 6, 16, 8), tiny.film(2, 2, 8, 24), tiny.film(3, 8, 16, 8)]


@pytest.fixture(scope="module")
def reference(folder):
    net = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    tiny.exact_norms(net)
    return net.eval()


def pixels(film):
    return torch.from_numpy(plain.patchify(film, tiny.PIXELS)), torch.tensor([[len(film) // 2, *grid(film)]])


def grid(film):
    return film.shape[1] // 4, film.shape[2] // 4


@torch.no_grad()
@pytest.mark.parametrize("film", FILMS)
def test_logits_equal_transformers(exact, reference, film):
    prompt = exact.prompt(tiny.ask(), tiny.receipt(film), "f")
    ids = torch.tensor([prompt.ids])
    kinds = 2 * (ids == exact.net.config.video_token_id).int()
    patches, grid_thw = pixels(film)
    want = reference(
        input_ids=ids, pixel_values_videos=patches, video_grid_thw=grid_thw, mm_token_type_ids=kinds, use_cache=False
    ).logits[0]
    assert_close(tiny.logits(exact, prompt, exact.encode([film])), want, rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
def test_text_only_logits_equal_transformers(exact, reference):
    prompt = exact.prompt(tiny.ask("2 + 2?"), None, None)
    want = reference(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0]
    assert_close(tiny.logits(exact, prompt, []), want, rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
def test_features_equal_transformers(exact, reference):
    for film in FILMS:
        patches, grid_thw = pixels(film)
        out = reference.model.visual(patches, grid_thw=grid_thw)
        want = torch.stack([out.pooler_output, *out.deepstack_features])
        assert_close(exact.encode([film])[0].level_LNE, want, rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
@pytest.mark.parametrize("slab", [65536, 16, 1])  # one call for all frames of a size; two temporal patches; one
def test_films_together_equal_films_alone(folder, monkeypatch, slab):
    model = tiny.load_model(folder, device="cpu")
    alone = [model.encode([film])[0] for film in FILMS]
    monkeypatch.setattr(qwen_vl, "SLAB", slab)
    together = model.encode(FILMS)
    assert [f.level_LNE.shape for f in together] == [(3, n, 32) for n in (4, 6, 3, 8)]
    for a, b in zip(alone, together, strict=True):
        assert_close(a.level_LNE, b.level_LNE, rtol=SINGLE, atol=SINGLE)


def test_odd_films_do_not_lend_each_other_a_frame(exact):
    with pytest.raises(ValueError, match="frames must be a multiple of 2"):
        exact.encode([tiny.film(0, 3), tiny.film(1, 5)])


def test_the_tower_learns_through_encode(folder):
    model = tiny.load_model(folder, device="cpu")
    model.encode(FILMS)[2].level_LNE.square().sum().backward()
    missing = [name for name, weight in model.tower.named_parameters() if weight.grad is None]
    assert missing == []


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(folder, tmp_path):
    model = tiny.load_model(folder, device="cpu")
    model.save(tmp_path)
    again = tiny.load_model(tmp_path, device="cpu")
    assert again.pixels == model.pixels == tiny.PIXELS
    assert again.end_ids == model.end_ids == (model.tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    prompts = [m.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f") for m in (model, again)]
    assert prompts[0].ids == prompts[1].ids
    first, second = (tiny.logits(m, p, m.encode([FILMS[0]])) for m, p in zip((model, again), prompts, strict=True))
    assert torch.equal(first, second)


def test_saved_files_are_what_transformers_reads(folder, capfd):
    image = Qwen2VLImageProcessorPil.from_pretrained(folder)
    assert (image.patch_size, image.merge_size, image.temporal_patch_size) == (4, 2, 2)
    assert dict(image.size) == {"shortest_edge": 64, "longest_edge": 4096}
    assert tuple(image.image_mean) == tiny.MEAN
    assert AutoTokenizer.from_pretrained(folder).chat_template == tiny.TEMPLATE
    capfd.readouterr()
    tiny.load_model(folder, device="cpu").save(folder)
    assert capfd.readouterr() == ("", "")


def test_end_ids_are_the_tokenizers_and_the_generation_configs(folder, tmp_path):
    model = tiny.load_model(folder, device="cpu")
    end, pad = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id
    model.net.generation_config.eos_token_id = [pad, end]
    model.save(tmp_path)
    assert tiny.load_model(tmp_path, device="cpu").end_ids == (end, pad)


@torch.no_grad()
def test_the_head_is_float32_for_a_half_precision_model(folder):
    half = tiny.load_model(folder, dtype="bfloat16", device="cpu")
    hidden_TE = torch.from_numpy(np.random.default_rng(0).normal(size=(5, 32))).bfloat16()
    got = half.head(hidden_TE)
    want = hidden_TE.double() @ half.net.lm_head.weight.double().T
    assert got.dtype == torch.float32
    assert_close(got.double(), want, rtol=SINGLE, atol=SINGLE)
