"""Rows about one picture, and the picture in the frame tier."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.rowfiles import CHOICE_TEXT, lines, other, said

from longtake.data.cache import FrameTier, Quarantine
from longtake.data.rows import read_examples, read_questions
from longtake.data.write import canonical
from longtake.log.files import write_jsonl
from longtake.records import FramePolicy

STILL = FramePolicy(seconds=(0.0,), image=True)
TEXT = {"type": "text", "text": "Which cup?"}
TALK = [{"from": "human", "value": "<image>\nWhich cup?"}, {"from": "gpt", "value": "The left one."}]


def ours(part: dict[str, Any], **more: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": "The left one."}
    return {"id": "p", "messages": [{"role": "user", "content": [part, TEXT]}, answer], **more}


@pytest.mark.parametrize(
    "row",
    [
        ours({"type": "image", "image": "cups/7.png"}),
        {**ours({"type": "text", "text": "<image>"}), "image": "cups/7.png"},
        {"id": "p", "image": "cups/7.png", "conversations": TALK},
        {"id": "p", "images": ["cups/7.png"], "conversations": TALK},
        {"id": "p", "image": ["cups/7.png"], "conversations": TALK, "video": None},
    ],
)
def test_a_picture_in_every_shape_of_row(tmp_path: Path, row: dict[str, Any]) -> None:
    (example,) = read_examples(lines(tmp_path, row))
    question = example.question
    assert (question.text, question.video) == ("Which cup?", str(tmp_path / "cups/7.png"))
    assert question.policy == STILL
    assert example.targets[0][0].text == "The left one."


def test_benchmark_rows_about_a_picture(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, other(data_type="image", path="7")))
    assert (question.text, question.video, question.policy) == (CHOICE_TEXT, str(tmp_path / "7"), STILL)


def test_a_picture_may_say_how_large_it_is_seen(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, ours({"type": "image", "image": "7.png", "max_pixels": 4096})))
    assert question.policy == FramePolicy(seconds=(0.0,), max_pixels=4096, image=True)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (ours({"type": "image", "image": ["1.png", "2.png"]}), "2 pictures, where one is needed"),
        (ours({"type": "image", "image": "7.png", "fps": 2.0}), "'fps' has no effect on a picture"),
        (ours({"type": "image"}), "none is named"),
        (ours({"type": "image", "image": {"bytes": ""}}), "must be the path"),
        (ours({"type": "image", "image": "https://x.org/a.png"}), "web address"),
        (ours({"type": "image", "image": "a.MP4"}), "is a film, not a picture"),
        ({"image": "7.png", "video": "7.mp4", "conversations": TALK}, "a film and a picture"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "image": "7.png"}] * 2 + [TEXT]}]},
            "two films or pictures",
        ),
        (
            {"messages": [{"role": "user", "content": [TEXT, {"type": "image", "image": "7.png"}]}]},
            "the image stands after the text",
        ),
    ],
)
def test_pictures_that_cannot_be_read(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert why in said(lines(tmp_path, row))


def test_a_picture_is_handed_on_as_one(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, ours({"type": "image", "image": "7.png", "max_pixels": 4096})))
    row = canonical(question, tmp_path / "out")
    assert row["messages"][0]["content"][0] == {"type": "image", "image": "../7.png", "max_pixels": 4096}
    write_jsonl(tmp_path / "out" / "a.jsonl", [row])
    (again,) = read_questions(tmp_path / "out" / "a.jsonl")
    assert again.policy == question.policy
    assert Path(again.video or "").resolve() == tmp_path / "7.png"


Asked = list[tuple[int, int, int | None, int | None]]


@pytest.fixture
def asked() -> Asked:
    return []


@pytest.fixture
def fit(asked: Asked) -> Callable[..., tuple[int, int]]:
    def fit(width: int, height: int, frames: int | None, max_pixels: int | None) -> tuple[int, int]:
        asked.append((width, height, frames, max_pixels))
        return (16, 8) if frames is None else (8, 8)

    return fit


@pytest.mark.parametrize("workers", [0, 1])
def test_a_picture_in_the_tier(tmp_path: Path, asked: Asked, fit: Any, workers: int) -> None:
    """It fills the temporal patch, its size is the one for pictures, and its receipt says so."""
    Image.fromarray(np.full((20, 40, 3), (10, 200, 30), np.uint8)).save(tmp_path / "7.png")
    tier = FrameTier(tmp_path / "tier")
    tier.fill({tmp_path / "7.png": [STILL]}, fit, workers, Quarantine(tmp_path))
    frames, receipt = tier.take(tmp_path / "7.png", STILL, fit, 2)
    assert set(asked) == {(40, 20, None, None)}
    assert frames.shape == (2, 8, 16, 3)
    assert frames[0, 0, 0].tolist() == [10, 200, 30]
    assert (receipt.image, receipt.indices, receipt.seconds, receipt.padded) == (True, (0, 0), (0.0, 0.0), 1)
    assert re.fullmatch(r"pillow [\d.]+", receipt.backend)
    film, own = tier.take(tmp_path / "7.png", FramePolicy(frames=8), fit, 2)
    assert (film.shape, own.image, own.indices) == ((2, 8, 8, 3), False, (0, 0))
    assert asked[-1] == (40, 20, 1, None)


def test_a_broken_picture_is_quarantined(tmp_path: Path, fit: Any) -> None:
    (tmp_path / "7.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    quarantine = Quarantine(tmp_path)
    FrameTier(tmp_path / "tier").fill({tmp_path / "7.png": [STILL], tmp_path / "8.jpg": [STILL]}, fit, 0, quarantine)
    assert quarantine.holds(tmp_path / "7.png")
    assert quarantine.holds(tmp_path / "8.jpg")
