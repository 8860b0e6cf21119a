"""LLaVA-NeXT-Video and LLaVA-NeXT against transformers: features, logits, prompts, pictures; folders saved and bad."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tests.models import tiny, tiny_llava
from tests.runtime.test_rows import (  # noqa: F401 — collected again, with this file's network
    adapted,
    store,
    test_a_prefix_key_names_all_that_keys_and_values_depend_on,
    test_an_aloras_prefix_is_the_base_models_and_ends_before_the_header,
    test_cached_features_equal_fresh_ones,
    test_decoding_equals_the_full_forward,
    test_row_equals_one_row_per_answer,
)
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoTokenizer,
    LlavaNextImageProcessorPil,
    LlavaNextVideoConfig,
    LlavaNextVideoProcessor,
)

from longtake.errors import UserError
from longtake.models import llava_next_video
from longtake.models.llava_next_video import LlavaNext, LlavaNextVideo
from longtake.models.reduce import Reduction
from longtake.runtime.load import load_model, tower_fingerprint

EXACT, ROUNDED = 1e-12, 1e-5  # float64; ROUNDED where pixels or transformers' softmax are float32
FILMS = [tiny.film(0, 5, 40, 24), tiny.film(1, 3, 24, 24), tiny.film(2, 1, 24, 33)]
STILLS = [tiny.film(seed, 1, *size)[0] for seed, size in enumerate([(48, 48), (48, 30), (17, 48), (72, 24), (24, 50)])]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def folder(request, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    return tiny_llava.checkpoint(made, request.param)


@pytest.fixture(scope="module")
def exact(folder: Path) -> LlavaNextVideo:
    return tiny.exact(folder)


@pytest.fixture(scope="module")
def reference(folder: Path):
    return tiny_llava.plain(folder)


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.picture_checkpoint(tmp_path_factory.mktemp("image"))


@torch.no_grad()
@pytest.mark.parametrize("film", FILMS, ids=lambda film: f"{film.shape[2]}x{film.shape[1]}")
def test_logits_and_features_equal_transformers(folder, exact, reference, film) -> None:
    prompt = exact.prompt(tiny.ask(), tiny.receipt(film), "f")
    pixels = tiny_llava.processed(folder, film)
    made = exact.encode([film])
    want = reference.model.get_video_features(pixels).pooler_output.flatten(0, 1)
    assert made[0].level_LNE.shape == (1, len(film) * 9, 32)
    assert_close(made[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    whole = reference(input_ids=torch.tensor([prompt.ids]), pixel_values_videos=pixels, use_cache=False)
    assert_close(tiny_llava.logits(exact, prompt, made), whole.logits[0], rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
@pytest.mark.parametrize("still", STILLS, ids=lambda still: f"{still.shape[1]}x{still.shape[0]}")
def test_pictures_equal_transformers(folder, exact, reference, still) -> None:
    """A picture as it is decoded, at its `fit`, is to transformers' processor a picture of that size."""
    assert exact.fit(still.shape[1], still.shape[0], None) == (still.shape[1], still.shape[0])
    image = LlavaNextImageProcessorPil.from_pretrained(folder)(still, return_tensors="pt")
    pixels, sizes = image["pixel_values"].double(), image["image_sizes"]
    made, prompt = exact.encode([still]), exact.prompt(tiny.ask(), tiny_llava.seen(still), "f")
    want = reference.model.get_image_features(pixels, image_sizes=sizes).pooler_output[0]
    assert (prompt.receipt.tokens, prompt.receipt.cut) == (len(want), "")
    assert_close(made[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    whole = reference(input_ids=torch.tensor([prompt.ids]), pixel_values=pixels, image_sizes=sizes, use_cache=False)
    assert_close(tiny_llava.logits(exact, prompt, made), whole.logits[0], rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
def test_text_alone_equals_transformers(exact, reference) -> None:
    prompt = exact.prompt(tiny.ask("2 + 2?"), None, None)
    want = reference(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0]
    assert_close(tiny_llava.logits(exact, prompt, []), want, rtol=ROUNDED, atol=ROUNDED)


@torch.no_grad()
@pytest.mark.parametrize("slab", [16, 1, 4])
def test_films_together_equal_films_alone(folder, exact, monkeypatch, slab: int) -> None:
    films = [FILMS[0], STILLS[0], STILLS[1], *FILMS]
    alone = [exact.encode([film])[0].level_LNE for film in films]
    monkeypatch.setattr(llava_next_video, "SLAB", slab)
    for one, together in zip(alone, exact.encode(films), strict=True):
        assert_close(one, together.level_LNE, rtol=EXACT, atol=EXACT)
    assert exact.encode([]) == []


def test_a_picture_is_no_film_of_one_frame(exact) -> None:
    film = STILLS[0][None, :24]  # 48 x 24: a frame's size, and a picture's
    with torch.no_grad():
        as_film, as_picture = exact.encode([film, film[0]])
    assert as_film.level_LNE.shape[1] == exact.prompt(tiny.ask(), tiny.receipt(film), "f").receipt.tokens == 9
    assert (
        as_picture.level_LNE.shape[1]
        == exact.prompt(tiny.ask(), tiny_llava.seen(film[0]), "f").receipt.tokens
        == 36 + 6 * 13
    )


def test_the_prompt_is_the_processors(folder, exact) -> None:
    """Text and ids as transformers' processor makes them of its own pixel values; the receipt says what was cut."""
    processor = LlavaNextVideoProcessor.__new__(LlavaNextVideoProcessor)
    said = json.loads((folder / "processor_config.json").read_text())
    for name in ("patch_size", "image_token", "video_token"):
        setattr(processor, name, said[name])
    shown = processor.replace_video_token({"pixel_values_videos": tiny_llava.processed(folder, FILMS[0])}, 0)
    content = [{"type": "video"}, {"type": "text", "text": "Which cup?"}]
    words = AutoTokenizer.from_pretrained(folder)
    message = [{"role": "user", "content": content}]
    text = words.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    prompt = exact.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f")
    assert list(prompt.ids) == words(text.replace("<video>", shown))["input_ids"]
    assert [stop - start for start, stop in prompt.visual] == [45]
    assert prompt.receipt.cut == "the middle 24 x 24 pixels of 40 x 24"
    assert (prompt.receipt.width, prompt.receipt.height) == exact.shown(FILMS[0]).shape[2:0:-1] == (24, 24)
    assert exact.prompt(tiny.ask(), tiny.receipt(FILMS[1]), "f").receipt.cut == ""
    assert torch.equal(prompt.position_3P, torch.arange(len(prompt.ids)).expand(3, -1))
    assert torch.equal(exact.positions(prompt.ids, [(5, 6, 6)]), prompt.position_3P)
    with pytest.raises(ValueError, match="do not fill"):
        exact.positions(prompt.ids, [(4, 6, 6)])
    assert prompt.ids[-len(exact.header) :] == exact.header
    assert exact.tokenizer.decode(exact.header) == "ASSISTANT:"


def test_a_beginning_that_the_tokenizer_adds_is_there_once(folder) -> None:
    """Vicuna's tokenizer writes <s> itself, some templates do."""
    from tokenizers.processors import TemplateProcessing

    model = load_model(folder, device="cpu")
    start = model.tokenizer.convert_tokens_to_ids("<|im_start|>")
    model.tokenizer.bos_token = "<|im_start|>"
    model.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", start)]
    )
    plain = model.prompt(tiny.ask(), None, None).ids
    model.tokenizer.chat_template = "<|im_start|>" + tiny_llava.TEMPLATE
    assert model.prompt(tiny.ask(), None, None).ids == plain
    assert plain[:2].count(start) == 1
    assert model.tokenizer.decode(model.header) == "ASSISTANT:"


@pytest.mark.parametrize("receipt", [None, tiny.receipt(FILMS[0])])
@pytest.mark.parametrize("pad", tiny_llava.MARKS)
def test_visual_tokens_in_the_text_are_refused(exact, receipt, pad) -> None:
    for text in (f"what is {pad}?", f"{pad}what is it?"):
        with pytest.raises(UserError, match="its text holds"):
            exact.prompt(tiny.ask(text), receipt, None)


def test_a_template_without_films_is_refused(folder) -> None:
    model = load_model(folder, device="cpu")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="shows no video"):
        model.prompt(tiny.ask(), tiny.receipt(FILMS[0]), None)


@torch.no_grad()
@pytest.mark.parametrize(
    "spec", ["pool:3:max", "merge:2,pool:2:bilinear,grid", "slowfast:2,after,frame", "temporal+spatial"]
)
def test_another_reduction_is_what_the_features_are_and_stays_with_the_model(folder, tmp_path, spec) -> None:
    model, usual = load_model(folder, device="cpu", reduce=spec), load_model(folder, device="cpu")
    assert model.reduction.before == (spec.split(",")[0] in ("pool:3:max", "merge:2"))  # the checkpoint's, unless said
    assert tower_fingerprint(model) != tower_fingerprint(usual)
    model.save(tmp_path)
    for each in (model, load_model(tmp_path, device="cpu")):
        film = each.encode([FILMS[0]])[0].level_LNE
        assert film.shape[1] == each.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f").receipt.tokens
        assert each.reduction == Reduction.parse(spec, like=usual.reduction)
        assert torch.equal(each.encode([STILLS[0]])[0].level_LNE, usual.encode([STILLS[0]])[0].level_LNE)


def test_features_of_other_reductions_and_towers_are_other_features(folder) -> None:
    model = load_model(folder, device="cpu")
    keys = [tower_fingerprint(model)]
    model.set_reduction("pool:3")
    keys.append(tower_fingerprint(model))
    for part in (model.net.model.multi_modal_projector.linear_2.bias, model.net.model.image_newline):
        with torch.no_grad():
            part.add_(1.0)
        keys.append(tower_fingerprint(model))
    assert len(set(keys)) == 4


def test_the_tower_learns_through_encode(folder) -> None:
    model = load_model(folder, device="cpu", reduce="pool:2,grid")
    model.encode(FILMS)[0].level_LNE.square().sum().backward()
    unused = ("encoder.layers.2.", "post_layernorm")  # behind the layer that is looked at
    missing = {
        name for name, x in model.tower.named_parameters() if x.grad is None and not any(u in name for u in unused)
    }
    assert missing == set()
    assert sum(1 for x in model.tower.parameters() if x.grad is not None) > 30


@torch.no_grad()
def test_saved_and_loaded_is_the_same_model(folder, tmp_path) -> None:
    model = load_model(folder, device="cpu")
    model.save(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert (type(again), again.pixels, again.reduction) == (LlavaNextVideo, model.pixels, model.reduction)
    assert again.pixels == tiny_llava.PIXELS
    prompt = model.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f")
    first, second = (tiny_llava.logits(m, prompt, m.encode([FILMS[0]])) for m in (model, again))
    assert torch.equal(first, second)
    assert type(AutoConfig.from_pretrained(tmp_path)) is LlavaNextVideoConfig


# --- an image model that reads films -----------------------------------------------------------------------------


@torch.no_grad()
def test_an_image_model_has_one_mark_whatever_its_config_says_beside(image_folder, tmp_path) -> None:
    folder = shutil.copytree(image_folder, tmp_path / "image")
    tiny_llava.edit(folder, "config.json", video_token_id=5)
    model = load_model(folder, device="cpu")
    assert model.film_pad == model.picture_pad == model.net.config.image_token_id


def test_an_image_model_reads_films_and_its_pictures_are_transformers(image_folder) -> None:
    model, net = tiny.exact(image_folder), tiny_llava.plain(image_folder)
    assert type(model) is LlavaNext
    assert model.reduction == Reduction(stride=2)
    image = LlavaNextImageProcessorPil.from_pretrained(image_folder)(STILLS[1], return_tensors="pt")
    ids = torch.tensor([model.prompt(tiny.ask(), tiny_llava.seen(STILLS[1]), "f").ids])
    want = net(input_ids=ids, pixel_values=image["pixel_values"].double(), image_sizes=image["image_sizes"]).logits[0]
    got = tiny_llava.logits(model, model.prompt(tiny.ask(), tiny_llava.seen(STILLS[1]), "f"), model.encode([STILLS[1]]))
    assert_close(got, want, rtol=ROUNDED, atol=ROUNDED)
    states = net.model.vision_tower(
        tiny_llava.processed(image_folder, FILMS[0])[0], output_hidden_states=True
    ).hidden_states
    grids = net.model.multi_modal_projector(states[-2][:, 1:]).unflatten(1, (6, 6))
    pooled = (grids[:, ::2, ::2] + grids[:, 1::2, ::2] + grids[:, ::2, 1::2] + grids[:, 1::2, 1::2]) / 4
    prompt, made = model.prompt(tiny.ask(), tiny.receipt(FILMS[0]), "f"), model.encode([FILMS[0]])
    assert_close(made[0].level_LNE[0], pooled.flatten(0, 2), rtol=ROUNDED, atol=ROUNDED)
    assert [prompt.ids[start] for start, _ in prompt.visual] == [net.config.image_token_id]
    assert prompt.receipt.tokens == 45


def test_an_adapter_keeps_the_reduction(folder, tmp_path) -> None:
    from longtake.models.adapters import add_adapter

    model = load_model(folder, device="cpu", reduce="merge:0.5")
    add_adapter(model, "lora", 4, 8.0)
    tmp_path = tmp_path / "adapter"
    tmp_path.mkdir()
    model.save(tmp_path)
    again = load_model(tmp_path, device="cpu")
    assert again.reduction == model.reduction == Reduction(stride=2, merge=0.5, before=True)
    assert again.pixels == model.pixels
    shutil.rmtree(tmp_path)
