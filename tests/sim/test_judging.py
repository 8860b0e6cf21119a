"""Rows to learn judging from: exact against the stories, no letter or style better than another, no film held out."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.plain import story as plain

from longtake.data.rows import read_examples, read_questions
from longtake.log import read_jsonl
from longtake.records import FramePolicy, Question
from longtake.rewards.format import format_reward
from longtake.rewards.mix import accuracy
from longtake.rewards.verdict import score, verdict
from longtake.runtime.films import Look
from longtake.sim import judging, rows, tiny
from longtake.sim.make import SPLITS, make_judge_rows, scenes
from longtake.sim.scenes import LETTERS, SECONDS, Scene, keyed
from longtake.train.asking import Said
from longtake.train.judge_prompts import read_prompts
from longtake.train.judging import Match
from longtake.train.judging import judging as asks
from longtake.train.narrative import Caption

SEED, STEPS = 5, 20
COUNTS = {"sft": 40, "rl": 8, "gate": 24, "test": 8}
STORIES = scenes(SEED, "sft", 240)
WORDS = tiny.tokenizer()
LUCK = 0.06  # difference of shares among some hundred rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("demo")
    make_judge_rows(made, SEED, COUNTS, STEPS)
    return made / "rows"


@pytest.fixture(scope="module")
def learned(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "judge.jsonl")


def ids(text: str) -> list[int]:
    return list(WORDS(text, add_special_tokens=False)["input_ids"])


def text_of(row: dict[str, Any]) -> str:
    return str(row["messages"][0]["content"][-1]["text"])


def film_of(row: dict[str, Any]) -> str | None:
    return next((part["video"] for part in row["messages"][0]["content"] if part["type"] == "video"), None)


def reply_of(row: dict[str, Any]) -> str:
    return " ".join(part["text"] for part in row["messages"][1]["content"])


def answers_of(row: dict[str, Any]) -> list[str]:
    return re.findall(r"<think>.*?</answer>", text_of(row))


def question_of(story: Scene) -> Question:
    return Question("q", None, rows.asked(story), story.options, story.letter, story.kind)


def test_every_word_has_a_token_and_comes_back(folder: Path, learned: list[dict[str, Any]]) -> None:
    for row in (*learned, *read_jsonl(folder / "judge_gate.jsonl")):
        for text in (text_of(row), *(reply_of(row) for _ in row["messages"][1:])):
            assert WORDS.unk_token_id not in ids(text), text
            assert WORDS.decode(ids(text)) == text


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("mode", ["pair", "rubric"])
def test_the_judge_is_asked_in_the_words_it_learned(folder: Path, mode: Any, told: bool) -> None:
    """Clips of two seconds, captioned right, through the recipe's own prompts: token by token the same."""
    prompts, story = read_prompts(folder / "prompts.yaml", told=told), STORIES[3]
    answers = tuple(judging.written(story, right, keyed(1)) for right in (True, False))
    captions = [
        Caption(s, s + 2.0, f"s{s} {story.events[s]} s{s + 1} {story.events[s + 1]}", None)
        for s in range(0, SECONDS, 2)
    ]
    look = Look(question_of(story), FramePolicy(frames=16))
    said = Said(answers[0], 9, "stop"), Said(answers[1], 9, "stop")
    match = Match("q#0", look, (0, 1), said, (True, False), tuple(captions) if told else (), None)
    made = [ids(ask.look.question.text) for ask in asks(mode, [match], prompts, (0.0, 0), ("<|im_end|>",))]
    orders = answers, answers[::-1]
    if mode == "pair":
        expected = [judging.judge_row("q", None, story, (a, b), told) for a, b in orders]
    else:
        expected = [judging.score_row("q", None, story, text, told) for text in answers]
    assert made == [ids(text_of(row)) for row in expected]
    assert judging.PROMPTS["caption"] == text_of(rows.caption_row("c", "a.mp4", story, 0, 2, 8.0))


@pytest.mark.parametrize("style", list(rows.STYLES))
def test_wrong_answers_are_wrong_and_look_like_right_ones(style: str) -> None:
    for number, story in enumerate(STORIES):
        text = judging.wrong_chain(story, style, keyed(number))
        assert accuracy(text, question_of(story)) == 0.0
        assert format_reward(text) == 1.0
        right = rows.chain(story, style)
        assert len(text.split()) == len(right.split())
        assert re.sub(r"\S+", "x", text) == re.sub(r"\S+", "x", right)


def test_careful_wrong_answers_misread_or_conclude_what_does_not_follow() -> None:
    read_right = 0
    for number, story in enumerate(STORIES):
        events, conclusions, said = judging.misread(story, keyed(number))
        assert 1 <= sum(a != b for a, b in zip(events, story.events, strict=True)) <= 2
        assert events[0] == story.events[0]
        assert said == plain.answer(story.kind, story.question, events) != story.truth
        words = judging.wrong_chain(story, "full", keyed(number)).split()
        noted, noted_after = tuple(words[4:25:3]), tuple(words[5:26:3])
        assert noted in (events[1:], story.events[1:])
        assert noted_after == conclusions[1:]
        read_right += noted == story.events[1:]
    assert abs(read_right / len(STORIES) - 0.5) < 2 * LUCK


def test_replies_are_exact(folder: Path, learned: list[dict[str, Any]]) -> None:
    """By the film's story: reasons are its full chain, verdict and score what the answers' own rewards say."""
    films = {f"../films/sft-{n}.mp4": story for n, story in enumerate(scenes(SEED, "sft", COUNTS["sft"]))}
    checked = Counter[str]()
    for row in learned:
        story = films.get(film_of(row) or "")
        if story is None:
            continue
        reasons = rows.chain(story, "full").removesuffix(rows.conclusion(story)) + f"so {story.truth}"
        reply = reply_of(row)
        assert reply.startswith(f"{reasons} one ")
        assert format_reward(reply) == 1.0
        right = [accuracy(text, question_of(story)) == 1.0 for text in answers_of(row)]
        assert [word == "yes" for word in reply.split() if word in ("yes", "no")] == right
        if row["kind"] == "score":
            assert score(reply) == (5.0 if right[0] else 1.0)
        else:
            wanted = {(True, False): "A", (False, True): "B"}.get((right[0], right[1]), "tie")
            assert verdict(reply) == wanted
            assert judging.VERDICTS[LETTERS.index(row["answer"])] == wanted
        told = f"story {judging.narrative(story)} " in text_of(row)
        assert told == (" story " in text_of(row))
        assert text_of(row).endswith(rows.asked(story))
        checked[f"{row['kind']} {told}"] += 1
    assert min(checked[f"{kind} {told}"] for kind in ("judge", "score") for told in (True, False)) > 3


def test_the_comparison_weighs_more_than_the_reasons(folder: Path) -> None:
    for example in read_examples(folder / "judge.jsonl"):
        ((reasons, compared),) = example.targets
        assert (reasons.weight, compared.weight) == (judging.REASONS, judging.VERDICT)
        assert compared.text.startswith("one ")


def test_no_letter_is_a_better_guess(learned: list[dict[str, Any]]) -> None:
    """Every pair is asked about in both orders."""
    pairs = [row for row in learned if row["kind"] == "judge"]
    letters = Counter(row["answer"] for row in pairs)
    assert letters["A"] == letters["B"] > 0
    assert abs(letters["C"] / len(pairs) - judging.TIES) < LUCK
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        assert answers_of(first) == answers_of(second)[::-1]
        assert film_of(first) == film_of(second)
        assert {"A": "B", "B": "A", "C": "C"}[first["answer"]] == second["answer"]


def test_no_style_is_a_better_guess() -> None:
    """Right and wrong answers are as long as each other: nothing but the story tells them apart."""
    lengths = [
        Counter(len(judging.written(STORIES[n % len(STORIES)], right, keyed(n, right)).split()) for n in range(600))
        for right in (True, False)
    ]
    assert lengths[0].keys() == lengths[1].keys()
    assert all(abs(lengths[0][length] - lengths[1][length]) / 600 < LUCK for length in lengths[0])
    drawn = Counter(len(judging.written(STORIES[0], True, keyed(n, 1)).split()) for n in range(600))
    assert sorted(round(count / 600, 1) for count in drawn.values()) == sorted(rows.STYLES.values())


def test_the_curriculum_begins_without_films(learned: list[dict[str, Any]]) -> None:
    by_step: dict[int, list[dict[str, Any]]] = {step: [] for step in range(STEPS)}
    for row in learned:
        by_step[row["batch"]].append(row)
    assert {len(own) for own in by_step.values()} == {judging.BATCH}
    assert [row["batch"] for row in learned] == sorted(row["batch"] for row in learned)
    early = [row for step in range(int(judging.ALONE * STEPS)) for row in by_step[step]]
    later = learned[len(early) :]
    assert all(film_of(row) is None and " story " in text_of(row) for row in early)
    seen = [row for row in later if film_of(row)]
    assert abs(1 - len(seen) / len(later) - judging.ALONE_LATER) < LUCK
    assert all(" story " in text_of(row) for row in later if not film_of(row))
    assert abs(np.mean([" story " not in text_of(row) for row in seen]) - judging.UNTOLD) < 2 * LUCK


def test_no_film_is_judged_that_anything_is_measured_on(folder: Path, learned: list[dict[str, Any]]) -> None:
    films = {film_of(row) for row in learned} - {None}
    assert films == {f"../films/sft-{n}.mp4" for n in range(COUNTS["sft"])}
    others = [story for split in SPLITS[1:] for story in scenes(SEED, split, 40)]
    told = {re.sub(".* story ", "", text_of(row)) for row in learned if not film_of(row)}
    assert len(told) > 100
    assert not told & {f"{judging.narrative(story)} {rows.asked(story)}" for story in others}


def test_the_gate_asks_held_out_pairs_of_which_one_is_right(folder: Path) -> None:
    questions = read_questions(folder / "judge_gate.jsonl")
    told = scenes(SEED, "gate", COUNTS["gate"])
    assert [Path(question.video or "").name for question in questions] == [f"gate-{n}.mp4" for n in range(len(told))]
    for question, story in zip(questions, told, strict=True):
        right = [
            accuracy(text, question_of(story)) == 1.0 for text in re.findall(r"<think>.*?</answer>", question.text)
        ]
        assert sorted(right) == [False, True]
        assert question.answer == ("A" if right[0] else "B")
        assert f"story {judging.narrative(story)} " in question.text
        assert accuracy(f"<think> so </think> <answer> {question.answer} </answer>", question) == 1.0
        assert accuracy("<think> so </think> <answer> tie </answer>", question) == 0.0
    assert all(len(row["messages"]) == 1 for row in read_jsonl(folder / "judge_gate.jsonl"))
    assert {question.answer for question in questions} == {"A", "B"}


def test_the_same_seed_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    make_judge_rows(tmp_path, SEED, COUNTS, STEPS)
    for file in folder.iterdir():
        assert (tmp_path / "rows" / file.name).read_bytes() == file.read_bytes()
