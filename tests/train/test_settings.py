"""Which frames a question is looked at with, and how fast is learned when."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace

import pytest
from pydantic import ValidationError

from longtake.records import FramePolicy, Question
from longtake.train.context_settings import Context
from longtake.train.keys import keyed
from longtake.train.settings import Optim, Video, merged

PLAIN = Question("q", "a.mp4", "what ?")


def asked(**policy: object) -> Question:
    return Question("q", "a.mp4", "what ?", policy=FramePolicy(**policy))  # type: ignore[arg-type]


def test_a_question_takes_the_runs_frames() -> None:
    video = Video(frames=(16, 8, 16), max_pixels=1024)
    assert video.policies() == (FramePolicy(frames=8, max_pixels=1024), FramePolicy(frames=16, max_pixels=1024))
    assert [video.policy(PLAIN, draw).frames for draw in range(6)] == [16, 8, 16] * 2


def test_frames_are_drawn_in_the_shares_they_were_written_in() -> None:
    video = Video(frames=(8, 16, 64, 64))
    drawn = Counter(video.policy(PLAIN, keyed("frames", n)).frames for n in range(4000))
    assert {frames: count / 4000 for frames, count in drawn.items()} == pytest.approx(
        {8: 0.25, 16: 0.25, 64: 0.5}, abs=0.03
    )


def test_all_that_may_be_drawn_is_known_before() -> None:
    for video in (Video(frames=(8, 16, 64, 64)), Video(fps=2.0, max_frames=5), Video(frames=(4,), max_pixels=99)):
        for question in (PLAIN, asked(start=1.0, end=3.0), asked(frames=3), asked(seconds=(1.0,), max_pixels=7)):
            every = video.policies(question)
            assert {video.policy(question, keyed(n)) for n in range(40)} == set(every)
            assert len(every) == len(set(every))


@pytest.mark.parametrize(
    ("own", "frames", "want"),
    [
        (None, 8, FramePolicy(frames=8, max_pixels=50)),
        (FramePolicy(frames=3), 8, FramePolicy(frames=3, max_pixels=50)),
        (FramePolicy(fps=2.0, max_frames=9, max_pixels=7), 8, FramePolicy(fps=2.0, max_frames=9, max_pixels=7)),
        (FramePolicy(seconds=(1.0, 2.0)), 8, FramePolicy(seconds=(1.0, 2.0), max_pixels=50)),
        (FramePolicy(start=1.0, end=4.0), 8, FramePolicy(frames=8, start=1.0, end=4.0, max_pixels=50)),
        (FramePolicy(max_pixels=7), 8, FramePolicy(frames=8, max_pixels=7)),
    ],
)
def test_a_rows_own_policy_goes_first(own: FramePolicy | None, frames: int, want: FramePolicy) -> None:
    assert merged(own, FramePolicy(frames=frames, max_pixels=50), 768) == want


def test_the_runs_window_and_cap_hold_where_a_row_has_none() -> None:
    video = Video(frames=(8,), start=2.0, end=6.0, max_frames=20)
    wants = {
        None: FramePolicy(frames=8, start=2.0, end=6.0),
        FramePolicy(frames=3): FramePolicy(frames=3, start=2.0, end=6.0),
        FramePolicy(fps=2.0): FramePolicy(fps=2.0, max_frames=20, start=2.0, end=6.0),
        FramePolicy(fps=2.0, max_frames=30): FramePolicy(fps=2.0, max_frames=30, start=2.0, end=6.0),
        FramePolicy(max_frames=5): FramePolicy(frames=5, start=2.0, end=6.0),
        FramePolicy(end=3.0): FramePolicy(frames=8, end=3.0),
        FramePolicy(seconds=(1.0,)): FramePolicy(seconds=(1.0,)),
    }
    for own, want in wants.items():
        assert video.policies(replace(PLAIN, policy=own)) == (want,)


def test_times_instead_of_frames() -> None:
    video = Video(seconds=(1.0, 2.5), max_pixels=9)
    assert video.policy(PLAIN, 17) == FramePolicy(seconds=(1.0, 2.5), max_pixels=9)
    assert video.policy(asked(frames=3), 17) == FramePolicy(frames=3, max_pixels=9)


def test_frames_a_second_instead_of_frames() -> None:
    video = Video(fps=2.0, max_frames=5)
    assert video.policy(PLAIN, 17) == FramePolicy(fps=2.0, max_frames=5)
    assert video.policy(asked(frames=3), 17) == FramePolicy(frames=3)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"fps": 1.0, "frames": (8,)}, "exclude each other"),
        ({"frames": ()}, "from 1 on"),
        ({"frames": (8, 0)}, "from 1 on"),
        ({"fps": 1.0, "seconds": (1.0,)}, "exclude each other"),
        ({"seconds": (1.0,), "start": 1.0}, "leave start and end out"),
    ],
)
def test_settings_that_contradict_each_other(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Video(**wrong)  # type: ignore[arg-type]


def rates(steps: int = 100, **settings: object) -> list[float]:
    optim = Optim(lr=2.0, **settings)  # type: ignore[arg-type]
    return [optim.rate(step, steps) for step in range(steps)]


def test_warm_up_is_a_line_and_then_the_peak() -> None:
    assert rates(6, warmup=4) == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0, 2.0])
    assert rates(3, warmup=0) == [2.0] * 3


def test_a_line_falls_to_the_floor() -> None:
    found = rates(schedule="linear", floor=0.25, warmup=0)
    steps = [after - before for before, after in itertools.pairwise(found)]
    assert found[0] == 2.0
    assert steps == pytest.approx([-1.5 / 100] * 99)
    assert Optim(lr=2.0, schedule="linear", floor=0.25, warmup=0).rate(100, 100) == pytest.approx(0.5)


def test_a_cosine_falls_slowly_fast_and_slowly() -> None:
    found = rates(schedule="cosine", floor=0.1, warmup=0)
    assert found[0] == 2.0
    assert found[50] == pytest.approx(1.1)
    assert found[25] + found[75] == pytest.approx(2.2)
    assert found[99] == pytest.approx(0.2, rel=0.01)
    falls = [before - after for before, after in itertools.pairwise(found)]
    assert falls.index(max(falls)) in (49, 50)
    assert min(falls) >= 0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_peak_is_held(schedule: str) -> None:
    found = rates(schedule=schedule, hold=0.6, floor=0.0, warmup=5)
    assert found[4:61] == [2.0] * 57
    assert found[61] < 2.0
    fall = rates(40, schedule=schedule, floor=0.0, warmup=0)
    assert found[60:] == pytest.approx(fall, abs=1e-9)


def test_a_constant_schedule_has_no_floor() -> None:
    with pytest.raises(ValidationError, match="no effect"):
        Optim(floor=0.5)


@pytest.mark.parametrize(
    ("given", "said"),
    [({"reduce": "pol:2"}, "no .pol."), ({"reduce": ""}, "no reduction"), ({"rope": "liner:2"}, "did you mean")],
)
def test_specs_are_read_before_a_model_is(given: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Context(**given)
