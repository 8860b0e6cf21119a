"""Which frames an evaluation looks at: the rows' own windows, under every control."""

from __future__ import annotations

from pathlib import Path

from longtake.eval.command import Config, looks
from longtake.records import FramePolicy, Question
from longtake.train.settings import Video

CONFIG = Config(rows=Path("rows.jsonl"), model="tiny", video=Video(frames=(4, 8), start=1.0, max_pixels=99))
QUESTIONS = [
    Question("plain", "a.mp4", "?"),
    Question("window", "a.mp4", "?", policy=FramePolicy(start=2.0, end=4.0)),
    Question("text", None, "?"),
]


def test_a_rows_window_goes_before_the_runs() -> None:
    found = looks(CONFIG, QUESTIONS, [(policy, "") for policy in CONFIG.video.policies()])
    assert [(look.question.id, look.policy.frames) for look in found] == [
        (name, frames) for frames in (4, 8) for name in ("plain", "window", "text")
    ]
    windows = {look.question.id: (look.policy.start, look.policy.end) for look in found}
    assert windows == {"plain": (1.0, None), "window": (2.0, 4.0), "text": (1.0, None)}
    assert {look.policy.max_pixels for look in found} == {99}


def test_a_question_without_a_film_is_in_no_control() -> None:
    found = looks(CONFIG, QUESTIONS, [(FramePolicy(frames=8), "shuffled")])
    assert [(look.question.id, look.control) for look in found] == [("plain", "shuffled"), ("window", "shuffled")]


def test_one_frame_lies_in_the_rows_window() -> None:
    (look,) = looks(CONFIG, QUESTIONS[1:2], [(FramePolicy(frames=8), "one_frame")])
    assert look.seen() == ("a.mp4", FramePolicy(frames=1, start=2.0, end=4.0), False)
