"""Malformed rows and the real benchmark files."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import chat, lines, other, said

from longtake.data.rows import sift_examples, sift_questions

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "benchmarks"
MALFORMED = [
    ('{"id": "q", "messages": [', "not JSON"),
    ("[1]", "a row is an object"),
    ({"id": "q"}, "no question: the keys are id"),
    ({"chosen": "a", "rejected": "b"}, "preference"),
    ({"messages": "hello"}, "list of turns"),
    ({"messages": []}, "the turns are none"),
    ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}, "system turn"),
    ({"messages": [{"role": "user", "content": " "}]}, "no text"),
    ({"messages": [{"role": "user", "content": "<video>where ?"}]}, "none is named"),
    ({"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}]}, "'audio'"),
    (json.dumps(chat(text="where ? \ud83d")), r"half a character in the text: '\ud83d'"),
    (chat(look={"video": ["1.mp4", "2.mp4"]}), "2 films or images"),
    (chat(look={"video": "https://x.org/a.mp4"}), "web address"),
    (chat(answer=[{"type": "text", "text": "a", "weight": -1}]), "weight"),
    (chat(answer=""), "empty"),
    (chat(answer="a", weight="much"), "weight"),
    (chat(hops=-1), "`hops`"),
    (chat(evidence=[[3, 2]]), "`evidence`"),
    (other(solution="<answer>C</answer>"), "'C' is none of the 2 options"),
    (other(options=["A. left"]), "1 option, where 2"),
    (other(options=["A. left", "B. "]), "option B is empty"),
    (other(options=["A. left", "D. .", "B. right"]), "labelled A, D, B, not A to C"),
    (other(options=None), "the letter B, but there are no options"),
    (other(options=7), "must be a list"),
    (other(options=[["left"]]), "every option must be text"),
    (other(path=None), "no film"),
    (other(data_type="image"), "is a film, not a picture"),
    (other(problem=" "), "the question is empty"),
    (other(solution={"a": 1}), "the answer must be text"),
    ({"conversations": [{"from": "gpt", "value": "x"}]}, "alternation"),
    ({"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}, "none is named"),
]


@pytest.mark.parametrize(("row", "why"), MALFORMED)
def test_malformed_row_is_named_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    path = lines(tmp_path, chat("good"), "", row)
    message = said(path)
    assert message.startswith(f"{path}:3: ")
    assert why in message
    questions, (bad,) = sift_questions(path)
    assert [question.id for question in questions] == ["good"]
    assert bad.place == 3
    assert why in f"{bad.reason} {bad.fix}"


def test_the_first_error_counts_the_others(tmp_path: Path) -> None:
    message = said(lines(tmp_path, chat("good"), {"id": "x"}, {"id": "y"}, {"id": "z"}))
    assert ":2: " in message
    assert "2 more rows are malformed too" in message


def test_ids_that_are_used_twice(tmp_path: Path) -> None:
    assert "the same row as at 1" in said(lines(tmp_path, chat(), chat()))
    assert "another question at 1" in said(lines(tmp_path, chat(), chat(text="who ?")))
    assert "another answer at 1" in said(lines(tmp_path, chat("a", "x"), chat("a", "y") | {"answer": "C"}))
    examples, bad = sift_examples(lines(tmp_path, chat("a", "x"), chat("a", "y"), chat("a", "z", text="who ?")))
    assert [len(example.targets) for example in examples] == [2]
    assert [(row.place, row.id) for row in bad] == [(3, "a")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not here")
@pytest.mark.parametrize(
    ("name", "good", "bad"), [("longvideoreason", 807, 44), ("lvbench", 1492, 0), ("mlvu-dev", 2171, 3)]
)
def test_real_benchmark_files(name: str, good: int, bad: int) -> None:
    questions, left_out = sift_questions(SHARED / f"{name}.json")
    assert (len(questions), len(left_out)) == (good, bad)
    assert all(question.answer in "ABCD" and len(question.options) == 4 for question in questions)
    assert all(row.id and row.reason for row in left_out)


def test_escapes_of_whole_characters_are_fine(tmp_path: Path) -> None:
    path = lines(tmp_path, json.dumps(chat(text="where is 🎈 ?")), json.dumps(chat("p", text="C:\\udata ?")))
    assert [question.text for question in sift_questions(path)[0]] == ["where is 🎈 ?", "C:\\udata ?"]


def test_rows_may_come_through_a_pipe(tmp_path: Path) -> None:
    content = json.dumps(chat("a")) + "\n" + json.dumps(chat("b")) + "\n"
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=(content,))
    writer.start()
    assert [question.id for question in sift_questions(tmp_path / "pipe")[0]] == ["a", "b"]
    writer.join()
