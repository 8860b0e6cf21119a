"""Rows as the papers' own files have them: VLM-RLAIF's for SFT and PPO, LLaVA-Video-178K, ShareGPTVideo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.data.films import numbers
from tests.data.rowfiles import lines, said
from tests.data.test_pictures import fit, frames

from longtake.data.cache import FrameTier
from longtake.data.pairs import read_pairs
from longtake.data.rows import read_examples, read_questions
from longtake.records import FramePolicy, Span

FRAMES = [f"anet_vidchatgpt_50frames/v_k1/{number}.jpeg" for number in range(50)]


def talk(*texts: str, speaker: str = "from", **more: Any) -> dict[str, Any]:
    turns = [{speaker: ("human", "gpt")[place % 2], "value": text} for place, text in enumerate(texts)]
    return {"id": "v_k1", "conversations": turns, **more}


@pytest.mark.parametrize("speaker", ["from", "role"])
def test_vlm_rlaif_sft(tmp_path: Path, speaker: str) -> None:
    row = talk("<image>\nWhat happens?", "A man jumps.", speaker=speaker, src_data="anet", images=FRAMES)
    (tmp_path / "SFT_short.json").write_text(json.dumps([row, {**row, "id": "v_k2"}]))
    first, second = read_examples(tmp_path / "SFT_short.json", tmp_path / "videos")
    assert first.question.video == f"{tmp_path}/videos/anet_vidchatgpt_50frames/v_k1/{{0..49}}.jpeg"
    assert (first.question.text, first.question.kind) == ("What happens?", "anet")
    assert first.targets == ((Span("A man jumps."),),)
    assert second.question.id == "v_k2"


def test_vlm_rlaif_ppo(tmp_path: Path) -> None:
    """The answer is not used: there may be none."""
    rows = [talk("What happens?\n<image>", told, uid=7, images=FRAMES) for told in ("A man jumps.", "\n", "")]
    for row in rows:
        (question,) = read_questions(lines(tmp_path, row))
        assert (question.id, question.text) == ("v_k1", "What happens?")
        assert str(question.video).endswith("v_k1/{0..49}.jpeg")


def test_vlm_rlaif_frames_are_seen(tmp_path: Path) -> None:
    frames(tmp_path / "v", 12, "{}.png")
    files = [f"v/{number}.png" for number in range(12)]
    (question,) = read_questions(lines(tmp_path, talk("<image>\nWhat?", "x", images=files)))
    assert question.video is not None
    pixels, receipt = FrameTier(tmp_path / "tier").take(question.video, FramePolicy(frames=12), fit)
    assert numbers(pixels) == list(range(12))
    assert receipt.backend.endswith("2 pictures a second")
    assert receipt.seconds[-1] == 5.5


def test_frames_at_a_rate(tmp_path: Path) -> None:
    """The words of qwen-vl-utils."""
    part = {"type": "video", "video": ["file:///v/1.jpg", "file:///v/2.jpg"], "sample_fps": 0.5, "nframes": 2}
    row = {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]}
    (question,) = read_questions(lines(tmp_path, row))
    assert question.video == "/v/{1..2}.jpg#fps=0.5"
    assert question.policy == FramePolicy(frames=2)
    row["video"] = "v_1"
    assert read_questions(lines(tmp_path, row))[0].video == question.video, "the turn names its own"


def test_llava_video_178k(tmp_path: Path) -> None:
    film = "academic_source/Charades/46GP8.mp4"
    choose = "\nPlease provide your answer by stating the letter followed by the full option."
    rows = [
        talk(f"<image>\nWho sits?\nA. A man.\nB. A woman.{choose}", "B. A woman.", data_source="0_30_s", video=film),
        talk("<image>\nWhy?", "He is tired.", "And then?", "He sleeps.", data_source="0_30_s", video=film),
    ]
    choice, open_one = read_examples(lines(tmp_path, rows[0], {**rows[1], "id": "oe"}))
    assert (choice.question.options, choice.question.answer) == (("A man.", "A woman."), "B")
    assert choice.question.text.endswith(choose)
    assert (choice.question.kind, choice.question.video) == ("0_30_s", str(tmp_path / film))
    assert [span.text for span in open_one.targets[0]] == ["He is tired.", "And then?", "He sleeps."]


@pytest.mark.parametrize("name", ["v_abc", "train_300k/rcoZ_10.0_20.5"])
def test_share_gpt_video_names_folders_of_frames(tmp_path: Path, name: str) -> None:
    row = talk("<video>\nDescribe.", "A man.", video=name)
    assert read_questions(lines(tmp_path, row))[0].video == f"{tmp_path / name}.mp4"
    frames(tmp_path / name, 3, "c01_{:04}.jpeg")
    (question,) = read_questions(lines(tmp_path, row))
    assert question.video == str(tmp_path / name)
    pair = {
        "id": "v",
        "video": name,
        "prompt": "Describe.",
        "answer": "A man.",
        "chosen": "A man.",
        "rejected": "A cat.",
    }
    assert read_pairs(lines(tmp_path, pair))[0].question.video == question.video
    film = FrameTier(tmp_path / "tier").film(question.video)
    assert (film.frames, film.fps, film.duration) == (3, 2.0, 1.5)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        (talk("<image>\nWhat?", "x", images=["a/1.jpg", "b/1.jpg"]), "in 2 folders"),
        (talk("<image>\nWhat?", "x", images=["1.jpg", "2.png"]), "several formats"),
        (talk("<image>\nWhat?", "x", images=["1.jpg", None]), "path of a file"),
        (talk("<image>\nWhat?", "x", images=["1.jpg", "https://x.org/2.jpg"]), "web address"),
        (talk("<image>\nWhat?", "x", images=[]), "none is named"),
        (talk("<image> or <image>?", "x", images=["1.jpg", "2.jpg"]), "2 places"),
        (talk("<image>\nWhat?", "x", video="a.mp4", sample_fps=1), "says its own times"),
    ],
)
def test_lists_that_are_no_film(tmp_path: Path, row: dict[str, Any], why: str) -> None:
    assert why in said(lines(tmp_path, row))
