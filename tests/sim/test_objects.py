"""Extra rows on single events and objects: exact, spelled, on the films that SFT learns from."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from tests.plain import story as plain

from longtake.data.rows import read_examples
from longtake.sim import objects, tiny
from longtake.sim.make import make_object_rows, scenes
from longtake.sim.scenes import KINDS, Scene

SEED = 5
COUNTS = {"sft": 40}
STORIES = scenes(SEED, "sft", 200)
WORDS = tiny.tokenizer()


def answered(story: Scene, question: str) -> str:
    """The answer, found another way."""
    second = re.search(r"in s(\d)", question)
    so_far = story.events[: int(second[1]) + 1] if second else story.events
    if question.startswith("what"):
        return so_far[-1]
    if question.startswith("where"):
        return str(plain.cups(so_far))
    if question.startswith("how"):
        return str(sum(event == question.split()[2] for event in so_far))
    if question.startswith("was"):
        return "no" if question.split()[5] in plain.rooms(so_far) else "yes"
    giver, thing = re.split(r">\w+:", so_far[-1])
    assert question.split()[3] == thing
    return giver


@pytest.mark.parametrize("kind", KINDS)
def test_every_question_is_answered_right(kind: str) -> None:
    starts = Counter[str]()
    for story in STORIES:
        if story.kind == kind:
            asked = list(objects.questions(story))
            assert len(dict(asked)) == len(asked)
            for question, answer in asked:
                assert answer == answered(story, question)
                starts[question.split()[0]] += 1
    about = {"spatial": "where", "temporal": "how", "goal": "was", "plot": "who"}[kind]
    assert starts.keys() == {"what", about}


def test_a_film_is_asked_about_an_event_and_an_object(tmp_path: Path) -> None:
    make_object_rows(tmp_path, SEED, COUNTS)
    examples = read_examples(tmp_path / "rows" / "objects.jsonl")
    assert len(examples) == objects.EACH * COUNTS["sft"]
    for number, example in enumerate(examples):
        question = example.question
        story = STORIES[number // objects.EACH]
        assert Path(question.video or "").name == f"sft-{number // objects.EACH}.mp4"
        assert question.text.startswith("what") == (number % objects.EACH == 0)
        ((span,),) = example.targets
        assert span.text == answered(story, question.text)
        for text in (question.text, span.text):
            found = WORDS(text, add_special_tokens=False)["input_ids"]
            assert WORDS.unk_token_id not in found
            assert WORDS.decode(found) == text
    assert len({example.question.text for example in examples}) > COUNTS["sft"] / 2


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_object_rows(tmp_path / name, SEED, COUNTS)
    one, two = (tmp_path / name / "rows" / "objects.jsonl" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
