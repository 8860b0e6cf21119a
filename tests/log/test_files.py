"""JSON on disk: never half a file, torn lines forgiven where they may be, full disks said in words."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.errors import UserError
from longtake.log import append_jsonl, read_json, read_jsonl, write_json_atomic, writing
from longtake.log.files import write_jsonl

ROWS = [{"step": 1, "text": "é — “x”"}, {"step": 2, "text": "b\nc"}]


@given(cut=st.integers(0, 200))
def test_lines_cut_anywhere_lose_only_the_torn_one(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("cut") / "a.jsonl"
    write_jsonl(file, ROWS)
    whole = file.read_bytes()
    file.write_bytes(whole[:cut])
    expected = [row for row, end in zip(ROWS, _ends(whole), strict=True) if end <= cut]
    assert read_jsonl(file) == expected
    append_jsonl(file, {"step": 3})
    assert read_jsonl(file) == [*expected, {"step": 3}]
    assert file.read_bytes().endswith(b"\n")


def _ends(whole: bytes) -> list[int]:
    """Where each row is complete: before its newline."""
    return [place for place, byte in enumerate(whole) if byte == ord("\n")]


def test_a_bad_line_that_no_kill_explains_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"a": 1}\n\n{"a": \n{"a": 2}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:3"):
        read_jsonl(file)
    file.write_text('{"a": 1}\n[1]\n')
    with pytest.raises(UserError, match="not a JSON object"):
        read_jsonl(file)
    file.write_text('{"a": 1}\n{"a"')
    assert read_jsonl(file) == [{"a": 1}]
    with pytest.raises(UserError, match=r"a\.jsonl:2"):
        read_jsonl(file, forgive_torn=False)


def test_missing_and_broken_files(tmp_path: Path) -> None:
    for read in (read_json, read_jsonl):
        with pytest.raises(UserError, match="no such file"):
            read(tmp_path / "none")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "a.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json_atomic(file, {"a": 1})

    def refuse(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(UserError, match="the disk is full") as caught:
        write_json_atomic(file, {"a": 2})
    assert "nothing already written is lost" in str(caught.value)
    assert read_json(file) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_disk_that_is_really_full() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="the disk is full"), writing(Path("/dev/full")):
        Path("/dev/full").write_text("x")


def test_libraries_that_wrap_the_system_error() -> None:
    with pytest.raises(UserError, match="the disk is full"), writing(Path("x")):
        raise RuntimeError("IoError(Os { code: 28, message: No space left on device })")
    with pytest.raises(RuntimeError, match="other"), writing(Path("x")):
        raise RuntimeError("other")


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        write_json_atomic(tmp_path / "file" / "a.json", {})


def test_what_json_has_no_word_for(tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "a.json", {"x": float("nan"), "y": (Path("b"), float("inf")), 3: True})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": ["b", None], "3": True}
