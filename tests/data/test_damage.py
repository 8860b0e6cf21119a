"""What the bytes of a file say about it, without a decoder."""

from pathlib import Path

import pytest
from tests.data.films import cut, render

from longtake.data.damage import fault, promised_bytes

PROMISING = ["mp4", "mkv", "webm", "avi-mpeg4"]


@pytest.mark.parametrize("kind", PROMISING)
def test_a_whole_film_is_as_long_as_its_container_says(film_of_kind: dict[str, Path], kind: str) -> None:
    film = film_of_kind[kind]
    assert promised_bytes(film) == film.stat().st_size
    assert fault(film) is None


@pytest.mark.parametrize("kind", PROMISING)
@pytest.mark.parametrize("fraction", [0.3, 0.9])
def test_a_broken_download_is_seen(film_of_kind: dict[str, Path], tmp_path: Path, kind: str, fraction: float) -> None:
    film = cut(film_of_kind[kind], tmp_path / f"cut{film_of_kind[kind].suffix}", fraction)
    found = fault(film)
    assert found is not None
    assert found[0] == "the film is cut short"


@pytest.mark.parametrize("kind", ["ts", "raw"])
def test_streams_promise_nothing(film_of_kind: dict[str, Path], kind: str) -> None:
    assert promised_bytes(film_of_kind[kind]) == 0
    assert fault(film_of_kind[kind]) is None


def test_rubbish_at_the_end_does_no_harm(mp4: Path, tmp_path: Path) -> None:
    film = tmp_path / "a.mp4"
    film.write_bytes(mp4.read_bytes() + b"\x00" * 100)
    assert fault(film) is None


def test_the_last_box_may_run_to_the_end(tmp_path: Path) -> None:
    film = tmp_path / "a.mp4"
    film.write_bytes(b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00" + b"\x00\x00\x00\x00mdat" + b"\x00" * 50)
    assert fault(film) is None


def test_a_box_of_64_bit_length(tmp_path: Path) -> None:
    film = tmp_path / "a.mp4"
    film.write_bytes(
        b"\x00\x00\x00\x08ftyp" + b"\x00\x00\x00\x01mdat" + (5_000_000_000).to_bytes(8, "big") + b"\x00" * 9
    )
    assert promised_bytes(film) == 5_000_000_008


def test_a_live_matroska_stream_promises_nothing(mp4: Path, tmp_path: Path) -> None:
    film = tmp_path / "a.mkv"
    film.write_bytes(b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01" + b"\xff" * 7 + b"\x00" * 90)
    assert promised_bytes(film) == 0


@pytest.mark.parametrize("head", [b"\x1a\x45\xdf\xa3", b"\x1a\x45\xdf\xa3\x00", b"RIFF", b"\x00\x00\x00\x00ftyp"])
def test_short_heads_do_not_break_it(tmp_path: Path, head: bytes) -> None:
    film = tmp_path / "a"
    film.write_bytes(head)
    promised_bytes(film)


@pytest.mark.parametrize("text", ["<!DOCTYPE html>\n<p>gone</p>", "version https://git-lfs…", "#EXTM3U\nhttp://x/1.ts"])
def test_texts_and_playlists_are_no_films(tmp_path: Path, text: str) -> None:
    film = tmp_path / "a.mp4"
    film.write_text(text)
    found = fault(film)
    assert found is not None
    assert text.splitlines()[0][:20] in found[1]


def test_missing_empty_and_folder(tmp_path: Path) -> None:
    empty = tmp_path / "a.mp4"
    empty.touch()
    whats = [found[0] for path in (tmp_path / "no.mp4", empty, tmp_path) if (found := fault(path))]
    assert whats == ["no such film", "the film is empty", "this is a folder, not a film"]


def test_a_film_with_its_index_in_front_is_held_against_it_too(tmp_path: Path) -> None:
    whole = render(tmp_path / "whole.mp4", 20, faststart=True)
    assert fault(whole) is None
    assert fault(cut(whole, tmp_path / "cut.mp4", 0.95)) is not None
