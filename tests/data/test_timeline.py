"""Rates, times and jumps from packet stamps alone."""

from fractions import Fraction

import numpy as np
import pytest

from longtake.data.timeline import SAVES, Stamp, Timeline, stretches, timeline

MS = Fraction(1, 1000)


def stamps(times: list[int], keys: tuple[int, ...] = (0,), length: int = 0) -> list[Stamp | None]:
    return [Stamp(t, i in keys, length) for i, t in enumerate(times)]


def test_times_rounded_by_the_container_are_a_constant_rate() -> None:
    line = timeline(stamps([round(i * 1000 / 30) for i in range(90)]), MS, Fraction(30))
    assert (line.fps, line.duration, line.steady) == (30.0, 3.0, True)


def test_a_wrong_stated_rate_gives_way_to_the_measured_one() -> None:
    line = timeline(stamps([40 * i for i in range(50)]), MS, Fraction(1000))
    assert (line.fps, line.duration, line.steady) == (25.0, 2.0, True)


def test_variable_rate_keeps_its_times_and_its_last_frame() -> None:
    line = timeline([Stamp(500, True, 100), Stamp(700, False, 100), Stamp(3500, False, 1000)], MS, Fraction(25))
    assert line.seconds_N.tolist() == [0.0, 0.2, 3.0]
    assert (line.steady, line.duration, line.fps) == (False, 4.0, 0.75)


def test_order_of_packets_does_not_matter() -> None:
    given = [Stamp(0, True, 40), Stamp(120, False, 40), Stamp(40, False, 40), Stamp(80, True, 40)]
    line = timeline(given, MS, Fraction(25))
    assert line.pts_N is not None
    assert line.pts_N.tolist() == [0, 40, 80, 120]
    assert line.key_N.tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("length", "stated", "fps"), [(2000, Fraction(25), 0.5), (0, Fraction(25), 25.0), (0, None, 1.0)]
)
def test_a_film_of_one_frame(length: int, stated: Fraction | None, fps: float) -> None:
    line = timeline([Stamp(7, True, length)], MS, stated)
    assert (line.seconds_N.tolist(), line.fps, line.duration) == ([0.0], fps, 1 / fps)


@pytest.mark.parametrize("unusable", [[None, None, None], [Stamp(0, True, 1), Stamp(0, False, 1), Stamp(1, False, 1)]])
def test_frames_without_times_are_counted(unusable: list[Stamp | None]) -> None:
    line = timeline(unusable, MS, Fraction(2))
    assert line.pts_N is None
    assert line.seconds_N.tolist() == [0.0, 0.5, 1.0]
    assert stretches(line, [2], jumping=True) == [(0, [2])]
    with pytest.raises(ValueError, match="neither times nor a frame rate"):
        timeline(unusable, MS, None)


def test_stretches_jump_only_where_it_saves_decoding() -> None:
    key_N = np.zeros(1000, bool)
    key_N[::50] = True
    line = Timeline(np.arange(1000), key_N, np.arange(1000) / 25, True, 25.0, 40.0)
    assert stretches(line, [3, 60, 149, 151, 990], jumping=True) == [
        (0, [3]),
        (50, [60]),
        (100, [149, 151]),  # 150 is a key frame too, but one frame on
        (950, [990]),
    ]
    assert stretches(line, [100 - SAVES, 100], jumping=True) == [(50, [100 - SAVES, 100])]
    assert stretches(line, [99 - SAVES, 100], jumping=True) == [(50, [99 - SAVES]), (100, [100])]
    assert stretches(line, [3, 990], jumping=False) == [(0, [3, 990])]
