"""Rows and files of rows for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from longtake.data.readers import CHOOSE
from longtake.data.rows import read_examples, read_questions
from longtake.errors import UserError

MOST_LINES = 6
OPTIONS = ["left", "middle", "right"]


def chat(
    id: str = "q", answer: Any = None, text: str = "where ? A left B middle C right", **more: Any
) -> dict[str, Any]:
    video = {"type": "video", "video": "films/7.mp4", **more.pop("look", {})}
    turns = [{"role": "user", "content": [video, {"type": "text", "text": text}]}]
    if answer is not None:
        turns.append({"role": "assistant", "content": answer})
    return {"id": id, "messages": turns, "options": OPTIONS, "answer": "B", **more}


def lines(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def said(path: Path, examples: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        (read_examples if examples else read_questions)(path)
    message = str(caught.value)
    assert len(message.splitlines()) <= MOST_LINES
    return message


VIDEO_R1 = {
    "problem_id": 7,
    "problem": "Where?",
    "data_type": "video",
    "problem_type": "multiple choice",
    "options": ["A. left", "B. right"],
    "solution": "<answer>B</answer>",
    "path": "./a.mp4",
    "data_source": "STAR",
}
CHOICE_TEXT = f"Where?\nA. left\nB. right\n{CHOOSE}"


def other(**changes: Any) -> dict[str, Any]:
    """The Video-R1 row in another shape; None takes a key away."""
    return {key: value for key, value in {**VIDEO_R1, **changes}.items() if value is not None}
