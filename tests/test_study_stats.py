"""The study's intervals: seeds as blocks, pairs of one question as clusters, slopes over frames."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev

import pytest
from bench import study_measure, study_stats, study_table
from bench.study_stats import clustered, pooled, slope
from tests import study_world

from longtake.maths.stats import Estimate, mean


def test_blocks_are_averaged_and_their_widths_added_as_squares() -> None:
    found = pooled([Estimate(0.1, 0.0, 0.3, 100), Estimate(0.4, 0.3, 0.5, 300)])
    assert found.value == pytest.approx(0.25 * 0.1 + 0.75 * 0.4)
    half = math.hypot(0.25 * 0.15, 0.75 * 0.1)
    assert (found.low, found.high) == (pytest.approx(0.3375 - half), pytest.approx(0.3375 + half))
    assert found.n == 400
    one = Estimate(0.1, 0.0, 0.3, 100)
    assert pooled([one]) == Estimate(0.1, 0.0, pytest.approx(0.3), 100)


def test_clusters_of_one_are_a_plain_mean_and_copies_add_no_certainty() -> None:
    draw = random.Random(0)
    values = [draw.gauss(0.2, 1) for _ in range(50)]
    alone = clustered({str(n): [x] for n, x in enumerate(values)})
    plain = mean(values)
    assert (alone.value, alone.low) == (pytest.approx(plain.value), pytest.approx(plain.low))
    assert alone.high - alone.low == pytest.approx(2 * study_stats.Z * stdev(values) / math.sqrt(50))
    copied = clustered({str(n): [x] * 3 for n, x in enumerate(values)})
    assert (copied.low, copied.high, copied.n) == (pytest.approx(alone.low), pytest.approx(alone.high), 150)
    uneven: Mapping[str, list[float]] = {"a": [1.0, 0.0, 1.0], "b": [0.0], "c": []}
    middle = 0.5
    spread = ((2.0 - 3 * middle) ** 2 + (0.0 - middle) ** 2) * 2 / 1
    assert clustered(uneven).high - middle == pytest.approx(study_stats.Z * math.sqrt(spread) / 4)
    with pytest.raises(ValueError, match="at least 2"):
        clustered({"a": [1.0, 2.0]})


def test_a_slope_is_per_doubling() -> None:
    assert slope([0.3, 0.4, 0.5, 0.6]) == pytest.approx(0.1)
    assert slope([0.0, 0.0, 1.0, 1.0]) == pytest.approx(0.4)
    each = [[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.0, 1.0, 1.0, 1.0]]
    assert fmean(map(slope, each)) == pytest.approx(slope([fmean(column) for column in zip(*each, strict=True)]))


def test_slopes_are_of_the_arm_against_the_other(tmp_path: Path) -> None:
    for number, frames in enumerate((8, 16, 32, 64)):
        study_world.evaluated(tmp_path / "flat", frames, 4)
        study_world.evaluated(tmp_path / "rising", frames, 1 + 2 * number)
    folders = {name: tmp_path / name for name in ("flat", "rising")}
    sampled, greedy = study_measure.slopes("rising", "flat", folders)
    assert (sampled.estimate.value, greedy.estimate.value) == (pytest.approx(0.25), pytest.approx(0.25))
    assert study_measure.by_frames(folders["rising"])["sampled_slope"] == pytest.approx(0.25)


def test_floats_are_short_in_the_file() -> None:
    assert study_table.rounded({"a": [0.123456789, 1, "x"], "b": {"c": 2 / 3}}) == {
        "a": [0.123457, 1, "x"],
        "b": {"c": 0.666667},
    }
