"""How prompts go to an engine that is not ours: what vLLM makes of them is what we made."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engines import wide
from tests.models import tiny

FILM = tiny.film(0, 6, 16, 8)


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def model(request):
    return wide.build(request.param)


def expanded(model, sent):
    """vLLM's rule: one visual token is replaced by a film's tokens, for Qwen3-VL with its times and marks."""
    pad = model.pads[sent.kind == "image"]
    tokens = [pad] * (sent.grid[1] * sent.grid[2] // 4)
    start, stop = (model.tokenizer.convert_tokens_to_ids(f"<|vision_{mark}|>") for mark in ("start", "end"))
    whole = tokens * sent.grid[0]
    if sent.timestamps:
        times = [model.tokenizer.encode(f"<{t:.1f} seconds>", add_special_tokens=False) for t in sent.timestamps]
        whole = [one for time in times for one in (*time, start, *tokens, stop)]
    assert sent.ids.count(pad) == 1
    place = sent.ids.index(pad)
    return (*sent.ids[:place], *whole, *sent.ids[place + 1 :])


@pytest.mark.parametrize("image", [False, True])
def test_what_vllm_makes_of_it_is_the_prompt(model, image):
    receipt = replace(tiny.receipt(FILM[:2] if image else FILM), image=image)
    prompt = model.prompt(tiny.ask(), receipt, "f")
    sent = model.sent(prompt)
    assert sent.kind == ("image" if image else "video")
    assert expanded(model, sent) == prompt.ids
    assert (len(sent.timestamps) == 3) == (model.family == "qwen3_vl" and not image)
    assert sent.moved == 0


def times_of_vllm(seconds, count, rate):
    """Its multiplication, in float64."""
    step = torch.tensor([seconds], dtype=torch.float64)[0].item() * rate
    return (np.indices((count, 1, 1))[0] * step).astype(np.int64)[:, 0, 0]


@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 400), st.sampled_from([23.976, 24, 25, 29.97, 30, 60]), st.integers(1, 60))
def test_frames_stand_where_ours_stand(temporal, fps, every):
    """Whatever the distance of frames; the few distances that no float64 tells are counted."""
    model = wide_qwen()
    seconds = tuple(k * every / fps for k in range(2 * temporal))
    film = replace(tiny.receipt(FILM[:2]), indices=(0,) * len(seconds), seconds=seconds)
    prompt = model.prompt(tiny.ask(), film, "f")
    sent = model.sent(prompt)
    ours = prompt.position_3P[0, prompt.visual[0][0] : prompt.visual[0][1]].reshape(temporal, -1)[:, 0]
    off = times_of_vllm(sent.seconds, temporal, 2) - (ours - ours[0]).numpy()
    assert (off != 0).sum() == sent.moved
    assert abs(off).max() <= 1
    assert sent.moved <= temporal // 4


def test_a_distance_that_float32_rounds_both_ways_is_counted():
    model = wide_qwen()
    seconds = tuple(k * 7 / 24 for k in range(128))
    film = replace(tiny.receipt(FILM[:2]), indices=(0,) * 128, seconds=seconds)
    assert model.sent(model.prompt(tiny.ask(), film, "f")).moved > 0


def test_a_family_with_plain_positions_sends_its_own_ids():
    model = wide.build("qwen3")
    prompt = replace(model.prompt(tiny.ask(), None, None), features="f")
    assert model.sent(prompt).kind == "embeds"
    assert model.sent(prompt).ids == prompt.ids


_BUILT = []


def wide_qwen():
    _BUILT[:] = _BUILT or [wide.build("qwen2_5_vl")]
    return _BUILT[0]
