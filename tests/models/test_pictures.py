"""Pictures against transformers' own image rules: size, prompt, positions, logits."""

from dataclasses import replace
from types import MethodType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny
from torch.testing import assert_close
from transformers import Qwen2VLImageProcessorPil, Qwen3VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.models.pixels import Pixels
from longtake.records import Layout
from longtake.runtime.inputs import fill

ROUNDED = 1e-5  # float64, but pixels and the rotation of the vision tower are float32
STILLS = [np.repeat(tiny.film(seed, 1, *size), 2, axis=0) for seed, size in enumerate([(16, 8), (8, 24), (32, 16)])]
QWEN = Pixels(16, 2, 2, (0.5,) * 3, (0.5,) * 3, 4096, 25165824, image_shortest_edge=65536, image_longest_edge=16777216)
quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def seen(still_2HWC):
    return replace(tiny.receipt(still_2HWC, step=0.0), indices=(0, 0), padded=1, image=True)


def prompt(model, still_2HWC, text="Which cup?"):
    return model.prompt(tiny.ask(text), seen(still_2HWC), "f")


@torch.no_grad()
@pytest.mark.parametrize("still", STILLS, ids=lambda still: f"{still.shape[2]}x{still.shape[1]}")
def test_logits_equal_transformers(exact, folder, still):
    reference = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    tiny.exact_norms(reference)
    image = Qwen2VLImageProcessorPil.from_pretrained(folder, do_resize=False)(still[0], return_tensors="pt")
    made = prompt(exact, still)
    ids = torch.tensor([made.ids])
    want = reference(
        input_ids=ids, pixel_values=image["pixel_values"].double(), image_grid_thw=image["image_grid_thw"],
        mm_token_type_ids=(ids == exact.net.config.image_token_id).int(), use_cache=False,
    ).logits[0]  # fmt: skip
    visual_T = torch.zeros(len(made.ids), dtype=torch.bool)
    for start, stop in made.visual:
        visual_T[start:stop] = True
    embed_TE, deepstack = fill(exact, ids[0], visual_T, exact.encode([still]))
    row = Row(Layout(((len(made.ids), ()),)))
    got = exact.head(exact.hidden(embed_TE, made.position_3P, visual_T, deepstack, row))
    assert_close(got, want, rtol=ROUNDED, atol=ROUNDED)


def test_prompt_is_the_processors(exact):
    made = prompt(exact, STILLS[2])
    fake = SimpleNamespace(
        image_processor=SimpleNamespace(merge_size=2),
        image_token="<|image_pad|>",
        all_special_multimodal_tokens=["<|image_pad|>"],
    )
    fake.shown = MethodType(Qwen3VLProcessor.replace_image_token, fake)
    shown = fake.shown({"image_grid_thw": torch.tensor([[1, 4, 8]])}, 0)
    content = [{"type": "image"}, {"type": "text", "text": "Which cup?"}]
    text = exact.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    (want,), _ = Qwen3VLProcessor.get_text_with_replacements(fake, [text], images_replacements=[shown])
    assert exact.tokenizer.decode(made.ids) == want
    assert "seconds" not in want
    assert made.visual == ((made.ids.index(exact.net.config.image_token_id), made.visual[0][0] + 8),)
    assert (made.receipt.tokens, made.receipt.image) == (8, True)


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3)).map(lambda size: (1, 2 * size[0], 2 * size[1]))


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(sizes, st.integers(0, 3))
def test_positions_are_the_reference_rule(exact, grid, gap):
    image = exact.net.config.image_token_id
    ids = [*[20] * gap, 21, *[image] * (grid[1] * grid[2] // 4), 22, *[20] * gap, 24]
    kinds = torch.tensor([[int(i == image) for i in ids]])
    want, _ = exact.net.model.get_rope_index(torch.tensor([ids]), kinds, image_grid_thw=torch.tensor([grid]))
    assert torch.equal(exact.positions(ids, [grid]), want[:, 0])


@quick
@given(st.integers(1, 4000), st.integers(1, 4000), st.sampled_from([16777216, 262144, 65536]))
def test_fit_is_the_image_processors_rule(width, height, longest):
    if max(width, height) > 200 * min(width, height):
        return
    high, wide = smart_resize(height, width, 32, 65536, longest)
    assert replace(QWEN, image_longest_edge=longest).fit(width, height, None) == (wide, high)


@quick
@given(st.integers(8, 3000), st.integers(8, 3000), st.integers(1024, 500_000))
def test_max_pixels_bounds_a_picture(width, height, most):
    if max(width, height) > 200 * min(width, height):
        return
    wide, high = QWEN.fit(width, height, None, most)
    assert wide % 32 == high % 32 == 0
    assert min(wide, high) > 0
    assert wide * high <= most or 32 in (wide, high)  # a thin picture keeps one row of tokens


def test_limits_of_films_are_not_those_of_pictures():
    assert QWEN.fit(64, 64, 2) == (64, 64)
    assert QWEN.fit(64, 64, None) == (256, 256)
    for width, height, most, why in ((640, 480, 1023, "too small"), (8000, 8, None, "too long and thin")):
        with pytest.raises(UserError, match=why):
            QWEN.fit(width, height, None, most)


def test_visual_tokens_in_the_text_and_a_template_without_pictures_are_refused(exact, folder):
    for pad in ("<|image_pad|>", "<|video_pad|>"):
        with pytest.raises(UserError, match="image_pad"):
            prompt(exact, STILLS[0], f"what is {pad}?")
    model = tiny.load_model(folder, device="cpu")
    model.tokenizer.chat_template = tiny.TEMPLATE.replace("'image'", "'picture'")
    with pytest.raises(UserError, match="shows no image"):
        prompt(model, STILLS[0])
