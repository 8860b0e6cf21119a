"""Decoding: every frame is the one asked for, at its true time, from any container, and nothing else is held."""

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests.data.conftest import KINDS
from tests.data.films import cut, numbers, picture, render, sound

from longtake.data import timeline, video
from longtake.data.frames import choose
from longtake.data.video import PyAV, VideoError
from longtake.records import FramePolicy

BICUBIC_MEAN = 0.6  # grey levels, 8-bit; swscale's bicubic has a = -0.6, PIL's a = -0.5, and chroma is scaled apart
BICUBIC_WITHOUT_CHROMA = 1.5  # what is lost without full chroma interpolation is more than this


@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_of_every_container(film_of_kind: dict[str, Path], kind: str) -> None:
    decoder = PyAV()
    film = decoder.probe(film_of_kind[kind])
    fps = 25 if kind == "raw" else 16  # a raw stream does not say; 25 is FFmpeg's word
    assert (film.frames, film.fps, film.duration, film.width, film.height) == (100, fps, 100 / fps, 64, 64)
    assert decoder.times(film) is None
    frames, seconds = decoder.decode(film, range(100), (32, 32))
    assert numbers(frames) == list(range(100))
    assert np.abs(seconds - np.arange(100) / fps).max() < timeline.STEADY / fps


@pytest.mark.parametrize("kind", KINDS)
def test_jumping_gives_what_reading_on_gives(
    film_of_kind: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = PyAV()
    film = decoder.probe(film_of_kind[kind])
    for wanted in ([99], [0, 45, 93], [29, 30, 31, 59, 60, 61], [31, 89, 90]):
        monkeypatch.setattr(timeline, "SAVES", 2)
        jumped, when = decoder.decode(film, wanted, (16, 16))
        monkeypatch.setattr(timeline, "SAVES", 10**9)
        read, then = decoder.decode(film, wanted, (16, 16))
        assert numbers(jumped) == wanted
        np.testing.assert_array_equal(jumped, read)
        np.testing.assert_array_equal(when, then)


def test_jumps_decode_little_of_a_long_film(long_film: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PyAV()
    film = decoder.probe(long_film)
    decoded = []
    frames_of = video._frames
    monkeypatch.setattr(video, "_frames", lambda packet: decoded.append(1) or frames_of(packet))
    wanted = [30, 900, 1501, 2950]
    assert numbers(decoder.decode(film, wanted, (8, 8))[0]) == wanted
    assert len(decoded) < 4 * 70
    decoded.clear()
    assert numbers(decoder.decode(film, range(300), (8, 8))[0]) == list(range(300))
    assert len(decoded) < 310  # read on, once, and no further than needed


def test_a_jump_that_misses_is_read_over(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PyAV()
    film = decoder.probe(mp4)
    real = timeline.stretches
    late = lambda line, wanted, jumping: [(90, [50, 95])] if jumping else real(line, wanted, jumping)  # noqa: E731
    monkeypatch.setattr(video, "stretches", late)
    assert numbers(decoder.decode(film, [50, 95], (8, 8))[0]) == [50, 95]


def test_many_wants_in_one_pass(mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PyAV()
    film = decoder.probe(mp4)
    wants = [((3, 50, 50, 7), (32, 32)), (range(0, 100, 9), (32, 32)), ((50,), (16, 48))]
    apart = [decoder.decode(film, *want) for want in wants]
    opened = []
    real = av.open
    monkeypatch.setattr(video.av, "open", lambda path: opened.append(path) or real(path))
    together = decoder.decode_many(film, wants)
    assert len(opened) == 1
    for (frames, seconds), (alone, then) in zip(together, apart, strict=True):
        np.testing.assert_array_equal(frames, alone)
        np.testing.assert_array_equal(seconds, then)
    assert [numbers(frames) for frames, _ in together] == [[3, 50, 50, 7], list(range(0, 100, 9)), [50]]
    assert [frames.shape[1:3] for frames, _ in together] == [(32, 32), (32, 32), (48, 16)]


def test_variable_rate(tmp_path: Path) -> None:
    times = [0, 40, 80, 1080, 1120, 3000, 3010, 3500]
    decoder = PyAV()
    film = decoder.probe(render(tmp_path / "vfr.mkv", 8, times=times))
    times_N = decoder.times(film)
    assert times_N is not None
    assert times_N.tolist() == [t / 1000 for t in times]
    chosen = choose(film, FramePolicy(seconds=(0.0, 1.0, 1.1, 2.9, 3.4)), times_N)
    frames, seconds = decoder.decode(film, chosen.indices, (16, 16))
    assert numbers(frames) == [0, 2, 3, 4, 6]
    assert seconds.tolist() == [0.0, 0.08, 1.08, 1.12, 3.01]


def test_time_starts_at_the_first_frame(tmp_path: Path) -> None:
    film = render(tmp_path / "late.mkv", 5, times=[1000, 1100, 1200, 1300, 1400])
    decoder = PyAV()
    probed = decoder.probe(film)
    assert (probed.fps, probed.duration) == (10.0, 0.5)
    assert decoder.decode(probed, [0, 4], (16, 16))[1].tolist() == pytest.approx([0.0, 0.4])


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_rotation_is_honoured(tmp_path: Path, turn: int) -> None:
    path = render(tmp_path / "turned.mp4", 3, size=(64, 32), turn=turn, first=0b1000_0110_0101_0001)
    decoder = PyAV()
    film = decoder.probe(path)
    upright = np.rot90(picture(0b1000_0110_0101_0001, 64, 32), turn // 90)
    assert (film.width, film.height) == (upright.shape[1], upright.shape[0])
    frames, _ = decoder.decode(film, [0], (film.width, film.height))
    assert np.abs(frames[0].astype(int) - upright).mean() < 8


def test_a_film_of_one_frame(tmp_path: Path) -> None:
    decoder = PyAV()
    film = decoder.probe(render(tmp_path / "one.mp4", 1, first=77))
    assert (film.frames, film.duration) == (1, 1 / 16)
    chosen = choose(film, FramePolicy(frames=4), decoder.times(film))
    assert numbers(decoder.decode(film, chosen.indices, (16, 16))[0]) == [77]


def test_a_still_picture_is_a_film_of_one_frame(tmp_path: Path) -> None:
    Image.fromarray(picture(9)).save(tmp_path / "still.png")
    decoder = PyAV()
    assert numbers(decoder.decode(decoder.probe(tmp_path / "still.png"), [0], (16, 16))[0]) == [9]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda mp4, folder: folder / "no.mp4", "no such film"),
        (lambda mp4, folder: folder, "this is a folder, not a film"),
        (lambda mp4, folder: (folder / "e.mp4").touch() or folder / "e.mp4", "0 bytes"),
        (lambda mp4, folder: (folder / "t.mp4").write_text("hello") and folder / "t.mp4", "this is a text"),
        (
            lambda mp4, folder: (folder / "r.mp4").write_bytes(bytes(range(256)) * 9) and folder / "r.mp4",
            "cannot be read",
        ),
        (lambda mp4, folder: cut(mp4, folder / "c.mp4"), "cut short"),
        (lambda mp4, folder: sound(folder / "s.mp4"), "no moving picture"),
        (lambda mp4, folder: sound(folder / "s.mp3", cover=True), "no moving picture"),
        (lambda mp4, folder: render(folder / "z.avi", 0), "it holds no frames"),
        (lambda mp4, folder: render(folder / "z.mp4", 0), "it holds no streams"),
    ],
)
def test_what_is_no_film_is_said_in_six_lines(tmp_path: Path, mp4: Path, make, words: str) -> None:
    path = make(mp4, tmp_path)
    with pytest.raises(VideoError) as error:
        PyAV().probe(path)
    text = str(error.value)
    assert words in text
    assert str(path) in text
    assert "do: " in text
    assert len(text.splitlines()) <= 6


def scrambled(source: Path, to: Path, start: float, stop: float) -> Path:
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(0)
    a, b = int(len(data) * start), int(len(data) * stop)
    data[a:b] = rng.integers(0, 256, b - a, np.uint8).tobytes()
    to.write_bytes(data)
    return to


def test_damage_is_borne_only_if_every_wanted_frame_arrives(tmp_path: Path) -> None:
    whole = render(tmp_path / "whole.mp4", 100, codec="mpeg4", options={"g": "10"})
    decoder = PyAV()
    film = decoder.probe(scrambled(whole, tmp_path / "hurt.mp4", 0.4, 0.6))
    assert film.frames == 100
    assert numbers(decoder.decode(film, [0, 5, 99], (16, 16))[0]) == [0, 5, 99]
    with pytest.raises(VideoError, match="wanted frames cannot be decoded") as error:
        decoder.decode(film, range(100), (16, 16))
    assert "first frame" in str(error.value)


def test_a_film_that_changes_in_use_is_refused(tmp_path: Path) -> None:
    decoder = PyAV()
    film = decoder.probe(render(tmp_path / "a.mp4", 10))
    render(tmp_path / "a.mp4", 12)
    with pytest.raises(VideoError, match="changed while it was in use"):
        decoder.decode(film, [0], (16, 16))


def test_content_is_the_bytes_and_remembered(tmp_path: Path, mp4: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = PyAV()
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(mp4.read_bytes())
    assert decoder.probe(copy).content == decoder.probe(mp4).content
    hashed = []
    monkeypatch.setattr(video.hashlib, "file_digest", lambda *_: hashed.append(1))
    decoder.probe(copy)
    assert not hashed


def test_only_recent_scans_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "KEPT_SCANS", 2)
    decoder = PyAV()
    for k in range(4):
        decoder.probe(render(tmp_path / f"{k}.mp4", 2))
    assert len(decoder._scans) == 2


MEMORY = """
import sys
from pathlib import Path
from longtake.data.video import PyAV
def peak():  # KiB; getrusage would count what the parent held when it forked
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
decoder = PyAV()
film = decoder.probe(sys.argv[1])
before = peak()
decoder.decode(film, range(40, film.frames, 80), (16, 16))
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc").exists(), reason="peak memory is read from /proc")
def test_memory_holds_only_the_wanted_frames(tmp_path: Path) -> None:
    frames, width, height = 250, 640, 480
    film = render(tmp_path / "big.mp4", frames, size=(width, height), options={"preset": "ultrafast", "g": "250"})
    all_of_them = frames * width * height * 1.5 / 2**20  # MiB; 110
    run = subprocess.run([sys.executable, "-c", MEMORY, str(film)], capture_output=True, text=True, check=True)
    assert float(run.stdout) < all_of_them / 4


@pytest.mark.parametrize("size", [(224, 112), (64, 32), (640, 352)])
def test_resizing_is_near_transformers_bicubic(nasa: Path, size: tuple[int, int]) -> None:
    decoder = PyAV()
    film = decoder.probe(nasa)
    wanted = [30, 150, 290]
    full, _ = decoder.decode(film, wanted, (film.width, film.height))
    pil = np.stack([np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC)) for frame in full])
    ours, _ = decoder.decode(film, wanted, size)
    assert np.abs(ours.astype(int) - pil).mean() < BICUBIC_MEAN
    coarse = video._BICUBIC & ~video.Interpolation.FULL_CHR_H_INT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video, "_BICUBIC", coarse)
        assert np.abs(decoder.decode(film, wanted, size)[0].astype(int) - pil).mean() > BICUBIC_WITHOUT_CHROMA


def test_a_real_film(nasa: Path) -> None:
    decoder = PyAV()
    film = decoder.probe(nasa)
    assert (film.frames, film.fps, film.duration, film.width, film.height) == (325, 25.0, 13.0, 320, 180)
    some = list(range(7, 325, 50))
    every, _ = decoder.decode(film, range(325), (80, 44))
    np.testing.assert_array_equal(decoder.decode(film, some, (80, 44))[0], every[some])
