"""The frame tier: each film decoded once, the same pixels whoever decodes, and no half file whatever happens."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.data.films import numbers, render

from longtake.data import cache, tierfile
from longtake.data.cache import FrameTier, Quarantine
from longtake.data.video import PyAV, VideoError
from longtake.errors import UserError
from longtake.records import FramePolicy

POLICIES = (FramePolicy(frames=8), FramePolicy(frames=4, max_pixels=256), FramePolicy(fps=2.0, start=0.5))


def fit(width: int, height: int, frames: int, max_pixels: int | None) -> tuple[int, int]:
    """Frames of 32 x 32, or as few pixels as are allowed."""
    return (16, 16) if max_pixels else (32, 32)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    return [render(folder / f"{k}.mp4", 32 + k, first=100 * k) for k in range(5)]


def wants(films: Sequence[Path], policies: Sequence[FramePolicy] = POLICIES) -> dict[Path, Sequence[FramePolicy]]:
    return dict.fromkeys(films, policies)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_pixels_and_receipts_are_those_of_the_film(films: list[Path], tmp_path: Path, workers: int) -> None:
    tier, decoder = FrameTier(tmp_path), PyAV()
    seen: list[tuple[int, int]] = []
    tier.fill(wants(films), fit, workers, Quarantine(tmp_path), lambda done, films: seen.append((done, films)))
    assert seen == [(k, 5) for k in range(1, 6)]
    for k, path in enumerate(films):
        film = decoder.probe(path)
        for policy, size in zip(POLICIES, [(32, 32), (16, 16), (32, 32)], strict=True):
            frames, receipt = tier.take(path, policy, fit, 2)
            np.testing.assert_array_equal(frames, decoder.decode(film, receipt.indices, size)[0])
            assert numbers(frames) == [100 * k + i for i in receipt.indices]
            assert receipt.seconds == tuple(i / 16 for i in receipt.indices)
            assert (receipt.width, receipt.height) == size
            assert (receipt.path, receipt.content, receipt.backend) == (str(path), film.content, decoder.name)
            assert tier.receipt(path, policy, fit, 2) == receipt
    assert set(tier.decodes().values()) == {1}
    assert len(tier.decodes()) == 5


def test_files_do_not_depend_on_the_number_of_workers(films: list[Path], tmp_path: Path) -> None:
    for workers in (0, 2):
        FrameTier(tmp_path / str(workers)).fill(wants(films), fit, workers)
    for file in (tmp_path / "0").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "2" / file.name).read_bytes()
        assert set(load_file(file)) == {"16x16", "32x32"}, "any reader of safetensors can open it"


def test_the_last_frame_fills_the_temporal_patch(films: list[Path], tmp_path: Path) -> None:
    frames, receipt = FrameTier(tmp_path).take(films[0], FramePolicy(frames=5), fit, 4)
    assert receipt.padded == 3
    assert receipt.indices == (3, 9, 16, 22, 28, 28, 28, 28)
    assert numbers(frames) == list(receipt.indices)
    assert FrameTier(tmp_path).take(films[0], FramePolicy(frames=8), fit, 4)[1].padded == 0


def test_what_is_there_is_not_decoded_again_after_a_restart(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FrameTier(tmp_path).fill(wants(films), fit, 0)
    again = FrameTier(tmp_path)
    monkeypatch.setattr(PyAV, "probe", None)
    monkeypatch.setattr(PyAV, "decode_many", None)
    again.fill(wants(films), fit, 0)
    assert again.take(films[0], POLICIES[0], fit)[0].shape == (8, 32, 32, 3)
    assert set(again.decodes().values()) == {1}


def test_frames_that_are_missing_are_decoded_merged_and_counted(films: list[Path], tmp_path: Path) -> None:
    tier = FrameTier(tmp_path)
    tier.fill(wants(films[:1]), fit, 0)
    frames, receipt = tier.take(films[0], FramePolicy(frames=16), fit)
    assert numbers(frames) == list(receipt.indices)
    content = receipt.content
    assert FrameTier(tmp_path).decodes() == {content: 2}
    for policy in (*POLICIES, FramePolicy(frames=16), FramePolicy(seconds=receipt.seconds[:3])):
        frames, receipt = tier.take(films[0], policy, fit)
        assert numbers(frames) == list(receipt.indices)
    assert (tier.decodes(), tier.repairs()) == ({content: 2}, 0)


def test_one_content_under_two_names_is_one_film(films: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(films[0].read_bytes())
    tier = FrameTier(tmp_path / "tier")
    tier.fill(wants([films[0], copy]), fit, 2)
    assert list(tier.decodes().values()) == [1]
    assert tier.receipt(copy, POLICIES[0], fit).path == str(copy)


def test_a_film_that_was_replaced_is_seen(films: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    tier = FrameTier(tmp_path / "tier")
    path.write_bytes(films[0].read_bytes())
    assert numbers(tier.take(path, FramePolicy(frames=1), fit)[0]) == [16]
    path.write_bytes(films[1].read_bytes())
    assert numbers(tier.take(path, FramePolicy(frames=1), fit)[0]) == [116]


def test_variable_rate_keeps_its_times_without_the_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = [0, 40, 80, 1080, 1120, 3000, 3010, 3500]
    path = render(tmp_path / "vfr.mkv", 8, times=times)
    tier = FrameTier(tmp_path / "tier")
    policy = FramePolicy(seconds=(1.0, 2.9, 3.4))
    tier.fill({path: [policy]}, fit, 0)
    again = FrameTier(tmp_path / "tier")
    monkeypatch.setattr(PyAV, "times", None)
    frames, receipt = again.take(path, policy, fit)
    assert numbers(frames) == [2, 4, 6]
    assert receipt.seconds == (0.08, 1.12, 3.01)


def hurt(file: Path, how: str, other: Path) -> None:
    data = bytearray(file.read_bytes())
    if how == "empty":
        data = bytearray()
    elif how == "cut":
        data = data[: len(data) // 2]
    elif how == "one bit of one pixel":
        data[-1] ^= 1
    elif how == "header":
        data[20] ^= 0xFF
    elif how == "another film":
        data = bytearray(other.read_bytes())
    elif how == "a checkpoint":
        data = bytearray((2).to_bytes(8, "little") + b"{}")
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["empty", "cut", "one bit of one pixel", "header", "another film", "a checkpoint"])
def test_damage_to_the_tier_is_repaired_and_counted(films: list[Path], tmp_path: Path, how: str) -> None:
    tier = FrameTier(tmp_path)
    tier.fill(wants(films[:2]), fit, 0)
    policy = FramePolicy(frames=32)  # every frame of the film: the damaged pixel is among them
    before, receipt = tier.take(films[0], policy, fit)
    file, other = (tmp_path / f"{tier.film(path).content}.safetensors" for path in films[:2])
    hurt(file, how, other)
    after, again = FrameTier(tmp_path).take(films[0], policy, fit)
    np.testing.assert_array_equal(before, after)
    assert again == receipt
    assert tier.repairs() == 1
    assert tier.decodes()[receipt.content] == 3
    for policy in POLICIES:
        tier.take(films[0], policy, fit)
    assert tier.repairs() == 1


def test_frames_of_two_decoders_are_never_mixed(films: list[Path], tmp_path: Path) -> None:
    tier = FrameTier(tmp_path)
    _, old = tier.take(films[0], POLICIES[0], fit)
    tier._decoder.name = "pyav 0.0"
    _, new = tier.take(films[0], POLICIES[0], fit)
    assert (old.backend, new.backend) == (PyAV.name, "pyav 0.0")
    assert tier.decodes() == {old.content: 2}


def test_a_write_that_fails_leaves_the_old_file(
    films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    tier = FrameTier(tmp_path)
    before, receipt = tier.take(films[0], POLICIES[0], fit)
    file = tmp_path / f"{receipt.content}.safetensors"
    whole = file.read_bytes()
    monkeypatch.setattr(tierfile.os, "replace", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        tier.take(films[0], POLICIES[1], fit)
    assert file.read_bytes() == whole
    np.testing.assert_array_equal(tier.take(films[0], POLICIES[0], fit)[0], before)


def test_bad_films_go_to_the_quarantine_and_come_out_when_mended(films: list[Path], tmp_path: Path) -> None:
    bad, gone = tmp_path / "bad.mp4", tmp_path / "gone.mp4"
    bad.write_text("not found")
    quarantine = Quarantine(tmp_path / "tier")
    tier = FrameTier(tmp_path / "tier")
    tier.fill(wants([bad, films[0], gone]), fit, 2, quarantine)
    assert quarantine.holds(bad)
    assert quarantine.holds(gone)
    assert len(quarantine) == 2
    assert tier.take(films[0], POLICIES[0], fit)[0].shape == (8, 32, 32, 3)
    bad.write_bytes(films[1].read_bytes())
    tier.fill(wants([bad, films[0]]), fit, 2, quarantine)
    assert [film.path for film in Quarantine(tmp_path / "tier").films()] == [str(gone)]
    with pytest.raises(VideoError, match="no such film"):
        tier.fill(wants([gone]), fit, 0)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_window_outside_one_film_is_that_film_s_failure(films: list[Path], tmp_path: Path, workers: int) -> None:
    quarantine = Quarantine(tmp_path)
    FrameTier(tmp_path).fill({films[0]: [FramePolicy(frames=2, start=2.01)]}, fit, workers, quarantine)
    assert "starts at 2.01 s" in quarantine.films()[0].reason


def test_a_policy_that_no_film_can_meet_is_the_user_s(films: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="frames must be above 0"):
        FrameTier(tmp_path).fill({films[0]: [FramePolicy(frames=0)]}, fit, 1, Quarantine(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_size_that_the_model_refuses_is_the_film_s_failure(films: list[Path], tmp_path: Path, workers: int) -> None:
    def refuse(*_: object) -> tuple[int, int]:
        raise UserError("a frame is thinner than one patch", fix="leave it out")

    quarantine = Quarantine(tmp_path)
    FrameTier(tmp_path).fill(wants(films[:1]), refuse, workers, quarantine)
    assert quarantine.films()[0].reason == "a frame is thinner than one patch"


@pytest.mark.parametrize("workers", [0, 1])
def test_a_full_disk_is_said_and_leaves_no_file(films: list[Path], tmp_path: Path, workers: int) -> None:
    tier = FrameTier(tmp_path)
    (tmp_path / f"{tier.film(films[0]).content}.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="the disk is full"):
        tier.fill(wants(films[:1]), fit, workers, Quarantine(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))
    assert not Quarantine(tmp_path).films()
    tier.fill(wants(films[:1]), fit, workers)


def test_a_torn_list_of_films_is_forgiven(films: list[Path], tmp_path: Path) -> None:
    FrameTier(tmp_path).fill(wants(films), fit, 0)
    memo = tmp_path / "films.jsonl"
    memo.write_bytes(memo.read_bytes()[:-30])
    tier = FrameTier(tmp_path)
    tier.fill(wants(films), fit, 0)
    assert set(tier.decodes().values()) == {1}
    assert len([json.loads(line) for line in memo.read_text().splitlines()]) == 5


def test_a_known_film_is_not_opened(films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = FrameTier(tmp_path).film(films[0])
    monkeypatch.setattr(cache.PyAV, "probe", None)
    assert FrameTier(tmp_path).film(films[0]) == known
    os.utime(films[0])
    with pytest.raises(TypeError):
        FrameTier(tmp_path).film(films[0])


def test_a_bad_disk_is_said(films: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def always(*_: object) -> np.ndarray:
        raise tierfile.Damaged("again")

    monkeypatch.setattr(tierfile, "pixels", always)
    with pytest.raises(UserError, match="damaged again and again"):
        FrameTier(tmp_path).take(films[0], POLICIES[0], fit)
