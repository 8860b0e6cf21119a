"""Conversations of several turns: one sequence to learn, one question to ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import lines, other, said

from longtake.data.rows import read_examples, read_questions, sift_examples
from longtake.data.write import canonical
from longtake.log.files import write_jsonl
from longtake.records import Span

VIDEO = {"type": "video", "video": "a.mp4"}


def talk(*texts: Any, **more: Any) -> dict[str, Any]:
    """A LLaVA row."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "v", "conversations": turns, "video": "a.mp4", **more}


def chat(*texts: Any, **more: Any) -> dict[str, Any]:
    """The same as our own row."""
    first = [VIDEO, {"type": "text", "text": texts[0]}]
    turns: list[dict[str, Any]] = [{"role": "user", "content": first}]
    turns += [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)][1:]
    return {"id": "v", "messages": turns, **more}


@pytest.mark.parametrize("shape", [talk, chat])
def test_a_conversation_is_one_sequence(tmp_path: Path, shape: Any) -> None:
    row = shape("<image>\nWhere?\nA. left\nB. right", "B.", "Who?", "A man.", "Why?", "He won.", weight=0.5)
    (example,) = read_examples(lines(tmp_path, row))
    assert (example.question.id, example.question.text) == ("v", "Where?\nA. left\nB. right")
    assert example.question.video == str(tmp_path / "a.mp4")
    assert example.targets == (
        (
            Span("B.", 0.5), Span("Who?", 0.0, "user"), Span("A man.", 0.5), Span("Why?", 0.0, "user"),
            Span("He won.", 0.5),
        ),
    )  # fmt: skip


def test_asked_is_the_first_turn(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, talk("<image>\nWhere?\nA. left\nB. right", "B.", "Who?", "A man.")))
    assert (question.text, question.options, question.answer) == ("Where?\nA. left\nB. right", ("left", "right"), "B")
    (open_one,) = read_questions(lines(tmp_path, talk("Who?", "A man.", "Why?", "He won.")))
    assert (open_one.options, open_one.answer) == ((), "A man.")


def test_turns_have_weights_of_their_own(tmp_path: Path) -> None:
    row = chat("Where?", "left", "Who?", [{"type": "text", "text": "a man", "weight": 0.5}])
    row["messages"][1]["weight"] = 0.0
    row["messages"][3]["weight"] = 4.0
    (example,) = read_examples(lines(tmp_path, row | {"weight": 3.0}))
    assert [span.weight for span in example.targets[0]] == [0.0, 0.0, 6.0]


def test_llava_rows_about_one_film_keep_their_names_apart(tmp_path: Path) -> None:
    path = lines(tmp_path, talk("Where?", "Left."), talk("<image>\nWhen?", "At noon."), talk("Where?", "On the left."))
    examples = read_examples(path)
    assert [example.question.id for example in examples] == ["v", "v#2"]
    assert [len(example.targets) for example in examples] == [2, 1]


def test_a_question_without_an_answer_is_none_to_learn_from(tmp_path: Path) -> None:
    """VLM-RLAIF's rows for PPO end with an empty turn."""
    for row in (talk("Where?", "\n"), talk("Where?"), chat("Where?")):
        (question,) = read_questions(lines(tmp_path, row))
        assert (question.text, question.answer) == ("Where?", "")
        assert "SFT rows need" in said(lines(tmp_path, row), examples=True)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (talk("a", "b", "c"), "in alternation, the last one by gpt"),
        (chat("a", "b", "c"), "in alternation, the last one by assistant"),
        (chat("a", "b", [VIDEO, {"type": "text", "text": "c"}], "d"), "in the first turn"),
        (chat("a", "b", "<video>", "d"), "no text"),
        (chat("a", "b", "c", ""), "the assistant turn is empty"),
        (talk("a", "b", "", "d"), "a turn has no text"),
        (talk("a", "b", "<image>\nc", "d", video=None), "none is named"),
        (chat("a", "b", [{"type": "text"}], "d"), "a text part has no text"),
    ],
)
def test_what_is_no_conversation(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert sift_examples(lines(tmp_path, row))[0] == []
    assert why in said(lines(tmp_path, row), examples=True)


@pytest.mark.parametrize(
    "row",
    [
        talk("<image>\nWhere?", "left", "Who?", "A man.", weight=0.25),
        chat("Where?", [{"type": "text", "text": "so", "weight": 0.0}, {"type": "text", "text": "A"}], "Who?", "He"),
        other(reasoning="it moved"),
    ],
)
def test_what_a_stage_hands_on_still_teaches_the_same(tmp_path: Path, row: dict[str, Any]) -> None:
    (before,) = read_examples(lines(tmp_path, row))
    write_jsonl(tmp_path / "out" / "easy.jsonl", [canonical(before.question, tmp_path / "out")])
    (after,) = read_examples(tmp_path / "out" / "easy.jsonl")
    assert after.targets == before.targets
    assert (after.question.text, after.question.answer) == (before.question.text, before.question.answer)
    assert Path(after.question.video or "").resolve() == Path(before.question.video or "").resolve()


def test_an_answer_may_be_handed_on_instead(tmp_path: Path) -> None:
    (question,) = read_questions(lines(tmp_path, talk("Where?", "left", "Who?", "A man.")))
    write_jsonl(tmp_path / "right.jsonl", [canonical(question, tmp_path, "on the left") | {"weight": 0.5}])
    (example,) = read_examples(tmp_path / "right.jsonl")
    assert example.targets == ((Span("on the left", 0.5),),)
