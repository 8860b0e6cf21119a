"""Key frames instead of centres: the rule read out loud, real films with key frames where we put them, kept tiers."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.data.films import numbers, render
from tests.plain.frames import centres, nearest_keys, shown

from longtake.data import tierfile
from longtake.data.cache import FrameTier
from longtake.data.frames import choose, picked
from longtake.data.rows import read_questions
from longtake.data.video import PyAV
from longtake.data.write import canonical
from longtake.errors import UserError
from longtake.records import Film, FramePolicy
from longtake.runtime.features import FeatureStore

SETTINGS = settings(derandomize=True, database=None, deadline=None)
KEYS = FramePolicy(frames=4, pick="keyframes")
GOP = {"preset": "ultrafast", "crf": "18", "bf": "2", "sc_threshold": "0"}


def fit(width: int, height: int, frames: int | None, max_pixels: int | None) -> tuple[int, int]:
    return 32, 32


def film(path: Path, gop: int, frames: int = 32) -> Path:
    return render(path, frames, options={**GOP, "g": str(gop), "keyint_min": str(gop)})


@given(
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
    st.integers(0, 9),
    st.integers(1, 10),
)
@SETTINGS
def test_the_rule(frames: list[tuple[int, bool]], count: int, begin: int, tenths: int) -> None:
    ticks = np.cumsum([0, *(gap for gap, _ in frames)])
    times, length = [Fraction(int(t), 1000) for t in ticks[:-1]], Fraction(int(ticks[-1]), 1000)
    start, end = length * begin / 10, min(length, length * (begin + tenths) / 10)
    keys = [key for _, key in frames]
    vfr = Film("a.mp4", "9f", len(times), float(len(times) / length), float(length), 64, 64, "h264")
    policy = FramePolicy(frames=count, start=float(start), end=float(end), pick="keyframes")
    chosen = choose(vfr, policy, ticks[:-1] / 1000, np.array(keys))
    inside = [i for i, t in enumerate(times) if start <= t < end]
    if inside and count >= len(inside):
        assert list(chosen.indices) == inside
        assert "key frame" not in chosen.cut
        return
    bins = count if inside else 1
    found = nearest_keys(times, keys, start, end, bins)
    grace = Fraction(1, 10**6) / Fraction(vfr.fps)
    middle = [shown(times, t + grace) for t in centres(start, end, bins)]
    assert list(chosen.indices) == [m if key is None else key for key, m in zip(found, middle, strict=True)]
    assert list(chosen.indices) == sorted(chosen.indices)
    without = found.count(None)
    assert (f"no key frame in {without} of {bins} bins" in chosen.cut) == bool(without)
    assert ("key frame" in chosen.cut) == bool(without)
    for i, seconds, key in zip(chosen.indices, chosen.seconds, found, strict=True):
        assert key is None or seconds == float(ticks[i] / 1000)


@given(st.lists(st.booleans(), min_size=1, max_size=90), st.integers(1, 20))
@SETTINGS
def test_times_of_a_constant_rate_change_nothing(keys: list[bool], count: int) -> None:
    steady = Film("a.mp4", "9f", len(keys), 16.0, len(keys) / 16, 64, 64, "h264")
    policy, key_N = FramePolicy(frames=count, pick="keyframes"), np.array(keys)
    assert choose(steady, policy, None, key_N) == choose(steady, policy, np.arange(len(keys)) / 16, key_N)


@pytest.mark.parametrize("gop", [1, 3, 5, 12, 40])
@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_key_frames_of_real_films(tmp_path: Path, gop: int, ending: str) -> None:
    """As the decoder itself calls the frames; and where we asked for them."""
    path = film(tmp_path / f"a.{ending}", gop)
    decoder = PyAV()
    key_N = decoder.keys(decoder.probe(path))
    with av.open(str(path)) as container:
        assert key_N.tolist() == [bool(frame.key_frame) for frame in container.decode(video=0)]
    assert np.flatnonzero(key_N).tolist() == list(range(0, 32, gop))


def test_a_tier_shows_the_key_frames(tmp_path: Path) -> None:
    """Key frames 0, 5, 10 … 30 of 32 in bins of eight: 5 is nearer to 4 than 0, 10 to 12, 20, 30 (25 is behind)."""
    path, tier = film(tmp_path / "a.mp4", 5), FrameTier(tmp_path / "tier")
    tier.fill({path: [KEYS, FramePolicy(frames=4)]}, fit, 0)
    frames, receipt = tier.take(path, KEYS, fit)
    assert numbers(frames) == list(receipt.indices) == [5, 10, 20, 30]
    assert receipt.seconds == tuple(i / 16 for i in (5, 10, 20, 30))
    assert receipt.cut == ""
    assert tier.receipt(path, FramePolicy(frames=4), fit).indices == (4, 12, 20, 28)
    assert tier.decodes() == {receipt.content: 1}
    each = tier.receipt(path, FramePolicy(fps=4.0, max_frames=4, pick="keyframes"), fit)
    assert (each.indices, each.cut) == (receipt.indices, "capped at 4 of 8 frames asked for")
    store = FeatureStore(None, "tower", None)  # type: ignore[arg-type]
    assert store.key(receipt) != store.key(tier.receipt(path, FramePolicy(frames=4), fit)), "frames tell them apart"


def test_bins_without_a_key_frame_are_counted(tmp_path: Path) -> None:
    path, tier = film(tmp_path / "a.mp4", 12), FrameTier(tmp_path / "tier")
    frames, receipt = tier.take(path, FramePolicy(frames=8, pick="keyframes"), fit)
    assert numbers(frames) == list(receipt.indices) == [0, 6, 10, 12, 18, 22, 24, 30]
    assert receipt.cut == "no key frame in 5 of 8 bins: the frame at the centre"


def test_a_tier_of_centres_learns_of_key_frames_without_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, all32 = film(tmp_path / "a.mp4", 5), FramePolicy(frames=32)
    FrameTier(tmp_path / "tier").fill({path: [all32]}, fit, 0)
    (file,) = (tmp_path / "tier").glob("*.safetensors")
    before = tierfile.read(file)
    assert before is not None
    assert before.key_N is None, "as tiers were before there were picks"
    tier = FrameTier(tmp_path / "tier")
    tier.fill({path: [KEYS]}, fit, 0)
    after = tierfile.read(file)
    assert after is not None
    assert np.flatnonzero(after.key_N).tolist() == list(range(0, 32, 5))  # type: ignore[arg-type]
    assert after.parts == before.parts
    assert (list(tier.decodes().values()), tier.repairs()) == ([1], 0)
    monkeypatch.setattr(PyAV, "probe", None)
    monkeypatch.setattr(PyAV, "keys", None)
    monkeypatch.setattr(PyAV, "decode_many", None)
    again = FrameTier(tmp_path / "tier")
    again.fill({path: [KEYS, all32]}, fit, 0)
    assert numbers(again.take(path, KEYS, fit)[0]) == [5, 10, 20, 30]


def test_key_frames_stay_known_when_frames_are_added(tmp_path: Path) -> None:
    path, tier = film(tmp_path / "a.mp4", 5), FrameTier(tmp_path / "tier")
    tier.take(path, KEYS, fit)
    tier.take(path, FramePolicy(frames=9), fit)
    (file,) = (tmp_path / "tier").glob("*.safetensors")
    stored = tierfile.read(file)
    assert stored is not None
    assert stored.key_N is not None


def test_every_picture_of_a_folder_is_a_key_frame(tmp_path: Path) -> None:
    from PIL import Image

    for i in range(10):
        Image.new("RGB", (32, 32)).save(tmp_path / f"{i}.png")
    receipt = FrameTier(tmp_path / "tier").receipt(tmp_path, FramePolicy(frames=3, pick="keyframes"), fit)
    assert receipt.cut == ""
    assert receipt.indices == (2, 5, 8)  # nearest to 1.67, 5, 8.33


def test_explicit_times_are_not_picked(tmp_path: Path) -> None:
    times = FramePolicy(seconds=(0.5, 1.0))
    with pytest.raises(UserError, match="no pick"):
        FrameTier(tmp_path / "tier").take(film(tmp_path / "a.mp4", 5), picked(times, "keyframes"), fit)
    picture = FramePolicy(seconds=(0.0,), image=True)
    assert picked(picture, "keyframes") == picture
    assert picked(KEYS, "bins") == KEYS
    assert picked(times, None) == times


def row(**look: object) -> dict[str, object]:
    parts = [{"type": "video", "video": "7.mp4", **look}, {"type": "text", "text": "what ?"}]
    return {"id": "a", "messages": [{"role": "user", "content": parts}], "answer": "x"}


def test_rows_name_pick_and_budget(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(nframes=8, pick="keyframes", budget=96)))
    (question,) = read_questions(path)
    assert question.policy == FramePolicy(frames=8, pick="keyframes", budget=96)
    path.write_text(json.dumps(canonical(question, tmp_path)))
    assert read_questions(path)[0].policy == question.policy, "what a stage writes the next one reads"


@pytest.mark.parametrize(
    ("look", "why"),
    [
        ({"pick": "key"}, "'pick' must be bins or keyframes, not 'key'"),
        ({"pick": ["bins"]}, "'pick' must be bins or keyframes"),
        ({"budget": 0}, "'budget' must be a whole number above 0"),
        ({"budget": 1.5}, "'budget' must be a whole number above 0"),
    ],
)
def test_what_is_no_pick_or_budget(tmp_path: Path, look: dict[str, object], why: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row(**look)))
    with pytest.raises(UserError, match=why):
        read_questions(path)
