"""What can be seen from so many frames: the ceilings that the demo's results are held against."""

from __future__ import annotations

import pytest

from longtake.records import FramePolicy
from longtake.sim.make import scenes
from longtake.sim.observer import answer, ceiling, looked_at, seen
from longtake.sim.scenes import FPS, SECONDS, Scene

CEILINGS = {8: 0.395, 16: 0.615, 32: 0.9125, 64: 1.0}  # measured on these 4,000 stories
ELSEWHERE = 0.03  # other stories, at most
STORIES = scenes(0, "rl", 4000)


def story(**changed: object) -> Scene:
    given = {
        "kind": "spatial",
        "events": ("left", "swap-lm", *["none"] * (SECONDS - 3), "swap-mr"),
        "question": "where is the ball at the end ?",
        "options": ("left", "middle", "right"),
        "truth": "right",
        "conclusions": ("left", *["middle"] * (SECONDS - 2), "right"),
        "visible": 2,
        "first": (0, 5, *[0] * (SECONDS - 2)),
        "look": 1,
    }
    return Scene(**(given | changed))  # type: ignore[arg-type]


def test_the_ceilings() -> None:
    assert {frames: ceiling(STORIES, frames) for frames in CEILINGS} == CEILINGS


def test_they_hold_for_other_stories() -> None:
    for split, seed in (("test", 0), ("sft", 7)):
        other = scenes(seed, split, 2000)
        found = [ceiling(other, frames) for frames in CEILINGS]
        assert found == pytest.approx(list(CEILINGS.values()), abs=ELSEWHERE)


@pytest.mark.parametrize("kind", ["spatial", "temporal", "goal", "plot"])
def test_they_rise_with_the_frames_for_every_kind(kind: str) -> None:
    stories = [one for one in STORIES if one.kind == kind]
    found = [ceiling(stories, frames) for frames in (4, *CEILINGS, FPS * SECONDS)]
    assert found[:5] == sorted(set(found))
    assert found[-1] == 1.0


def test_an_event_is_seen_when_a_frame_falls_into_it() -> None:
    told = story()  # frames 21 and 22 show the first swap, 112 and 113 the second
    by_times = {21: ("swap-lm", "none"), 22: ("swap-lm", "none"), 20: ("none",) * 2, 113: ("none", "swap-mr")}
    for frame, events in by_times.items():
        found = seen(told, FramePolicy(seconds=(8 / FPS, frame / FPS)))
        assert (found[1], found[-1]) == events
        assert found[0] == "left"


def test_what_is_missed_did_not_happen() -> None:
    told = story()
    look = {frame: FramePolicy(seconds=tuple(tick / FPS for tick in (8, *frame))) for frame in ((), (21,), (21, 112))}
    assert [answer(told, policy) for policy in look.values()] == ["left", "middle", "right"]
    assert answer(told, FramePolicy(seconds=(0.0, 21 / FPS, 7.0))) == ""  # nobody showed where the ball was


def test_frames_are_the_centres_of_equal_bins() -> None:
    assert sorted(looked_at(FramePolicy(frames=8))) == list(range(8, 128, 16))
    assert looked_at(FramePolicy(frames=128)) == set(range(128))
