"""Preferences that cannot be used, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import MOST_LINES, lines
from tests.data.test_pairs import BOTH, PLAIN, rlaif, trl, turn

from longtake.data.pairs import read_pairs, sift_pairs
from longtake.data.rows import sift_questions
from longtake.errors import UserError

TALK = [turn("user", "Hi."), turn("assistant", "Hello."), turn("user", "Where?")]
MALFORMED = [
    ('{"prompt": ', "not JSON"),
    ("[1]", "a row is an object"),
    ({"id": "q"}, "no pair: the keys are id"),
    ({"prompt": "Where?", "chosen": "a"}, "no pair"),
    ({"chosen": "a", "rejected": "b", "video": "a.mp4"}, "no question"),
    (trl(rejected="Left. "), "both answers are the same"),
    (trl(chosen=""), "the chosen answer is empty"),
    (trl(rejected=[turn("assistant", " \n")]), "the rejected answer is empty"),
    (trl(rejected=[turn("assistant", None)]), "`rejected` must be text"),
    (trl(rejected=[turn("user", "Right.")]), "one assistant turn, not user"),
    (trl(rejected=7), "`rejected` must be a list"),
    (trl(rejected=[]), "`rejected` must be a list"),
    (trl(rejected=["Right."]), "`rejected` must be a list"),
    (trl(rejected=[turn("assistant", [{"type": "image"}])]), "`rejected` must be text"),
    (trl(chosen=[turn("assistant", "a"), turn("assistant", "b")]), "one assistant turn, not assistant, assistant"),
    (trl(prompt=7), "`prompt` must be a list"),
    (trl(prompt=[turn("system", "Be brief."), turn("user", "Where?")], video="a.mp4"), "system turn"),
    (trl(prompt=TALK, video="a.mp4"), "turn 2 of a conversation"),
    (trl(prompt=[turn("assistant", "Hi.")], video="a.mp4"), "the turns are assistant"),
    (trl(prompt=" ", video="a.mp4"), "no text"),
    (trl(prompt="Where?"), "no film or picture is named"),
    (trl(prompt="<video>Where?"), "none is named"),
    (trl(prompt=[turn("user", [{"type": "video"}, {"type": "text", "text": "x"}])]), "none is named"),
    (trl(prompt=[turn("user", [{"type": "video"}] * 2)], videos=["a.mp4"]), "2 films or pictures"),
    ({**PLAIN, "videos": ["a.mp4", "b.mp4"]}, "2 films or images"),
    ({**PLAIN, "video": "https://x.org/a.mp4"}, "web address"),
    ({**PLAIN, "video": {"bytes": "…"}}, "path of a file"),
    ({**PLAIN, "images": [{"bytes": "…"}]}, "path of a file"),
    ({**PLAIN, "video": "a.mp4", "sample_fps": 2}, "says its own times"),
    ({**PLAIN, "video": ["1.jpg", "2.jpg"], "sample_fps": 0}, "'sample_fps'"),
    ({**PLAIN, "video": "a.mp4", "min_frames": 2}, "'min_frames'"),
    ({**PLAIN, "video": "a.mp4", "prompt": "Half \ud83d"}, "half a character"),
    ({**BOTH, "video": "a.mp4", "rejected": [turn("user", "Why?"), turn("assistant", "b")]}, "part before their last"),
    (rlaif(preference=0), "`preference` must be 1 or 2, not 0"),
    (rlaif(preference=None), "not None"),
    (rlaif(preference=True), "not True"),
    (rlaif(preference="1"), "not '1'"),
    (rlaif(output_2=None), "`output_2` must be"),
    (rlaif(output_2={"value": ""}), "answer is empty"),
    (rlaif(output_2={"value": "Left."}), "the same"),
    (rlaif(conversations=None), "`conversations` must be"),
    (rlaif(conversations="hello"), "`conversations` must be"),
    (rlaif(images=["a/1.jpg", "b/2.jpg"]), "2 folders"),
    (rlaif(images=["1.jpg", 2.5]), "path of a file"),
    (rlaif(conversations=[{"from": "human", "value": "<image> or <image>?"}]), "at 2 places"),
    (trl(score_chosen=4), "the other has none"),
    (trl(score_chosen="4", score_rejected=2), "`score_chosen` must be a number"),
    (trl(score_chosen=1, score_rejected=2), "higher score"),
    (trl(margin=-1), "`margin` must be from 0 on"),
    (trl(margin=[1]), "`margin` must be a number"),
    (trl(options=["left"], answer="A"), "1 option"),
    (trl(options=["left", "right"], answer="C"), "'C' is none of the 2"),
]


def said(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_pairs(path)
    assert len(str(caught.value).splitlines()) <= MOST_LINES
    return str(caught.value)


@pytest.mark.parametrize(("row", "why"), MALFORMED)
def test_malformed_pair_is_named_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    row = json.dumps(row) if isinstance(row, dict) else row  # escaped: half characters cannot be written otherwise
    good = trl(id="good", prompt="Whence?", video="films/1.mp4")
    path = lines(tmp_path, good, "", row)
    message = said(path)
    assert message.startswith(f"{path}:3: ")
    assert why in message
    (pair,), (bad,) = sift_pairs(path)
    assert (pair.id, bad.place) == ("good", 3)


def test_the_same_pair_twice(tmp_path: Path) -> None:
    rows = [trl(id="a"), trl(id="b"), trl(id="c", chosen="Right.", rejected="Left.")]
    pairs, (bad,) = sift_pairs(lines(tmp_path, *rows))
    assert [pair.id for pair in pairs] == ["a", "c"], "another judge may think the contrary"
    assert (bad.place, bad.id, bad.reason) == (2, "b", "the same pair as at 1")


def test_question_ids_that_mean_two_questions(tmp_path: Path) -> None:
    why = trl(id="b", question_id="q", prompt="Why?", video="films/7.mp4")
    for first in (trl(id="a", question_id="q"), trl(id="q")):
        assert "`question_id` q was used for another question" in said(lines(tmp_path, first, why))
    pairs = read_pairs(lines(tmp_path, why, trl(id="q"), trl(id="c", rejected="Up.")))
    assert [pair.question.id for pair in pairs] == ["q", "q#2", "q#2"]


def test_several_are_counted(tmp_path: Path) -> None:
    message = said(lines(tmp_path, trl(margin=-1), trl(margin=-2), trl()))
    assert "1 more row is malformed too" in message


@pytest.mark.parametrize("text", ["", "\n\n", "hello", "{}", "[]", '{"rows": 1}'])
def test_files_without_pairs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(text)
    said(path)
    said(tmp_path / "missing.jsonl")


def test_stages_that_need_questions_say_that_pairs_are_none(tmp_path: Path) -> None:
    _, (bad,) = sift_questions(lines(tmp_path, trl()))
    assert bad.reason == "a preference pair has no single answer"
