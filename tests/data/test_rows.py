"""Rows of every shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import CHOICE_TEXT, OPTIONS, VIDEO_R1, chat, lines, other, said

from longtake.data.readers import ANSWER
from longtake.data.rows import read_examples, read_questions
from longtake.records import FramePolicy, Span


def test_chat_row_is_read_as_it_stands(tmp_path: Path) -> None:
    row = chat(kind="spatial", hops=5, evidence=[[1.2, 1.6]], note="kept")
    (question,) = read_questions(lines(tmp_path, row))
    assert question.id == "q"
    assert question.video == str(tmp_path / "films/7.mp4")
    assert question.text == "where ? A left B middle C right"
    assert (question.options, question.answer, question.kind, question.hops) == (tuple(OPTIONS), "B", "spatial", 5)
    assert question.evidence == ((1.2, 1.6),)
    assert question.policy is None
    assert question.row["note"] == "kept"


@pytest.mark.parametrize(
    ("look", "policy"),
    [
        ({"nframes": 64}, FramePolicy(frames=64)),
        ({"fps": 2, "max_frames": 32.0}, FramePolicy(fps=2.0, max_frames=32)),
        ({"video_start": 1.5, "video_end": 3, "fps": 4.0}, FramePolicy(fps=4.0, start=1.5, end=3.0)),
        ({"video_start": 0.0, "video_end": 3.0}, FramePolicy(end=3.0)),
        ({"nframes": 8, "max_pixels": 1024, "fps": None}, FramePolicy(frames=8, max_pixels=1024)),
    ],
)
def test_qwen_video_keys(tmp_path: Path, look: dict[str, Any], policy: FramePolicy) -> None:
    assert read_questions(lines(tmp_path, chat(look=look)))[0].policy == policy


@pytest.mark.parametrize(
    ("look", "why"),
    [
        ({"nframes": 8, "fps": 1}, "both given"),
        ({"nframes": 0}, "above 0"),
        ({"nframes": 8.5}, "whole"),
        ({"fps": "2"}, "number"),
        ({"fps": float("nan")}, None),
        ({"min_frames": 4}, "'min_frames'"),
        ({"video_start": 3, "video_end": 3}, "window"),
    ],
)
def test_qwen_video_keys_that_cannot_be_honoured(tmp_path: Path, look: dict[str, Any], why: str | None) -> None:
    path = lines(tmp_path, chat(look=look))
    if why is None:
        assert read_questions(path)[0].policy is None  # NaN is how tables write an empty cell
    else:
        assert why in said(path)


def test_rows_with_one_prompt_share_an_example_and_weights_multiply(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "s1 swap", "weight": 0.0}, {"type": "text", "text": "left", "weight": 0.5}]
    path = lines(tmp_path, chat("a", "one", weight=0.5), chat("b", "other"), chat("a", parts, weight=0.5))
    first, second = read_examples(path)
    assert (first.question.id, second.question.id) == ("a", "b")
    assert first.targets == ((Span("one", 0.5),), (Span("s1 swap", 0.0), Span("left", 0.25)))
    assert second.targets == ((Span("other", 1.0),),)
    assert [question.id for question in read_questions(path)] == ["a", "b"]


def test_row_without_film(tmp_path: Path) -> None:
    row = {"id": "story", "messages": [{"role": "user", "content": "who ?"}, {"role": "assistant", "content": "a"}]}
    (example,) = read_examples(lines(tmp_path, row))
    assert example.question.video is None
    assert example.question.answer == ""


def test_film_beside_the_messages(tmp_path: Path) -> None:
    row = {"videos": ["a.mp4"], "messages": [{"role": "user", "content": "<video>\nwho ?"}]}
    (question,) = read_questions(lines(tmp_path, row), videos=Path("/films"))
    assert (question.id, question.video, question.text) == ("rows-1", "/films/a.mp4", "who ?")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (VIDEO_R1, "STAR"),
        (other(options=["B. right", "A. left"]), "STAR"),  # EasyVideoR1's LongVideo-Reason: out of order
        (other(options=["(A) left", "(B) right"]), "STAR"),
        (other(options=["A.left", "B.right"]), "STAR"),
        (other(options=["left", "right"], solution="right"), "STAR"),
        (other(options=["left", "right"], solution="B. right"), "STAR"),
        (other(options={"A": "left", "B": "right"}, solution="b"), "STAR"),
        (other(options="['A. left', 'B. right']"), "STAR"),
        (other(options="A. left\nB. right"), "STAR"),
        (other(options=None, A="left", B="right"), "STAR"),
        (other(options=None, option0="left", option1="right", option2="N/A", solution=None, correct_choice=1), "STAR"),
        (other(options=None, a0="left", a1="right", solution=None, answer=1), "STAR"),
        (other(options=None, problem="Where?\nA. left\nB. right"), "STAR"),
        (other(options=None, problem="<video>Where?\n\n(A) left\n\n(B) right\n"), "STAR"),
        (other(problem=None, question="Where?", path=None, videoID="a", task_type="Counting"), "Counting"),
        (
            other(
                problem=None, question="Where?", path=None, video="a.mp4", options=None, candidates=["left", "right"]
            ),
            "STAR",
        ),
        (other(problem_type="temporal", path=None, videos="a.mp4"), "temporal"),
        (other(question_type=["entity", "event"], path=None, key="a"), "entity+event"),
    ],
)
def test_benchmark_shapes(tmp_path: Path, row: dict[str, Any], kind: str) -> None:
    (question,) = read_questions(lines(tmp_path, row))
    assert question.id == "7"
    assert question.text == CHOICE_TEXT
    assert (question.options, question.answer, question.kind) == (("left", "right"), "B", kind)
    assert question.video == str(tmp_path / "a.mp4")


def test_open_question_asks_for_an_answer(tmp_path: Path) -> None:
    row = other(options=[], solution="<answer>7</answer>", problem="How many?", problem_type="numerical")
    (question,) = read_questions(lines(tmp_path, row))
    assert (question.text, question.options, question.answer) == (f"How many?\n{ANSWER}", (), "7")


def test_options_that_only_look_labelled(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, other(options=["A.M.", "P.M."], solution="B")))
    assert question.options == ("A.M.", "P.M.")


@pytest.mark.parametrize("key", ["process", "reasoning"])
def test_reasoning_becomes_the_answer_to_learn(tmp_path: Path, key: str) -> None:
    (example,) = read_examples(lines(tmp_path, other(**{key: "<think>it moved</think>"})))
    assert example.targets == ((Span("<think>\nit moved\n</think>\n<answer>B</answer>"),),)
    assert "SFT rows need" in said(lines(tmp_path, VIDEO_R1), examples=True)


def test_nested_questions(tmp_path: Path) -> None:
    inner = {"question": "Where?\n(A) left\n(B) right", "answer": "B"}
    (question, last) = read_questions(lines(tmp_path, {"key": "a", "qa": [inner, {**inner, "uid": 9}]}))
    assert (question.id, question.text, question.video) == ("rows-1#1", CHOICE_TEXT, str(tmp_path / "a.mp4"))
    assert last.id == "9"


@pytest.mark.parametrize(
    "written",
    [
        json.dumps([VIDEO_R1]),
        json.dumps(VIDEO_R1, indent=1),
        "\ufeff" + json.dumps([VIDEO_R1]),
        json.dumps({"info": "v1", "data": [VIDEO_R1]}),
        json.dumps({"7": other(problem_id=None)}, indent=1),
        json.dumps(VIDEO_R1) + "\n\n\n",
        json.dumps({**VIDEO_R1, "note": "a\u2028b"}, ensure_ascii=False),
    ],
)
def test_files_of_other_layouts(tmp_path: Path, written: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(written, encoding="utf-8")
    assert [question.id for question in read_questions(path)] == ["7"]


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("", "no rows"),
        ("  \n", "no rows"),
        ("[]", "no question"),
        ("[{]", "not JSON"),
        ("hello", "not JSON"),
        ('{"a": 1}', "no list of rows"),
        ('{\n "problem": ', "not JSON"),
    ],
)
def test_files_that_hold_no_rows(tmp_path: Path, written: str, what: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(written)
    assert what in said(path)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    assert "no such file" in said(tmp_path / "none.jsonl").lower()
    assert "folder" in said(tmp_path)
    (tmp_path / "rows.parquet").write_bytes(b"PAR1")
    assert "to_json" in said(tmp_path / "rows.parquet")
    (tmp_path / "rows.json").write_bytes(b"\xff\xfe[\x00]\x00")
    assert "UTF-8" in said(tmp_path / "rows.json")
