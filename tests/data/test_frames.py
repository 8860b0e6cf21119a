"""Which frames a policy means, against the rule read out loud in exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tests.plain.frames import centres, shown

from longtake.data.frames import choose
from longtake.errors import UserError
from longtake.records import Film, FramePolicy

RATES = st.sampled_from(
    [Fraction(16), Fraction(25), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(1), Fraction(240)]
)


def film(frames: int, fps: Fraction | float) -> Film:
    return Film("a.mp4", "9f", frames, float(fps), float(frames / fps), 64, 64, "h264")


@given(st.integers(1, 200_000), st.integers(1, 2000), RATES)
def test_uniform_is_the_closed_formula(frames: int, count: int, fps: Fraction) -> None:
    chosen = choose(film(frames, fps), FramePolicy(frames=count))
    if count >= frames:
        assert chosen.indices == tuple(range(frames))
        assert bool(chosen.cut) == (count > frames)
    else:
        assert chosen.indices == tuple((2 * k + 1) * frames // (2 * count) for k in range(count))
        assert chosen.cut == ""


@given(st.integers(1, 300), st.integers(1, 80), RATES, st.integers(0, 1200), st.integers(1, 1200))
def test_windows_against_the_plain_rule(frames: int, count: int, fps: Fraction, start: int, length: int) -> None:
    seconds = Fraction(frames) / fps
    begin = seconds * start / 1201  # windows anywhere inside the film, on and between frames
    end = min(begin + seconds * length / 1200, seconds)
    times = [i / fps for i in range(frames)]
    near = Fraction(1, 10**5) / fps  # at a border the code has its grace of rounding, the plain rule none
    assume(all(t == border or abs(t - border) > near for t in times for border in (begin, end)))
    chosen = choose(film(frames, fps), FramePolicy(frames=count, start=float(begin), end=float(end)))
    inside = [i for i, t in enumerate(times) if float(begin) - 1e-9 <= t < float(end) - 1e-9]
    if len(inside) <= count and inside:
        assert list(chosen.indices) == inside
    else:
        wanted = count if inside else 1
        exact = centres(Fraction(float(begin)), Fraction(float(end)), wanted)
        assert list(chosen.indices) == [shown(times, t + Fraction(1, 10**6) / fps) for t in exact]
    assert len(set(chosen.indices)) == len(chosen.indices), "no frame twice at a constant rate"
    assert len(chosen.indices) <= count
    assert (len(chosen.indices) < count) == bool(chosen.cut)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 40), st.integers(0, 2**31))
def test_variable_rate_takes_the_frame_on_the_screen(gaps: list[int], count: int, seed: int) -> None:
    ticks = np.cumsum([0, *gaps])
    times, length = [Fraction(int(t), 1000) for t in ticks[:-1]], Fraction(int(ticks[-1]), 1000)
    vfr = film(len(times), len(times) / length)
    chosen = choose(vfr, FramePolicy(frames=count), ticks[:-1] / 1000)
    if count >= len(times):
        assert chosen.indices == tuple(range(len(times)))
    else:
        grace = Fraction(1, 10**6) / Fraction(vfr.fps)
        assert list(chosen.indices) == [shown(times, t + grace) for t in centres(Fraction(0), length, count)]
    wanted = sorted(np.random.default_rng(seed).uniform(0, float(length), 5))
    explicit = choose(vfr, FramePolicy(seconds=tuple(wanted)), ticks[:-1] / 1000)
    assert list(explicit.indices) == [shown(times, Fraction(t) + Fraction(1, 10**9)) for t in wanted]


@given(st.integers(1, 500), st.integers(1, 100), RATES)
def test_times_of_a_constant_rate_change_nothing(frames: int, count: int, fps: Fraction) -> None:
    times_N = np.arange(frames) / float(fps)
    policy = FramePolicy(frames=count)
    assert choose(film(frames, fps), policy, times_N).indices == choose(film(frames, fps), policy).indices


def test_frames_a_second() -> None:
    assert choose(film(128, 16), FramePolicy(fps=1.0)).indices == (8, 24, 40, 56, 72, 88, 104, 120)
    assert len(choose(film(128, 16), FramePolicy(fps=0.05)).indices) == 1  # never none
    capped = choose(film(128, 16), FramePolicy(fps=16.0, max_frames=64))
    assert capped.indices == tuple(range(1, 128, 2))
    assert capped.cut == "capped at 64 of 128 frames asked for"
    assert choose(film(128, 16), FramePolicy(fps=30.0)).cut == "all 128 frames taken where 240 were asked for"
    assert choose(film(128, 16), FramePolicy(fps=16.0)).cut == ""


def test_rounding_of_a_window_loses_no_frame() -> None:
    assert len(choose(film(300, Fraction(30)), FramePolicy(fps=10.0, start=0.1, end=0.4)).indices) == 3


def test_explicit_seconds_are_put_in_order() -> None:
    chosen = choose(film(128, 16), FramePolicy(seconds=(3.0, 0.5, 8.0)))
    assert (chosen.indices, chosen.seconds) == ((8, 48, 127), (0.5, 3.0, 8.0))  # 8.0 is the end: its last frame


def test_what_a_window_cuts_is_said() -> None:
    assert (
        choose(film(128, 16), FramePolicy(frames=2, end=20.0)).cut
        == "window ends with the film at 8.000 s, not at 20 s"
    )
    assert choose(film(128, 16), FramePolicy(frames=2, end=8.02)).cut == ""
    sliver = choose(film(128, 16), FramePolicy(frames=4, start=1.01, end=1.02))
    assert sliver.indices == (16,)
    assert "shorter than a frame" in sliver.cut


@pytest.mark.parametrize(
    "policy",
    [
        FramePolicy(),
        FramePolicy(frames=8, fps=1.0),
        FramePolicy(frames=0),
        FramePolicy(fps=-1.0),
        FramePolicy(fps=float("nan")),
        FramePolicy(frames=8, max_frames=0),
        FramePolicy(frames=8, max_pixels=0),
        FramePolicy(seconds=()),
        FramePolicy(seconds=(1.0,), start=0.5),
        FramePolicy(seconds=(1.0,), max_frames=1),
        FramePolicy(seconds=(9.0,)),
        FramePolicy(seconds=(-0.1,)),
        FramePolicy(seconds=(float("nan"),)),
        FramePolicy(frames=8, start=-1.0),
        FramePolicy(frames=8, start=float("nan")),
        FramePolicy(frames=8, start=8.0),
        FramePolicy(frames=8, start=3.0, end=3.0),
        FramePolicy(frames=8, end=float("nan")),
    ],
)
def test_policies_that_mean_nothing_are_refused(policy: FramePolicy) -> None:
    with pytest.raises(UserError) as error:
        choose(film(128, 16), policy)
    assert len(str(error.value).splitlines()) <= 6
