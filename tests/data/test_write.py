"""A question written as a row is read again as the same question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longtake.data.rows import read_questions
from longtake.data.write import canonical
from longtake.log.files import write_jsonl

VIDEO = {"type": "video", "video": "films/1.mp4"}
ROWS: dict[str, dict[str, Any]] = {
    "choice": {
        "id": "a",
        "messages": [{"role": "user", "content": [VIDEO, {"type": "text", "text": "where ? A left B right"}]}],
        "options": ["left", "right"], "answer": "B", "kind": "spatial", "hops": 3,
        "evidence": [[1.25, 2.0], [3.0, 4.5]],
    },
    "window": {
        "id": "b",
        "messages": [
            {"role": "user", "content": [
                VIDEO | {"video_start": 1.5, "video_end": 4.0, "nframes": 8, "max_pixels": 900},
                {"type": "text", "text": "what happens ?"},
            ]},
            {"role": "assistant", "content": "a swap"},
        ],
        "weight": 0.5, "source": "mine", "tags": ["x", "y"],
    },
    "rate": {
        "id": "c",
        "messages": [{"role": "user", "content": [
            VIDEO | {"fps": 2.0, "max_frames": 64},
            {"type": "text", "text": "why ?"},
        ]}],
        "answer": "because",
    },
    "text": {"id": "d", "messages": [{"role": "user", "content": "2 + 2 ?"}], "answer": "4"},
}  # fmt: skip


@pytest.mark.parametrize("name", list(ROWS))
@pytest.mark.parametrize("to", ["same", "../other/deep", "inner"])
def test_there_and_back(tmp_path: Path, name: str, to: str) -> None:
    source, target = tmp_path / "rows" / "in.jsonl", tmp_path / "rows" / to / "out.jsonl"
    write_jsonl(source, [ROWS[name]])
    (question,) = read_questions(source)
    write_jsonl(target, [canonical(question, target.parent)])
    (again,) = read_questions(target)
    for field in ("id", "text", "options", "answer", "kind", "hops", "evidence", "policy"):
        assert getattr(again, field) == getattr(question, field), field
    if question.video is None:
        assert again.video is None
    else:
        assert Path(again.video or "").resolve() == Path(question.video).resolve() == tmp_path / "rows/films/1.mp4"


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows" / "in.jsonl", [ROWS["choice"]])
    (question,) = read_questions(tmp_path / "rows" / "in.jsonl")
    row = canonical(question, tmp_path / "out" / "difficulty")
    assert row["messages"][0]["content"][0]["video"] == "../../rows/films/1.mp4"


def test_what_the_row_held_beside_is_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in.jsonl", [ROWS["window"]])
    (question,) = read_questions(tmp_path / "in.jsonl")
    row = canonical(question, tmp_path)
    assert (row["source"], row["tags"]) == ("mine", ["x", "y"])
    assert "weight" not in row
    half = [{"type": "text", "text": "a swap", "weight": 0.5}]
    assert row["messages"][1:] == [{"role": "assistant", "content": half}]  # easy and hard rows go on to sft
    assert row["messages"][0]["content"][0] == ROWS["window"]["messages"][0]["content"][0]
    json.dumps(row)
