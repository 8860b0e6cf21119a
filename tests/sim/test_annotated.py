"""Chains of an annotator who sees few frames: what it saw, what follows, and nothing wrong in the end."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.plain import story as plain

from longtake.data.rows import read_examples
from longtake.records import FramePolicy
from longtake.rewards.mix import accuracy
from longtake.sim import rows
from longtake.sim.make import make_annotated_rows, scenes
from longtake.sim.observer import ceiling, looked_at
from longtake.sim.scenes import SECONDS

SEED, FILMS, FRAMES = 5, 200, 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    make_annotated_rows(made, SEED, {"sft": FILMS}, "sft", FRAMES)
    return made / "rows"


def test_what_few_frames_show_and_what_follows(folder: Path) -> None:
    told = scenes(SEED, "sft", FILMS)
    examples = read_examples(folder / "annotated-sft.jsonl")
    frames, overlooked = looked_at(FramePolicy(frames=FRAMES)), 0
    for example in examples:
        story = told[int(example.question.id.removeprefix("sft-"))]
        assert Path(example.question.video or "").name == f"{example.question.id}.mp4"
        ((span,),) = example.targets
        assert accuracy(span.text, example.question) == 1.0
        words = span.text.split()
        noted = [story.events[0], *words[4:25:3]]
        for second in range(1, SECONDS):
            shown = any(frame in story.shown(second) for frame in frames)
            assert noted[second] == (story.events[second] if shown else "none")
        overlooked += noted != list(story.events)
        assert plain.answer(story.kind, story.question, noted) == story.truth
        if story.kind in ("spatial", "plot"):
            so_far = [plain.answer(story.kind, story.question, noted[: s + 1]) for s in range(1, SECONDS)]
            assert words[5:26:3] == so_far
    assert 0.1 < overlooked / len(examples) < 0.9


def test_kept_is_what_ends_right(folder: Path) -> None:
    told = scenes(SEED, "sft", FILMS)
    assert len(read_examples(folder / "annotated-sft.jsonl")) / FILMS == ceiling(told, FRAMES)


def test_who_sees_everything_writes_the_full_chain() -> None:
    for story in scenes(SEED, "sft", 40):
        row = rows.annotated_row("q", "a.mp4", story, FramePolicy(frames=64))
        assert row == rows.question_row("q", "a.mp4", story, answer=rows.chain(story, "full"))


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = make_annotated_rows(tmp_path, SEED, {"sft": FILMS}, "sft", FRAMES)
    assert again.read_bytes() == (folder / "annotated-sft.jsonl").read_bytes()
