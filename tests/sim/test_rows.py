"""The simulator's rows: every word has a token, every chain earns its rewards, every file is read as it was meant."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.world import write

from longtake.data.frames import choose
from longtake.data.rows import read_examples, read_questions
from longtake.log import read_jsonl
from longtake.records import FramePolicy
from longtake.rewards.format import format_reward
from longtake.rewards.mix import accuracy
from longtake.sim import rows, tiny
from longtake.sim.make import SPLITS, make_rows, scenes
from longtake.sim.observer import FILM
from longtake.sim.scenes import KINDS, LETTERS, SECONDS, keyed

COUNTS = {"sft": 12, "rl": 8, "gate": 8, "test": 8}
STEPS = 10
STORIES = scenes(5, "sft", 400)
WORDS = tiny.tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    make_rows(made, 5, COUNTS, STEPS)
    return made


def ids(text: str) -> list[int]:
    return list(WORDS(text, add_special_tokens=False)["input_ids"])


def texts(row: dict[str, Any]) -> Iterator[str]:
    for message in row["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        yield from (part["text"] for part in parts if part["type"] == "text")


def test_every_word_of_every_row_has_a_token_and_comes_back(folder: Path) -> None:
    files = sorted((folder / "rows").glob("*.jsonl"))
    assert {file.stem for file in files} == {"base", "sft", "rl", "gate", "test"}
    for file in files:
        for row in read_jsonl(file):
            for text in texts(row):
                assert WORDS.unk_token_id not in ids(text), text
                assert WORDS.decode(ids(text)) == text


def test_all_stories_are_spelled() -> None:
    """The few rows above need not hold every hand-over."""
    said = {word for story in STORIES for word in f"{rows.asked(story)} {rows.chain(story, 'full')}".split()}
    assert len(said) > 80
    for word in said:
        assert len(ids(word)) == 1
        assert ids(word) != [WORDS.unk_token_id]


@pytest.mark.parametrize("policy", [*(FramePolicy(frames=n) for n in (8, 16, 32, 64)), FramePolicy(fps=8.0, start=6.0)])
def test_every_time_stamp_has_a_token(policy: FramePolicy) -> None:
    seconds = [tick / FILM.fps for tick in choose(FILM, policy).indices]
    for first, second in zip(seconds[::2], seconds[1::2], strict=True):
        assert len(ids(f"<{(first + second) / 2:.1f} seconds>")) == 1
        assert ids(f"<{(first + second) / 2:.1f} seconds>") != [WORDS.unk_token_id]


def test_the_template_shows_the_film_and_ends_with_the_assistants_turn() -> None:
    content = [{"type": "video", "video": ""}, {"type": "text", "text": "where is the ball at the end ?"}]
    shown = WORDS.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert shown.split() == [
        *("<|im_start|>", "user", "<|vision_start|><|video_pad|><|vision_end|>"),
        *("where", "is", "the", "ball", "at", "the", "end", "?", "<|im_end|>", "<|im_start|>", "assistant"),
    ]


@pytest.mark.parametrize("style", list(rows.STYLES))
def test_every_chain_earns_its_rewards(style: str, tmp_path: Path) -> None:
    asked = [rows.question_row(f"q{n}", "a.mp4", story) for n, story in enumerate(STORIES[:80])]
    questions = read_questions(write(tmp_path / "rows.jsonl", asked))
    for question, story in zip(questions, STORIES, strict=False):
        text = rows.chain(story, style, np.random.default_rng(0), slips=0.5)
        assert accuracy(text, question) == 1.0
        assert format_reward(text) == 1.0
        wrong = [option for option in story.options if option != story.truth]
        assert accuracy(text.replace(f" {story.truth} <", f" {wrong[0]} <"), question) == 0.0


def test_styles_say_what_they_looked_at() -> None:
    story = next(story for story in STORIES if story.kind == "spatial")
    full, skim, guess = (rows.chain(story, style).split() for style in ("full", "skim", "guess"))
    assert full[1:3] == ["s0", story.events[0]]
    assert full[3:24:3] == [f"s{second}" for second in range(1, SECONDS)]
    assert full[4:25:3] == list(story.events[1:])
    assert full[5:26:3] == list(story.conclusions[1:])
    assert skim[1:9] == [word for second in (1, 3, 5, 7) for word in (f"s{second}", story.events[second])]
    end = rows.conclusion(story).split()
    assert guess == ["<think>", *end]
    assert full[-len(end) :] == skim[-len(end) :] == end
    assert (len(full), len(skim)) == (24 + len(end), 9 + len(end))
    assert sum(rows.STYLES.values()) == 1.0


def test_slips_change_events_alone() -> None:
    changed = total = 0
    for n, story in enumerate(STORIES):
        true, slipped = (
            rows.chain(story, "full", np.random.default_rng(n), slips).split() for slips in (0.0, rows.SLIPS)
        )
        for place, (word, said) in enumerate(zip(true, slipped, strict=True)):
            event = 4 <= place <= 22 and (place - 4) % 3 == 0
            assert word == said or (event and said in story.events[1:])
            changed += word != said
            total += event
    assert 0.02 < changed / total < rows.SLIPS  # some slips hit the same event


def test_questions_are_read_as_written(folder: Path) -> None:
    told = scenes(5, "rl", COUNTS["rl"])
    questions = read_questions(folder / "rows" / "rl.jsonl")
    assert [question.id for question in questions] == [f"rl-{n}" for n in range(COUNTS["rl"])]
    for number, (question, story) in enumerate(zip(questions, told, strict=True)):
        assert Path(question.video or "").name == f"rl-{number}.mp4"
        assert (question.options, question.answer, question.kind) == (story.options, story.letter, story.kind)
        assert (question.hops, len(question.evidence)) == (story.hops, len(story.evidence))
        assert question.text == rows.asked(story)
        assert question.text.endswith(" ".join(f"{a} {b}" for a, b in zip(LETTERS, story.options, strict=False)))


def test_three_chains_share_a_question_in_their_shares(folder: Path) -> None:
    examples = read_examples(folder / "rows" / "sft.jsonl")
    assert len(examples) == COUNTS["sft"]
    for example in examples:
        assert [spans[0].weight for spans in example.targets] == list(rows.STYLES.values())
        assert len({spans[0].text for spans in example.targets}) == len(rows.STYLES)


def test_stories_are_read_and_conclusions_learned() -> None:
    for story in STORIES[:40]:
        row = rows.story_row("s", story)
        learned, read = [], []
        for part in row["messages"][1]["content"]:
            (learned if part.get("weight", 1.0) else read).append(part["text"])
        assert learned == [*story.conclusions[1:], rows.conclusion(story)]
        told = [f"s{second} {story.events[second]}" for second in range(1, SECONDS)]
        assert read == ["<think> s0", story.conclusions[0], *told]


def test_weights_of_parts_and_rows_multiply(folder: Path) -> None:
    examples = {example.question.id: example for example in read_examples(folder / "rows" / "base.jsonl")}
    spans = examples["story-0-0"].targets[0]
    assert {span.weight for span in spans} == {0.0, rows.STORY_WEIGHT}
    assert examples["story-0-0"].question.video is None
    assert {span.weight for span in examples["clip-0-0"].targets[0]} == {1.0}


def test_the_curriculum_of_the_base_model(folder: Path) -> None:
    batches: dict[int, list[dict[str, Any]]] = {step: [] for step in range(STEPS)}
    written = read_jsonl(folder / "rows" / "base.jsonl")
    assert [row["batch"] for row in written] == sorted(row["batch"] for row in written)
    for row in written:
        batches[row["batch"]].append(row)
    sizes: dict[float, set[int]] = {}
    told: list[int] = []
    for step, own in batches.items():
        clips = [row["messages"][0]["content"][0] for row in own if row["kind"] == "caption"]
        (width,) = {clip["video_end"] - clip["video_start"] for clip in clips}
        assert width in ((1,) if step < 2 else (1, 2, 3) if step < 5 else range(2, SECONDS + 1))
        sizes.setdefault(width, set()).add(len(clips))
        told.append(sum(row["kind"] == "story" for row in own))
        assert {clip["fps"] for clip in clips} <= {4.0, 8.0}
    assert all(len(found) == 1 for found in sizes.values())
    by_width = [size for width in sorted(sizes) for size in sizes[width]]
    assert by_width == sorted(by_width, reverse=True)
    assert by_width[0] > by_width[-1] > 0
    assert told == sorted(told, reverse=True)
    assert told[0] > 0


def test_captions_tell_the_seconds_of_their_clip() -> None:
    row = rows.caption_row("c", "a.mp4", STORIES[0], 2, 5, 4.0)
    assert row["messages"][1]["content"] == " ".join(f"s{s} {STORIES[0].events[s]}" for s in (2, 3, 4))


@pytest.mark.parametrize("width", [1, 2, 5, SECONDS])
def test_clips_lie_in_the_film_and_plots_hold_an_event(width: int) -> None:
    rng = keyed(0)
    busy = []
    for story in STORIES:
        start, stop = rows.clip(story, width, rng)
        assert 0 <= start < stop == start + width <= SECONDS
        if story.kind == "plot":
            busy.append(any(event != "none" for event in story.events[start:stop]))
    assert np.mean(busy) > 0.75


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_rows(tmp_path, 5, COUNTS, STEPS)
    for file in (folder / "rows").iterdir():
        assert (tmp_path / "rows" / file.name).read_bytes() == file.read_bytes()
    make_rows(tmp_path, 6, COUNTS, STEPS)
    assert (tmp_path / "rows" / "rl.jsonl").read_bytes() != (folder / "rows" / "rl.jsonl").read_bytes()


def test_splits_have_films_of_their_own() -> None:
    told = [story for split in SPLITS for story in scenes(0, split, 40)]
    assert len(set(told)) == len(told)
    assert [story.kind for story in told[:4]] == list(KINDS)
