"""Preferences of every shape, and back to TRL's."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.rowfiles import OPTIONS, chat, lines

from longtake.data.pairs import questions_of, read_pairs, write_pair
from longtake.data.rows import read_questions
from longtake.records import FramePolicy, Pair, Question

FRAMES = [f"anet/v1/image_{number:02d}.jpg" for number in range(1, 51)]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def trl(**changes: Any) -> dict[str, Any]:
    """A conversational row with its prompt; None takes a key away."""
    parts = [{"type": "video", "video": "films/7.mp4"}, {"type": "text", "text": "Where is it?"}]
    row = {
        "prompt": [turn("user", parts)],
        "chosen": [turn("assistant", "Left.")],
        "rejected": [turn("assistant", "Right.")],
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def rlaif(**changes: Any) -> dict[str, Any]:
    """A row of VLM-RLAIF's reward model."""
    row = {
        "id": "v1",
        "src_data": "anet",
        "conversations": [{"from": "human", "value": "<image>\nWhere is it?"}, {"from": "gpt", "value": "old"}],
        "images": FRAMES,
        "output_1": {"value": "Left."},
        "output_2": {"value": "Right."},
        "preference": 1,
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def one(folder: Path, row: dict[str, Any]) -> Pair:
    (pair,) = read_pairs(lines(folder, row))
    return pair


PLAIN = {"prompt": "<video>\nWhere is it?", "chosen": " Left.", "rejected": " Right."}
BOTH = {
    "chosen": [turn("user", "<video>Where is it?"), turn("assistant", "Left.")],
    "rejected": [turn("user", "<video>Where is it?"), turn("assistant", [{"type": "text", "text": "Right."}])],
}
SHAPES = {
    "TRL, conversational": trl(),
    "TRL, with nulls as `datasets` writes them": trl(
        prompt=[
            turn(
                "user",
                [
                    {"type": "video", "video": "films/7.mp4", "text": None},
                    {"type": "text", "video": None, "text": "Where is it?"},
                ],
            )
        ]
    ),
    "TRL, the film in a column": trl(
        prompt=[turn("user", [{"type": "text", "text": "Where is it?"}, {"type": "video"}])], videos=["films/7.mp4"]
    ),
    "TRL, a string as prompt and messages": trl(prompt="Where is it?", video="films/7.mp4"),
    "TRL, strings": {**PLAIN, "video": "films/7.mp4"},
    "TRL, strings, a list of one film": {**PLAIN, "videos": ["films/7.mp4"]},
    "TRL, prompt inside": {**BOTH, "videos": ["films/7.mp4"]},
    "the prompt's text beside whole conversations": {**BOTH, "video": "films/7.mp4", "prompt": "Where is it?"},
    "question": {"question": "Where is it?", "chosen": "Left.", "rejected": "Right.", "video": "films/7.mp4"},
    "LLaMA-Factory": {
        "conversations": [{"from": "human", "value": "<video>Where is it?"}],
        "chosen": {"from": "gpt", "value": "Left."},
        "rejected": {"from": "gpt", "value": "Right."},
        "videos": ["films/7.mp4"],
    },
    "VLM-RLAIF, a film": rlaif(images=None, video="films/7.mp4"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_says_the_same(tmp_path: Path, shape: str) -> None:
    pair = one(tmp_path, SHAPES[shape])
    assert (pair.chosen, pair.rejected) == ("Left.", "Right.")
    assert (pair.question.text, pair.question.video) == ("Where is it?", str(tmp_path / "films/7.mp4"))
    assert (pair.margin, pair.scores, pair.source) == (None, None, "")
    assert pair.row == SHAPES[shape]
    written = write_pair(pair, tmp_path)
    assert is_conversational_preference(written)
    assert one(tmp_path, json.loads(json.dumps(written))) == pair


def test_one_row_alone_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text(json.dumps(trl(), indent=1))
    assert read_pairs(tmp_path / "one.json")[0].chosen == "Left."
    (tmp_path / "list.json").write_text(json.dumps([trl(), trl(rejected="Up.")], indent=1))
    assert [pair.rejected for pair in read_pairs(tmp_path / "list.json")] == ["Right.", "Up."]


def is_conversational_preference(row: dict[str, Any]) -> bool:
    """What trl.data_utils.is_conversational and DPOTrainer ask of a row."""
    parts = row["prompt"], row["chosen"], row["rejected"]
    roles = [message["role"] for part in parts for message in part if "content" in message]
    return all(isinstance(part, list) for part in parts) and roles == ["user", "assistant", "assistant"]


@pytest.mark.parametrize("preference", [1, 2])
def test_vlm_rlaif(tmp_path: Path, preference: int) -> None:
    pair = one(tmp_path, rlaif(preference=preference))
    better, worse = ("Left.", "Right.")[:: 1 if preference == 1 else -1]
    assert (pair.id, pair.chosen, pair.rejected) == ("v1", better, worse)
    assert pair.question == Question("v1", f"{tmp_path}/anet/v1/image_{{01..50}}.jpg", "Where is it?", kind="anet")
    readme = [{"role": "human", "value": "<image>\nWhere is it?"}, {"role": "gpt", "value": ""}]
    assert one(tmp_path, rlaif(preference=preference, conversations=readme)) == pair
    assert one(tmp_path, rlaif(preference=preference, conversations=[readme])) == pair
    assert one(tmp_path, rlaif(preference=preference, conversations=readme[:1])) == pair


def test_a_picture(tmp_path: Path) -> None:
    pair = one(tmp_path, rlaif(images=None, image="7.jpg"))
    assert pair.question.video == str(tmp_path / "7.jpg")
    assert pair.question.policy is not None
    assert pair.question.policy.image
    assert one(tmp_path, rlaif(images=["7.jpg"])) == pair
    assert one(tmp_path, write_pair(pair, tmp_path)) == pair


def test_share_gpt_video(tmp_path: Path) -> None:
    row = {"id": "w-1", "video": "w", "prompt": "Where is it?", "answer": "It is left.", "chosen": "Left."}
    row |= {"rejected": "Right.", "chosen_score": 5, "rejected_score": 2}
    pair = one(tmp_path, row)
    assert pair.question == Question("w-1", str(tmp_path / "w.mp4"), "Where is it?", answer="It is left.")
    assert (pair.scores, pair.margin) == ((5.0, 2.0), 3.0)
    (tmp_path / "w").mkdir()
    assert one(tmp_path, row).question.video == str(tmp_path / "w"), "a folder of frames"
    assert one(tmp_path, {**row, "sample_fps": 1}).question.video == str(tmp_path / "w#fps=1")


@pytest.mark.parametrize(
    ("said", "scores", "margin"),
    [
        ({}, None, None),
        ({"margin": 0.5}, None, 0.5),
        ({"score_chosen": 4, "score_rejected": 2.5}, (4.0, 2.5), 1.5),
        ({"score_chosen": 4, "score_rejected": 4}, (4.0, 4.0), 0.0),
        ({"score_chosen": 4, "score_rejected": 2, "margin": 7}, (4.0, 2.0), 7.0),
        ({"score_chosen": None, "score_rejected": None, "margin": None}, None, None),
    ],
)
def test_scores_give_the_margin_that_is_not_named(
    tmp_path: Path, said: dict[str, Any], scores: tuple[float, float] | None, margin: float | None
) -> None:
    pair = one(tmp_path, {**trl(), "source": "human", **said})
    assert (pair.scores, pair.margin, pair.source) == (scores, margin, "human")


def test_pairs_that_ask_the_same_share_their_question(tmp_path: Path) -> None:
    other = trl(prompt="Why?", video="films/7.mp4")
    rows = [trl(id="a"), trl(id="b", rejected="Up."), {**other, "id": "a"}, trl(id="c", chosen="Up.", rejected="Left.")]
    pairs = read_pairs(lines(tmp_path, *rows, {**other, "id": "a", "chosen": "Up."}))
    assert [pair.id for pair in pairs] == ["a", "b", "a#2", "c", "a#3"]
    assert [pair.question.id for pair in pairs] == ["a", "a", "a#2", "a", "a#2"]
    assert questions_of(pairs) == [pairs[0].question, pairs[2].question]
    assert questions_of([]) == []


def test_what_the_judge_writes(tmp_path: Path) -> None:
    """From a question of another file, with options, a frame policy and what was judged."""
    (question,) = read_questions(lines(tmp_path, chat("q7", look={"nframes": 8}, kind="spatial", note="käpt’n 🦀")))
    judged = {
        "narrative": ["a cup", "a ball"],
        "verdicts": [{"better": "A"}, {"better": "B"}],
        "receipt": {"padded": 0},
    }
    pairs = [
        Pair("q7#0", question, "B", "A\u2028or C", 2.0, (4.0, 2.0), "judge", judged),
        Pair("q7#1", question, "<think> s </think>\n<answer> B </answer>", " C", None, None, "human"),
    ]
    (tmp_path / "run").mkdir()
    rows = [json.loads(json.dumps(write_pair(pair, tmp_path / "run"))) for pair in pairs]
    assert all(is_conversational_preference(row) for row in rows)
    assert {key: rows[0][key] for key in judged} == judged
    assert rows[0]["prompt"][0]["content"][0] == {"type": "video", "video": "../films/7.mp4", "nframes": 8}
    assert (rows[0]["options"], rows[0]["answer"], rows[0]["note"]) == (OPTIONS, "B", "käpt’n 🦀")
    again = read_pairs(lines(tmp_path / "run", *rows))
    film = str(tmp_path / "run/../films/7.mp4")
    assert again == [replace(pair, question=replace(question, video=film)) for pair in pairs]
    assert again[0].question.policy == FramePolicy(frames=8)
    assert again[0].question is again[1].question
    assert again[0].question.row["note"] == "käpt’n 🦀"
    assert not {"narrative", "chosen", "margin"} & again[0].question.row.keys()


def test_options_are_written_as_they_were_understood(tmp_path: Path) -> None:
    pair = one(
        tmp_path, trl(options=["B. left", "A. right"], answer="<answer>B</answer>", score_chosen=2, score_rejected=1)
    )
    assert (pair.question.options, pair.question.answer) == (("right", "left"), "B")
    written = write_pair(pair, tmp_path)
    assert (written["options"], written["answer"], written["margin"]) == (["right", "left"], "B", 1.0)
    assert one(tmp_path, written) == pair


def test_no_film_where_the_row_says_so(tmp_path: Path) -> None:
    pair = one(tmp_path, trl(prompt="2 + 2?", data_type="text"))
    assert pair.question.video is None
    assert write_pair(pair, tmp_path)["data_type"] == "text"
    assert one(tmp_path, write_pair(pair, tmp_path)) == pair


def test_pairs_that_are_shown_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs/pairs.md").read_text()
    shown = [line for block in re.findall(r"^```jsonl\n(.*?)^```$", text, re.M | re.S) for line in block.splitlines()]
    pairs = [one(tmp_path, json.loads(line)) for line in shown]
    assert len(pairs) == 5
    film = str(tmp_path / "films/7.mp4")
    for pair in pairs:
        said = pair.question.video, pair.question.text, pair.chosen, pair.rejected, pair.margin
        assert said == (film, "Where is it?", "Left.", "Right.", 2.0)
