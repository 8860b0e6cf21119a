"""The stories: true answers by a plain twin, no guess better than another, evidence that is what the pictures show."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from tests.plain import story as plain
from tests.world import write

from longtake.eval import blind
from longtake.sim.make import scenes
from longtake.sim.render import pictures
from longtake.sim.rows import question_row
from longtake.sim.scenes import COLOURS, FPS, KINDS, LETTERS, SECONDS, Scene, keyed, scene

COUNT = 2000
LUCK = 0.03  # above chance, at most
SPREADS = 5  # standard deviations of a chi-square
STORIES = scenes(0, "test", COUNT * len(KINDS))


def of_kind(kind: str) -> list[Scene]:
    return [story for story in STORIES if story.kind == kind]


def uniform(found: Iterable[object], choices: int) -> bool:
    """Whether the chi-square against a uniform distribution over `choices` is no surprise."""
    counts = Counter(found)
    expected = sum(counts.values()) / choices
    chi = sum((n - expected) ** 2 / expected for n in counts.values()) + expected * (choices - len(counts))
    return chi < choices - 1 + SPREADS * sqrt(2 * (choices - 1))


def test_the_check_of_uniformity_can_fail() -> None:
    rng = np.random.default_rng(0)
    assert uniform(rng.integers(0, 4, COUNT), 4)
    assert not uniform(rng.choice(4, COUNT, p=(0.31, 0.23, 0.23, 0.23)), 4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_truth_is_what_happened(kind: str) -> None:
    for story in of_kind(kind):
        assert story.truth == plain.answer(kind, story.question, story.events)
        assert story.truth in story.options
        assert LETTERS.index(story.letter) == story.options.index(story.truth)
        assert len(story.events) == len(story.conclusions) == SECONDS


def test_the_conclusion_after_every_second_is_the_answer_so_far() -> None:
    for kind in ("spatial", "plot"):
        for story in of_kind(kind)[:200]:
            far = [story.events[: second + 1] for second in range(SECONDS)]
            assert story.conclusions == tuple(plain.answer(kind, story.question, events) for events in far)


def test_flashes_are_counted_until_the_one_that_was_asked_for() -> None:
    for story in of_kind("temporal")[:200]:
        for second, said in enumerate(story.conclusions):
            flashed = [event for event in story.events[1 : second + 1] if event != "none"]
            asked = story.question.split()[4] if "number" in story.question else ""
            known = asked and len(flashed) >= int(asked)
            assert said == (story.truth if known else str(len(flashed)))


def test_rooms_are_new_or_old() -> None:
    for story in of_kind("goal")[:200]:
        for second in range(1, SECONDS):
            event, before = story.events[second], story.events[1:second]
            assert story.conclusions[second] == ("same" if event == "none" else "old" if event in before else "new")


@pytest.mark.parametrize("kind", KINDS)
def test_no_letter_and_no_option_is_a_better_guess(kind: str) -> None:
    stories = of_kind(kind)
    options = len(stories[0].options)
    guesses: list[Callable[[Scene], str]] = [lambda s: s.letter]
    if kind in ("spatial", "goal"):
        guesses.append(lambda s: s.truth)
    for guess in guesses:
        counts = Counter(map(guess, stories))
        assert len(counts) == options
        assert max(counts.values()) / len(stories) < 1 / options + LUCK
        assert uniform(map(guess, stories), options)


def test_options_come_in_any_order() -> None:
    for kind, orders in (("spatial", 6), ("goal", 24)):
        assert uniform((story.options for story in of_kind(kind)), orders)


def test_no_answer_is_a_better_guess_for_a_question() -> None:
    by_question: dict[str, list[Scene]] = {}
    for story in STORIES:
        by_question.setdefault(story.question, []).append(story)
    assert len(by_question) == 1 + (1 + SECONDS - 1) + 1 + 6
    for stories in by_question.values():
        assert uniform((story.truth for story in stories), len(stories[0].options))


def test_the_wording_gives_nothing_away(tmp_path: Path) -> None:
    """What `eval --blind` finds: the majority letter, the longest option, a model of surfaces."""
    asked = [question_row(f"q{n}", "a.mp4", story) for n, story in enumerate(STORIES[:COUNT])]
    found = blind.report(write(tmp_path / "rows.jsonl", asked))["clean"]
    assert found["n"] == COUNT
    for guesser in ("majority", "longest", "surface"):
        assert found[guesser]["accuracy"] < found["chance"] + LUCK, guesser


@pytest.mark.parametrize("kind", KINDS)
def test_evidence_is_where_the_pictures_change(kind: str) -> None:
    """Without its event a second shows other pictures in the frames of its evidence, and in no other."""
    for story in of_kind(kind)[:6]:
        film = pictures(story)
        spans = list(story.evidence)
        for second in range(1, SECONDS):
            if story.events[second] == "none":
                continue
            dull = replace(story, events=(*story.events[:second], "none", *story.events[second + 1 :]))
            changed = np.flatnonzero((pictures(dull) != film).any((1, 2, 3)))
            start, stop = spans.pop(0)
            assert changed.tolist() == [tick for tick in range(len(film)) if start <= tick / FPS < stop]
        assert not spans


def test_hops_are_the_events_that_the_answer_rests_on() -> None:
    for story in STORIES[:400]:
        happened = sum(event != "none" for event in story.events[1:])
        if story.kind == "temporal" and story.truth in COLOURS:
            assert 1 <= story.hops <= happened
            kept = tuple(e if n <= _second_of(story, story.hops) else "none" for n, e in enumerate(story.events))
            assert plain.flashes(kept, story.question) == story.truth
        else:
            assert story.hops == happened


def _second_of(story: Scene, number: int) -> int:
    """The second of the flash with that number."""
    return [n for n, event in enumerate(story.events) if n and event != "none"][number - 1]


def test_one_seed_one_story() -> None:
    assert scene("plot", keyed(1, 2, 3)) == scene("plot", keyed(1, 2, 3))
    assert len({scene("plot", keyed(1, 2, n)).look for n in range(50)}) == 50
    assert scenes(0, "rl", 8) == scenes(0, "rl", 12)[:8]
    assert not {story.look for story in scenes(0, "rl", 400)} & {story.look for story in scenes(0, "test", 400)}
