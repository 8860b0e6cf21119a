"""Films that failed: listed once, let go when mended, too many of them an error."""

from pathlib import Path

import pytest

from longtake.data.quarantine import Quarantine, Quarantined
from longtake.errors import UserError


def test_each_film_once_with_its_last_reason(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.add(Path("b.mp4"), "empty", "copy it")
    quarantine.add("b.mp4", "empty", "copy it")
    quarantine.add("a.mp4", "cut short", "")
    quarantine.add("b.mp4", "no picture", "leave it out")
    again = Quarantine(tmp_path)
    assert again.films() == (Quarantined("a.mp4", "cut short", ""), Quarantined("b.mp4", "no picture", "leave it out"))
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == len(again) == 2


def test_release(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    quarantine.release("never.mp4")
    assert not (tmp_path / "quarantine.jsonl").exists()
    quarantine.add("a.mp4", "empty", "")
    quarantine.release("a.mp4")
    assert not quarantine.holds("a.mp4")
    assert len(Quarantine(tmp_path)) == 0


def test_of_several_ranks_one_writes(tmp_path: Path) -> None:
    Quarantine(tmp_path).add("a.mp4", "empty", "")
    before = (tmp_path / "quarantine.jsonl").read_text()
    other = Quarantine(tmp_path)
    other.written = False
    other.add("b.mp4", "empty", "")
    other.add("b.mp4", "cut short", "")
    other.release("a.mp4")
    assert [film.path for film in other.films()] == ["b.mp4"]
    assert (tmp_path / "quarantine.jsonl").read_text() == before


def test_too_many_failures_stop_the_run(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path)
    films = ["a.mp4", *(f"{n}.mp4" for n in range(9))]
    quarantine.must_not_exceed(0.0, films)
    quarantine.add("a.mp4", "empty", "copy it")
    quarantine.must_not_exceed(0.1, films)
    with pytest.raises(UserError, match="1 of 10 films cannot be used") as error:
        quarantine.must_not_exceed(0.05, films)
    quarantine.must_not_exceed(0.0, films[1:])  # those that failed elsewhere are no reason
    assert "a.mp4: empty" in str(error.value)
    assert len(str(error.value).splitlines()) <= 6
