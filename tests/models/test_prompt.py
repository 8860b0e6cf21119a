"""Prompts and positions against transformers' own processor and rule."""

from types import MethodType, SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from longtake.errors import UserError
from longtake.records import Receipt

START, END = "<|vision_start|>", "<|vision_end|>"


def processor_text(model, question, indices, fps, grid):
    """What transformers' processor makes of one video, without the video processor that needs torchvision."""
    fake = SimpleNamespace(
        video_processor=SimpleNamespace(merge_size=2, temporal_patch_size=2),
        vision_start_token=START,
        vision_end_token=END,
        video_token="<|video_pad|>",
        all_special_multimodal_tokens=["<|video_pad|>"],
    )
    fake._calculate_timestamps = MethodType(Qwen3VLProcessor._calculate_timestamps, fake)
    metadata = SimpleNamespace(fps=fps, frames_indices=list(indices))
    inputs = {"video_grid_thw": torch.tensor([grid]), "video_metadata": [metadata]}
    shown = Qwen3VLProcessor.replace_video_token(fake, inputs, 0)
    content = [{"type": "video"}, {"type": "text", "text": question.text}]
    message = {"role": "user", "content": content}
    text = model.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    (expanded,), _ = Qwen3VLProcessor.get_text_with_replacements(fake, [text], videos_replacements=[shown])
    assert START + shown + END in expanded  # the outer pair that transformers 5 leaves, see Qwen3VL._with_times
    return expanded.replace(START + shown + END, shown)


@pytest.mark.parametrize(("frames", "fps", "stride"), [(2, 30.0, 1), (8, 29.97, 13), (6, 16.0, 7)])
def test_prompt_is_the_processors(exact, frames, fps, stride):
    indices = tuple(range(3, 3 + frames * stride, stride))
    seconds = tuple(i / fps for i in indices)
    seen = Receipt("a.mp4", "9f", indices, seconds, 24, 16, "none", 0, 0, "")
    prompt = exact.prompt(tiny.ask(), seen, "handle")
    want = processor_text(exact, tiny.ask(), indices, fps, (frames // 2, 4, 6))
    assert exact.tokenizer.decode(prompt.ids) == want
    assert list(prompt.ids) == exact.tokenizer(want)["input_ids"]
    assert (prompt.id, prompt.features) == ("q", "handle")
    assert prompt.receipt.tokens == frames // 2 * 6
    video = exact.net.config.video_token_id
    assert [i for start, stop in prompt.visual for i in range(start, stop)] == [
        place for place, token in enumerate(prompt.ids) if token == video
    ]
    assert len(prompt.visual) == frames // 2


def test_text_only(exact):
    prompt = exact.prompt(tiny.ask("2 + 2?"), None, None)
    assert exact.tokenizer.decode(prompt.ids) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert torch.equal(prompt.position_3P, torch.arange(len(prompt.ids)).expand(3, -1))
    assert (prompt.visual, prompt.receipt, prompt.features) == ((), None, None)


def test_a_visual_token_in_the_question_is_refused(exact):
    seen = tiny.receipt(tiny.film(0, 2))
    for receipt in (None, seen):
        with pytest.raises(UserError, match="video_pad"):
            exact.prompt(tiny.ask("what is <|video_pad|>?"), receipt, None)


def test_a_template_without_video_is_refused(folder):
    model = tiny.load_model(folder, device="cpu")
    model.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(UserError, match="shows no video"):
        model.prompt(tiny.ask(), tiny.receipt(tiny.film(0, 2)), None)


def sequence(model, grids, gap):
    """Token ids of films in a text, each temporal patch between its marks."""
    video = model.net.config.video_token_id
    ids = [20] * gap
    for t, h, w in grids:
        for _ in range(t):
            ids += [21, 22, *[video] * (h * w // 4), 23]
        ids += [20] * gap
    return [*ids, 24]


grids = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), max_size=3)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(grids.map(lambda gs: [(t, 2 * h, 2 * w) for t, h, w in gs]), st.integers(0, 3))
def test_positions_are_the_reference_rule(exact, grids, gap):
    ids = sequence(exact, grids, gap)
    kinds = torch.tensor([[2 * (i == exact.net.config.video_token_id) for i in ids]])
    grid_thw = torch.tensor(grids) if grids else None
    want, delta = exact.net.model.get_rope_index(torch.tensor([ids]), kinds, video_grid_thw=grid_thw)
    got = exact.positions(ids, grids)
    assert got.dtype == torch.int64
    assert torch.equal(got, want[:, 0])
    assert int(got.max()) + 1 == len(ids) + int(delta)


def test_positions_refuse_other_grids(exact):
    with pytest.raises(ValueError, match="visual tokens do not fill"):
        exact.positions(sequence(exact, [(2, 2, 4)], 1), [(2, 2, 2)])
