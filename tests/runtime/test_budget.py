"""A budget of visual tokens: as many frames as trying all numbers would find, said in the receipt, by real films."""

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from tests.data.films import numbers, render
from tests.models import tiny, tiny_llava

from longtake.data.cache import FrameTier, Quarantine
from longtake.errors import UserError
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3_vl import Qwen3VL
from longtake.records import FramePolicy, Question
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model
from longtake.runtime.onlooker import Onlooker
from longtake.train.context_settings import Context
from longtake.train.settings import merged

WORDS = tiny.tokenizer()
ROOMY = replace(tiny.PIXELS, longest_edge=64 * 64 * 64)


@cache
def model(family):
    """Of a fixed size a frame; of frames that become smaller as they become more; one token grid for all."""
    if family == "qwen3_vl":
        return Qwen3VL(tiny.network(WORDS), WORDS, ROOMY)
    if family == "shrinking":
        return Qwen3VL(tiny.network(WORDS), WORDS, replace(tiny.PIXELS, longest_edge=4 * 64 * 64))
    if family == "qwen2_5_vl":
        return Qwen25VL(tiny.network_2_5(WORDS), WORDS, ROOMY)
    with tempfile.TemporaryDirectory() as folder:
        return load_model(tiny_llava.checkpoint(Path(folder)), device="cpu")


@pytest.fixture
def film(tmp_path):
    return str(render(tmp_path / "a.mp4", 24))


def films(family, folder, **context):
    made = Films(model(family), FrameTier(folder / "tier"), None, Quarantine(folder))
    Context(**context).onto(made)
    return made


def look(film, policy):
    return Look(Question("q", film, "Which cup?"), policy)


def tokens(free, film, policy, frames):
    return free.prompt(look(film, replace(policy, frames=frames, fps=None, max_frames=None))).receipt.tokens


def seen_or_said(held, asked):
    try:
        return held.prompt(asked).receipt
    except UserError as error:
        return error.what


POLICIES = (
    FramePolicy(frames=16),
    FramePolicy(frames=40),
    FramePolicy(fps=8.0, max_frames=9),
    FramePolicy(frames=5, start=0.3, end=1.2),
)


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_vl", "llava"])
@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_the_most_frames_within_the_budget(tmp_path, film, family, policy):
    free = films(family, tmp_path)
    seen = free.prompt(look(film, policy)).receipt
    most = len(seen.indices) - seen.padded
    each = {k: tokens(free, film, policy, k) for k in range(1, most + 1)}
    for budget in sorted({n + d for n in each.values() for d in (-1, 0, 1)}):
        held = films(family, tmp_path, budget=budget)
        within = [k for k, n in each.items() if n <= budget]
        found = seen_or_said(held, look(film, policy))
        if not within:
            assert found == "1 frame of a film is beyond the budget"
            continue
        if max(within) == most:
            assert found == seen
            continue
        best = free.prompt(look(film, replace(policy, frames=max(within), fps=None, max_frames=None))).receipt
        asked = policy.frames or 12
        said = f"capped at {max(within)} of {asked} frames asked for: at most {budget} visual tokens"
        assert found == replace(best, cut=said)
        assert found.tokens <= budget


def test_frames_that_become_smaller_keep_the_budget_too(tmp_path, film):
    """Then more frames need not be more tokens; what is found is within, and the next number is not."""
    policy, free = FramePolicy(frames=16), films("shrinking", tmp_path)
    each = {k: tokens(free, film, policy, k) for k in range(1, 17)}
    assert sorted(each.values()) != list(each.values()) or len(set(each.values())) < 8
    for budget in range(min(each.values()), max(each.values()) + 1):
        seen = films("shrinking", tmp_path, budget=budget).prompt(look(film, policy)).receipt
        k = len(seen.indices) - seen.padded
        assert seen.tokens <= budget
        assert k == 16 or each[k + 1] > budget


def test_only_what_is_seen_is_decoded(tmp_path, film):
    held = films("qwen3_vl", tmp_path, budget=4 * 64)
    policy = FramePolicy(frames=16, pick="keyframes")
    held.decode({film: [policy]}, 1, lambda done, all_: None)
    receipt = held.receipt(look(film, policy))
    assert receipt.cut.startswith(
        "capped at 8 of 16 frames asked for: at most 256 visual tokens; no key frame in 7 of 8"
    )
    assert numbers(held.frames(look(film, policy))) == list(receipt.indices)
    assert list(held.tier.decodes().values()) == [1]
    (file,) = (tmp_path / "tier").glob("*.safetensors")
    assert file.stat().st_size < 9 * 3 * 64 * 64 + 4000, "eight frames, not sixteen"


def test_a_row_goes_before_the_run(tmp_path, film):
    held = films("qwen3_vl", tmp_path, budget=64, pick="keyframes")
    row = merged(FramePolicy(budget=128, pick="bins"), FramePolicy(frames=16), 768)
    assert row == FramePolicy(frames=16, budget=128, pick="bins")
    assert held.prompt(look(film, row)).receipt.cut == "capped at 4 of 16 frames asked for: at most 128 visual tokens"
    assert held.settled(film, FramePolicy(frames=16)) == FramePolicy(
        frames=16, max_frames=2, budget=64, pick="keyframes"
    )
    free = films("qwen3_vl", tmp_path)
    assert free.settled(film, row) == replace(row, max_frames=4)
    assert free.settled(film, replace(row, budget=9999)) == replace(row, budget=None)
    assert merged(FramePolicy(budget=7), FramePolicy(fps=1.0, max_frames=3), 768).budget == 7
    assert merged(FramePolicy(frames=2, budget=7, pick="bins"), FramePolicy(frames=8), 768).pick == "bins"


def test_what_cannot_be_thinned_is_refused(tmp_path, film):
    held = films("qwen3_vl", tmp_path, budget=100)
    with pytest.raises(UserError, match="5 frames of a film are beyond the budget") as caught:
        held.prompt(look(film, FramePolicy(seconds=(0.1, 0.2, 0.3, 0.4, 0.5))))
    assert caught.value.why == "192 visual tokens, of 100 allowed"
    two = FramePolicy(seconds=(0.1, 0.2))
    assert held.settled(film, two) == two


def test_a_film_that_cannot_be_read_goes_to_the_quarantine(tmp_path, film):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(Path(film).read_bytes()[:900])
    held = films("qwen3_vl", tmp_path, budget=4 * 64)
    held.decode({str(bad): [FramePolicy(frames=8)], film: [FramePolicy(frames=8)]}, 1, lambda done, all_: None)
    assert held.quarantine.holds(bad)
    assert held.used == 1


def test_an_endpoint_keeps_no_budget(tmp_path, film):
    remote = Films(Onlooker(4096), FrameTier(tmp_path / "tier"), None, Quarantine(tmp_path))
    with pytest.raises(UserError, match="a budget of 64 visual tokens cannot be kept"):
        remote.prompt(look(film, FramePolicy(frames=4, budget=64)))
    remote.pick = "keyframes"
    assert "no key frame in 3 of 4 bins" in remote.prompt(look(film, FramePolicy(frames=4))).receipt.cut
