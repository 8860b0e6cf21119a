"""How a run goes on: with what it read before, to the end that it had; or it says what has changed."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from longtake.errors import UserError
from longtake.log import Log, begin, finish, read_json
from longtake.log.run import BLOCK, BLOCKS, fingerprint


class Settings:
    """Stands for a pydantic model."""

    def model_dump(self, *, mode: str, exclude_defaults: bool = False) -> dict[str, Any]:
        return {"lr": 0.1}


def start(out: Path, rows: Path, **how: Any) -> tuple[dict[str, Any] | None, Log]:
    log = Log(stream=io.StringIO())
    return begin(log, "sft", Settings(), out, fresh=False, reads=[rows], **{"makes": ["summary.json"]} | how), log


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"id": 1}\n')
    return path


def test_a_run_that_ended_gives_its_result(tmp_path: Path, rows: Path) -> None:
    found, log = start(tmp_path / "run", rows)
    assert found is None
    finish(log, {"steps": 3})
    for _ in range(2):
        assert start(tmp_path / "run", rows)[0] == {"steps": 3}
        assert read_json(tmp_path / "run" / "run.json")["status"] == "done"


@pytest.mark.parametrize("gone", ["summary.json", "model/config.json"])
def test_a_run_whose_work_is_gone_has_not_ended(tmp_path: Path, rows: Path, gone: str) -> None:
    out, makes = tmp_path / "run", ["summary.json", "model/config.json"]
    log = start(out, rows, makes=makes)[1]
    (out / "model").mkdir()
    (out / "model" / "config.json").touch()
    finish(log, {"steps": 3})
    assert start(out, rows, makes=makes)[0] == {"steps": 3}
    (out / gone).unlink()
    assert start(out, rows, makes=makes)[0] is None
    assert read_json(out / "run.json")["status"] == "running"


@pytest.mark.parametrize("mendable", [True, False])
def test_a_result_of_other_rows_is_not_passed_off_as_theirs(tmp_path: Path, rows: Path, mendable: bool) -> None:
    finish(start(tmp_path / "run", rows)[1], {"steps": 3})
    (tmp_path / "run" / "metrics.jsonl").touch()
    rows.write_text('{"id": 2}\n')
    for _ in range(2):  # being refused changes nothing
        with pytest.raises(UserError, match=rf"{rows} has changed since this run read it"):
            start(tmp_path / "run", rows, mendable=mendable)
        assert read_json(tmp_path / "run" / "run.json")["status"] == "done"
    rows.write_text('{"id": 1}\n')
    assert start(tmp_path / "run", rows)[0] == {"steps": 3}


def test_a_mendable_run_goes_on_with_the_change_and_says_so(tmp_path: Path, rows: Path) -> None:
    out = tmp_path / "run"
    start(out, rows)
    (out / "metrics.jsonl").touch()
    rows.write_text('{"id": 2}\n')
    with pytest.raises(UserError, match="has changed"):
        start(out, rows)
    assert start(out, rows, mendable=True)[0] is None
    assert read_json(out / "run.json")["notes"] == [
        f"{rows} has changed since this run began; it goes on with what is there now"
    ]
    start(out, rows)  # as it is now it is known


def test_a_run_without_results_reads_what_it_likes(tmp_path: Path, rows: Path) -> None:
    start(tmp_path / "run", rows)
    rows.write_text('{"id": 2}\n')
    assert start(tmp_path / "run", rows)[0] is None
    assert read_json(tmp_path / "run" / "run.json")["notes"] == []


def test_fingerprints(tmp_path: Path) -> None:
    file, model = tmp_path / "big", tmp_path / "model"
    file.write_bytes(bytes(BLOCK * 3))
    before = fingerprint(file)
    for place in (0, BLOCK, 3 * BLOCK - 1):
        content = bytearray(BLOCK * 3)
        content[place] = 1
        file.write_bytes(content)
        assert fingerprint(file) != before
    model.mkdir()
    (model / "w.safetensors").write_bytes(bytes(4 * BLOCK * BLOCKS))
    (model / "config.json").write_text("{}")
    before = fingerprint(model)
    assert fingerprint(model) == before
    (model / "notes.md").touch()
    assert fingerprint(model) == before
    (model / "config.json").write_text("[]")
    assert fingerprint(model) != before


def test_no_fingerprint_of_what_is_not_there_or_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    assert [fingerprint(tmp_path / name) for name in ("pipe", "nothing", "empty")] == ["", "", ""]
    assert fingerprint(Path("Qwen/Qwen3-VL-2B-Instruct")) == ""
