"""LLaVA through a run's films: pictures beside films of one frame, handles, crops that receipts and strips tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.models import tiny_llava
from torch.testing import assert_close

from longtake.data.cache import FrameTier, Quarantine
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model, tower_fingerprint

FILM, PICTURE = FramePolicy(frames=1), FramePolicy(seconds=(0.0,), image=True)
SINGLE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llava.checkpoint(tmp_path_factory.mktemp("llava"))


@pytest.fixture(params=["stored", "live"])
def films(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Films:
    model = load_model(folder, device="cpu")
    stored = request.param == "stored"
    store = FeatureStore(tmp_path / "features", tower_fingerprint(model), torch.float32) if stored else None
    return Films(model, FrameTier(tmp_path / "tier"), store, Quarantine(tmp_path / "bad.jsonl"))


@torch.no_grad()
def test_a_picture_and_a_film_of_that_one_frame_are_told_apart(films: Films, tmp_path: Path) -> None:
    """Both are 48 x 24 pixels of one content; the picture is tiled, the film's frame cropped and pooled."""
    picture = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    question = Question("q", str(tmp_path / "a.png"), "What is it?")
    looks = [Look(question, FILM), Look(question, PICTURE)]
    films.encode(looks, lambda done, total: None)
    prompts = [films.prompt(look) for look in looks]
    made = films.features([prompt.features or "" for prompt in prompts])
    want = films.model.encode([picture[None], picture])
    for prompt, got, alone in zip(prompts, made, want, strict=True):
        assert_close(got.level_LNE, alone.level_LNE, rtol=SINGLE, atol=SINGLE)
        assert prompt.receipt is not None
        assert prompt.receipt.tokens == got.level_LNE.shape[1]
    assert prompts[0].features != prompts[1].features
    assert [(p.receipt.width, p.receipt.cut) for p in prompts if p.receipt] == [
        (24, "the middle 24 x 24 pixels of 48 x 24"), (48, ""),
    ]  # fmt: skip
    shown = [films.frames(look) for look in looks]
    assert np.array_equal(shown[0], picture[None, :, 12:36])
    assert np.array_equal(shown[1], picture[None])
