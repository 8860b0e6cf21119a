"""Subtitles: what a file says, which of them belong to what is looked at, and rows whose subtitles are no good."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import chat, lines

from longtake.data.jsonrows import Malformed
from longtake.data.pairs import read_pairs, write_pair
from longtake.data.rows import read_questions, sift_questions
from longtake.data.subtitles import seen, subtitles_of, told
from longtake.data.write import canonical
from longtake.records import Cue, FramePolicy, Pair, Question

SRT = """1
00:00:01,500 --> 00:00:03,000
The <i>red</i> cup
is lifted.

2
00:00:59,250 --> 00:01:02,000
{\\an8}Now the blue one.

3
01:00:00,000 --> 01:00:01,000
<b></b>
"""
VTT = """WEBVTT - of a film

NOTE
nobody reads this

STYLE
::cue { color: red }

intro
00:01.500 --> 00:03.000 align:start position:0%
<v Ann>The red cup</v> is &lt;lifted&gt;.

01:00:00.250 --> 01:00:02.5
Later.
"""
CUES = (Cue(1.0, 2.0, "a"), Cue(2.0, 5.0, "b"), Cue(9.96, 12.0, "c"))


def write(folder: Path, text: str | bytes, name: str = "a.srt") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_srt(tmp_path: Path) -> None:
    write(tmp_path, SRT)
    want = (Cue(1.5, 3.0, "The red cup is lifted."), Cue(59.25, 62.0, "Now the blue one."))
    assert subtitles_of("a.srt", tmp_path) == want
    write(tmp_path, b"\xef\xbb\xbf" + SRT.replace("\n", "\r\n").encode(), "b.SRT")
    assert subtitles_of("b.SRT", tmp_path) == want


def test_vtt(tmp_path: Path) -> None:
    write(tmp_path, VTT, "a.vtt")
    assert subtitles_of("a.vtt", tmp_path) == (
        Cue(1.5, 3.0, "The red cup is <lifted>."),
        Cue(3600.25, 3602.5, "Later."),
    )


def test_a_list(tmp_path: Path) -> None:
    given = [{"start": 1, "end": 2.5, "text": "a\nb"}, {"start": 3, "end": 4, "text": " "}]
    assert subtitles_of(given, tmp_path) == (Cue(1.0, 2.5, "a b"),)


@pytest.mark.parametrize(
    ("policy", "want"),
    [
        (FramePolicy(frames=2), "abc"),
        (FramePolicy(frames=2, start=2.0), "abc"),  # one that is on at the first moment, to its last
        (FramePolicy(frames=2, start=2.1), "bc"),
        (FramePolicy(frames=2, end=1.9), "a"),
        (FramePolicy(fps=1.0, start=5.5, end=9.0), ""),
        (FramePolicy(seconds=(3.0, 9.97)), "bc"),
        (FramePolicy(seconds=(6.0, 7.0)), ""),
    ],
)
def test_those_of_the_window_are_read(policy: FramePolicy, want: str) -> None:
    question = Question("q", "a.mp4", "Where?", subtitles=CUES)
    assert "".join(cue.text for cue in seen(question, policy)) == want
    head = {"a": "[1.0s] a\n", "b": "[2.0s] b\n", "c": "[10.0s] c\n"}
    assert told(question, policy).text == "".join(head[name] for name in want) + "Where?"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"\xff\xfe", "not UTF-8"),
        ("", "no subtitle in"),
        ("1\nhello", "no time in the subtitles"),
        ("1\n00:00:05,000 --> 00:00:04,000\nx", "ends before it begins"),
        (f"{SRT}\nlost words\nwithout a time\n", "no time in the subtitles"),
    ],
)
def test_a_file_that_is_no_good_sets_its_row_aside(tmp_path: Path, text: str | bytes, why: str) -> None:
    write(tmp_path, text)
    path = lines(tmp_path, chat("good"), chat("bad", subtitles="a.srt"))
    questions, bad = sift_questions(path)
    assert [question.id for question in questions] == ["good"]
    assert [(row.place, row.id, why in row.reason, bool(row.fix)) for row in bad] == [(2, "bad", True, True)]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("none.srt", "no such file"),
        ("a.ass", "no .srt or .vtt"),
        (7, "a path or a list"),
        ([{"start": 1, "text": "a"}], "start, end and text"),
        ([{"start": 1, "end": True, "text": "a"}], "start, end and text"),
        ([{"start": -1, "end": 2, "text": "a"}], "ends before it begins"),
        (["a"], "start, end and text"),
    ],
)
def test_what_is_no_subtitle(tmp_path: Path, given: Any, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        subtitles_of(given, tmp_path)


def test_subtitles_need_a_film(tmp_path: Path) -> None:
    row = {"id": "q", "messages": [{"role": "user", "content": "What?"}], "subtitles": []}
    _, (bad,) = sift_questions(lines(tmp_path, row))
    assert "without a film" in bad.reason


def test_a_row_that_is_written_again_finds_its_file(tmp_path: Path) -> None:
    write(tmp_path, SRT)
    (question,) = read_questions(lines(tmp_path, chat(subtitles="a.srt")))
    (tmp_path / "next").mkdir()
    row = canonical(question, tmp_path / "next")
    assert row["subtitles"] == "../a.srt"
    assert read_questions(lines(tmp_path / "next", json.dumps(row)))[0].subtitles == question.subtitles != ()


def test_pairs_keep_them(tmp_path: Path) -> None:
    write(tmp_path, SRT)
    (question,) = read_questions(lines(tmp_path, chat(subtitles="a.srt")))
    (tmp_path / "next").mkdir()
    row = write_pair(Pair("p", question, "left", "right"), tmp_path / "next")
    (pair,) = read_pairs(lines(tmp_path / "next", json.dumps(row)))
    assert pair.question.subtitles == question.subtitles != ()


def test_one_question_with_other_subtitles_is_another(tmp_path: Path) -> None:
    rows = [chat(answer="A"), chat(answer="B", subtitles=[{"start": 0, "end": 1, "text": "a"}])]
    _, (bad,) = sift_questions(lines(tmp_path, *rows))
    assert "another question" in bad.reason
