"""The numbers on the page: comparisons, the split of a gain, the sentences made from them, charts and cards."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.maths.stats import Estimate
from longtake.records import Receipt
from longtake.report import cards, charts, film, words
from longtake.report.against import Against, Headline
from longtake.report.compare import Change, Flips, Gain, by, change, flips, gain, turned
from longtake.report.files import Difficulty, Outcome, Rollout, Sample
from longtake.report.head import source
from longtake.report.read import Problems, read_folder
from longtake.report.results import BlindRow, Results, _verdict, results
from longtake.report.strips import Strip, shown_frames
from longtake.report.training import pass_rates, time, times

EXACT = 1e-12


def outcome(name: int, correct: bool, tokens: int = 9, kind: str = "plot") -> Outcome:
    return Outcome(f"q{name}", correct, kind, 3, tokens, "text")


def table(marks: str) -> list[Outcome]:
    """ "101" → three outcomes."""
    return [outcome(i, mark == "1") for i, mark in enumerate(marks)]


def test_change_is_paired_by_question() -> None:
    before, after = table("110010"), table("111011")
    row = change("all", before, list(reversed(after)))
    assert row.before is not None
    assert (row.n, row.before.value, row.after.value) == (6, 3 / 6, 5 / 6)
    assert row.delta is not None
    assert abs(row.delta.value - 2 / 6) < EXACT
    assert flips(before, after) == Flips(both=3, fixed=2, broken=0, neither=1)
    assert change("all", before, [outcome(99, True)]).delta is None
    assert [t.after.id for t in turned(before, after, 9)] == ["q2", "q5"]
    assert [t.after.id for t in turned([], after, 9)] == ["q3"]


def test_rows_are_sorted_with_numbers_as_numbers() -> None:
    rows = by(lambda row: row.kind, [], [outcome(i, True, kind=k) for i, k in enumerate(("10", "9", "b", "a", ""))])
    assert [row.label for row in rows] == ["9", "10", "a", "b"]


@given(st.integers(0, 10_000))
def test_the_two_parts_of_a_gain_add_up(seed: int) -> None:
    rng = random.Random(seed)
    before, after = ([outcome(i, rng.random() < 0.5, rng.choice([5, 15, 29])) for i in range(40)] for _ in range(2))
    found = gain(before, after)
    whole = (sum(row.correct for row in after) - sum(row.correct for row in before)) / 40
    assert found is not None
    assert abs(found.longer + found.same - whole) < EXACT


def test_a_gain_from_longer_chains_alone() -> None:
    """Short chains are always wrong, long ones right, before and after: only their share changes."""
    before = [outcome(i, i < 4, 29 if i < 4 else 7) for i in range(10)]
    after = [outcome(i, i < 9, 29 if i < 9 else 7) for i in range(10)]
    assert gain(before, after) == Gain(pytest.approx(0.5), pytest.approx(0.0))
    assert gain(after[:3], after) is None, "one length only: nothing to split by"


def results_of(sampled: tuple[float, float], greedy: tuple[float, float], split: Gain | None = None) -> Results:
    def row(name: str, pair: tuple[float, float]) -> Change:
        was, now, delta = pair[0], pair[1], pair[1] - pair[0]
        wide = Estimate(delta, delta - 0.03, delta + 0.03, 600)
        return Change(name, 600, Estimate(was, was, was, 600), Estimate(now, now, now, 600), wide)

    line = Headline(64, 600, row("sampled", sampled), row("greedy", greedy), (19.0, 29.0), (1.0, 1.0))
    return Results("sft", Against("grpo", "after", line, gain=split))


@pytest.mark.parametrize(
    ("sampled", "greedy", "said"),
    [
        ((0.52, 0.86), (0.84, 0.87), "only +3 of +34 points: mostly sharpening, little new skill"),
        ((0.52, 0.72), (0.60, 0.70), "+10 of +20 points: part new skill, part sharpening"),
        ((0.52, 0.72), (0.60, 0.79), "+19 of +20 points: mostly new skill"),
        ((0.52, 0.72), (0.80, 0.70), "paid for by a fall in greedy accuracy"),
        ((0.52, 0.53), (0.60, 0.60), "no clear change"),
        ((0.52, 0.42), (0.60, 0.60), "got worse when sampled"),
    ],
)
def test_where_the_gain_comes_from(sampled: tuple[float, float], greedy: tuple[float, float], said: str) -> None:
    assert said in source(results_of(sampled, greedy))


def test_longer_chains_are_named_only_where_they_gave_something() -> None:
    assert "+25 points come from writing longer chains" in source(results_of((0.5, 0.8), (0.8, 0.8), Gain(0.25, 0.05)))
    assert "chains" not in source(results_of((0.5, 0.8), (0.8, 0.8), Gain(0.01, 0.29)))


@pytest.mark.parametrize(
    ("whole", "blind", "chance", "tone", "said"),
    [
        (0.86, 0.27, 0.27, "good", "It trains with eyes open"),
        (0.30, 0.28, 0.27, "bad", "It answers blind"),
        (0.86, 0.51, 0.27, "bad", "the questions leak"),
        (0.86, 0.27, None, "good", "Chance is not known here"),
    ],
)
def test_verdict_on_looking(whole: float, blind: float, chance: float | None, tone: str, said: str) -> None:
    rows = [
        BlindRow("whole film, 64 frames", Estimate(whole, whole - 0.03, whole + 0.03, 600), 600),
        BlindRow("no film at all", Estimate(blind, blind - 0.03, blind + 0.03, 600), 600),
    ]
    verdict = _verdict(rows, chance)
    assert (verdict.tone, said in verdict.text) == (tone, True)
    assert "No control" in _verdict(rows[:1], chance).text


def test_results_compare_the_last_two_evaluations(made: Path) -> None:
    found = results(read_folder(made, Problems()), None, Problems())
    assert found is not None
    assert (found.before, found.main.label) == ("sft", "grpo")
    assert [tone for tone, _ in found.legend] == ["after", "before", "older"]
    assert {len(plot.traces[-1].marks) for plot in found.plots} == {4}
    assert sum(found.main.flips[0][1].__getattribute__(name) for name in Flips.__slots__) == 80


def test_pass_rates() -> None:
    bars = pass_rates(Difficulty(2, {"0.00": 1, "0.50": 6, "1.00": 3}))
    assert [(bar.label, bar.n, bar.share, bar.height) for bar in bars] == [
        ("0", 1, 0.1, 1 / 6), ("1", 6, 0.6, 1.0), ("2", 3, 0.3, 0.5)
    ]  # fmt: skip
    assert pass_rates(Difficulty(0, {})) == pass_rates(Difficulty(3, {})) == ()


def test_time_by_phase(made: Path) -> None:
    runs = {run.name: run for run in read_folder(made, Problems())}
    row = time("grpo", [runs["grpo"]])
    assert row is not None
    assert [part.name for part in row.slices] == ["rollout", "update", "encode", "other"]
    assert abs(sum(part.share for part in row.slices) - 1) < EXACT
    assert row.diagnosis.startswith("67\u202f% rollout: answers are sampled token by token")
    assert [row.label for row in times(list(runs.values()))] == ["base", "sft", "difficulty", "grpo", "eval, 3 models"]


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("at 3.0 s it falls", [2]), ("<1.2 seconds>", [1]), ("from 0:02 to 0:03", [1, 2]),
        ("s2 swap-lm s3 none", [1, 2]), ("[00:00:03]", [2]), ("3 swaps, 12 squares", []),
        ("at 2:00:00", []), ("swap-s2x a1:02", []),
    ],
)  # fmt: skip
def test_times_in_answers_lead_to_the_nearest_frame(text: str, frames: list[int]) -> None:
    bits = film.bits(text, {0: 0.0, 1: 2.0, 2: 3.5})
    assert "".join(bit.text for bit in bits) == text
    assert [bit.frame for bit in bits if bit.frame is not None] == frames


def group(name: str, marks: str, kind: str = "plot") -> Rollout:
    return Rollout(name, kind=kind, answers=tuple(Sample("a", correct=mark == "1") for mark in marks))


def test_cards_are_as_different_as_possible() -> None:
    groups = [
        group("a", "10"),
        group("b", "01"),
        group("c", "00"),
        group("d", "11"),
        group("e", "10", "goal"),
        group("f", ""),
    ]
    assert [g.id for g in cards.pick(groups, 4)] == ["e", "a", "c", "d"]
    assert [cards.state(g) for g in groups[:4]] == ["mixed", "mixed", "wrong", "right"]


@pytest.mark.parametrize(
    ("width", "shown"),
    [(8 * 64, tuple(range(8))), (4 * 64, (1, 3, 5, 7)), (2 * 64, (2, 6)), (9 * 64, ()), (100, ())],
)
def test_which_frames_a_strip_shows(width: int, shown: tuple[int, ...]) -> None:
    receipt = Receipt("a", "b", tuple(range(8)), tuple(map(float, range(8))), 32, 32, "", 0, 4, "")
    assert shown_frames(Strip("s0", "", width, 64), receipt) == shown


def test_a_chart_stays_inside_its_box() -> None:
    x, y = charts.axes(8, 64, 0.0, 1.0, log_x=True)
    assert abs(x(16) - x(8) - (x(64) - x(32))) < 1e-9, "a doubling is a fixed distance"
    assert charts.LEFT <= x(8) < x(64) <= charts.W
    assert charts.TOP <= y(1.0) < y(0.0) <= charts.H - charts.BOTTOM
    assert charts.ticks(0, 0.87) == [0, 0.2, 0.4, 0.6, 0.8]
    assert charts.spread([50, 51, 90], 12) == [50, 62, 90]
    assert max(charts.spread([charts.H, charts.H + 1], 12)) <= charts.H - charts.BOTTOM


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=600), st.integers(1, 30))
def test_smoothing_keeps_the_range_and_the_length(values: list[float], window: int) -> None:
    points = list(enumerate(values))
    smooth = charts.smooth(points, window)
    assert [a for a, _ in smooth] == [a for a, _ in points]
    assert min(values) - 1e-6 <= min(b for _, b in smooth) <= max(b for _, b in smooth) <= max(values) + 1e-6
    assert len(charts.thinned(points)) <= charts.MAX_POINTS


def test_words() -> None:
    plain = str.maketrans({"\u202f": " ", "\u2212": "-"})
    assert [words.number(v).translate(plain) for v in (0.01234, 12345.6, 0, -2.5, 3e-7, 0.0005)] == [
        "0.0123", "12 346", "0", "-2.5", "3e-7", "0.0005"
    ]  # fmt: skip
    assert [words.seconds(v).translate(plain) for v in (0.042, 3.25, 59.99, 75, 7300)] == [
        "42 ms", "3.2 s", "1 min", "1 min 15 s", "2 h 2 min"
    ]  # fmt: skip
    assert [words.points(v).translate(plain) for v in (0.34, -0.02, 0.001)] == ["+34", "-2", "0"]
    assert [words.clock(*v) for v in ((3.5, 8), (75, 600), (4000, 7200))] == ["3.50", "1:15", "1:06:40"]
    assert words.listed(["a", "b", "c"]) == "a, b and c"
