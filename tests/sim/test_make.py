"""Films on disk: the same bytes for one seed, whoever rendered them and however often they were killed."""

from __future__ import annotations

from pathlib import Path

import av
import pytest

from longtake.data.video import PyAV
from longtake.errors import UserError
from longtake.sim.make import film_path, make_films, scenes
from longtake.sim.render import pictures, write_film
from longtake.sim.scenes import FPS, SECONDS, SIZE

SEED = 4
COUNTS = {"sft": 2, "rl": 1, "gate": 1, "test": 1}
CLOSE = 12.0  # mean difference of a decoded pixel from the painted one, of 255


def test_any_number_of_workers_renders_the_same_bytes(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    assert make_films(tmp_path, SEED, COUNTS, 2, lambda *numbers: told.append(numbers)) == 5
    assert told == [(done, 5) for done in range(6)]
    films = {split: [film_path(tmp_path, split, number) for number in range(count)] for split, count in COUNTS.items()}
    assert sorted(tmp_path.rglob("*.mp4")) == sorted(film for own in films.values() for film in own)
    for split, own in films.items():
        for film, story in zip(own, scenes(SEED, split, len(own)), strict=True):
            write_film(pictures(story), tmp_path / "alone" / film.name)
            assert film.read_bytes() == (tmp_path / "alone" / film.name).read_bytes()


def test_only_what_is_missing_is_rendered(tmp_path: Path) -> None:
    story = scenes(SEED, "sft", 1)[0]
    for split, count in COUNTS.items():
        for number in range(count):
            write_film(pictures(story), film_path(tmp_path, split, number))
    before = {film: film.stat().st_mtime_ns for film in tmp_path.rglob("*.mp4")}
    told: list[tuple[int, int]] = []
    make_films(tmp_path, SEED, COUNTS, 1, lambda *numbers: told.append(numbers))
    assert told == [(5, 5)]
    assert {film: film.stat().st_mtime_ns for film in tmp_path.rglob("*.mp4")} == before


def test_a_film_is_what_was_painted(tmp_path: Path) -> None:
    for story in scenes(SEED, "test", 4):
        painted = pictures(story)
        write_film(painted, tmp_path / "a.mp4")
        decoder = PyAV()
        film = decoder.probe(tmp_path / "a.mp4")
        assert (film.frames, film.fps, film.duration) == (FPS * SECONDS, float(FPS), float(SECONDS))
        assert (film.width, film.height, film.codec) == (SIZE, SIZE, "h264")
        decoded, _ = decoder.decode(film, range(film.frames), (SIZE, SIZE))
        assert abs(decoded.astype(float) - painted).mean((1, 2, 3)).max() < CLOSE


def test_a_film_appears_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", killed, raising=True)
    with pytest.raises((KeyboardInterrupt, TypeError)):
        write_film(pictures(scenes(SEED, "rl", 1)[0])[:2], tmp_path / "a.mp4")
    assert not (tmp_path / "a.mp4").exists()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "films").write_text("in the way")
    with pytest.raises(UserError, match="cannot write here"):
        make_films(tmp_path, SEED, {**COUNTS, "sft": 1}, 1, lambda *_: None)
