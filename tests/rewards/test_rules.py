"""Format, number, interval and text rewards, each on the cases that decide it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from longtake.rewards.choice import choice_reward, text_reward
from longtake.rewards.extract import extract
from longtake.rewards.format import format_reward
from longtake.rewards.interval import interval_reward, read_intervals
from longtake.rewards.number import is_number, number_reward, read_number

CLOSE = 1e-9


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("<think>a</think><answer>B</answer>", 1),
        ("<think> s0 a s1 </think> <answer> B </answer>", 1),
        ("\n<think>\na\n\nb\n</think>\n\n<answer>\nB\n</answer>\n", 1),
        ("<think></think><answer>B</answer>", 1),
        ("<think>1 < 2</think><answer>B</answer>", 1),
        ("<think>a</think><answer> </answer>", 0),
        ("<think>a</think><answer>B", 0),
        ("<think>a<answer>B</answer>", 0),
        ("a</think><answer>B</answer>", 0),
        ("<answer>B</answer>", 0),
        ("<answer>B</answer><think>a</think>", 0),
        ("Sure! <think>a</think><answer>B</answer>", 0),
        ("<think>a</think> so <answer>B</answer>", 0),
        ("<think>a</think><answer>B</answer> done", 0),
        ("<think>a</think><answer>A</answer><answer>B</answer>", 0),
        ("<think>a</think><think>b</think><answer>B</answer>", 0),
        ("<think><think>a</think></think><answer>B</answer>", 0),
        ("B", 0),
        ("", 0),
    ],
)
def test_format(text: str, score: float) -> None:
    assert format_reward(text) == score


@given(st.text(alphabet="<>/thinkaswer AB.,:()*\n'", max_size=60))
def test_any_text_can_be_scored(text: str) -> None:
    assert format_reward(text) in (0.0, 1.0)
    assert extract(text, ("left", "right", "a b")) in (None, "A", "B", "C")
    assert 0.0 <= interval_reward(text, ((1.0, 2.0),)) <= 1.0


def test_choice_and_text() -> None:
    assert choice_reward("<think>A?</think><answer>B.</answer>", ("left", "right"), "B") == 1.0
    assert choice_reward("<think>A?</think><answer>A or B</answer>", ("left", "right"), "B") == 0.0
    assert text_reward("<think>x</think><answer> The red  Cup. </answer>", "red cup") == 1.0
    assert text_reward("<answer>a blue cup</answer>", "red cup") == 0.0
    assert text_reward("<think>red cup", "red cup") == 0.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7", 7.0),
        ("-0.5", -0.5),
        ("1,234.5", 1234.5),
        ("about 12 cars", 12.0),
        ("12.", 12.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1-2", 2.0),
        ("50%", 50.0),
        ("5kg", 5.0),
        ("three", 3.0),
        ("Three people", 3.0),
        ("twenty-one", None),
        ("B2", None),
        ("none", None),
        ("", None),
    ],
)
def test_read_number(text: str, value: float | None) -> None:
    assert read_number(text) == value


def test_is_number() -> None:
    assert all(is_number(text) for text in ("7", " 7 ", "-0.5", "1,234", "50 %"))
    assert not any(is_number(text) for text in ("", "7 cars", "B", "1-2", "three", "-"))


@pytest.mark.parametrize(
    ("text", "answer", "rule", "score"),
    [
        ("<answer>7.0</answer>", "7", "close", 1.0),
        ("<answer>7.004</answer>", "7", "close", 1.0),
        ("<answer>7.01</answer>", "7", "close", 0.0),
        ("<answer>1936</answer>", "1937", "close", 0.0),
        ("<answer>seven</answer>", "7", "close", 1.0),
        ("<answer>many</answer>", "7", "close", 0.0),
        ("<think>7", "7", "close", 0.0),
        ("<answer>7.0</answer>", "7", "video-r1", 0.0),  # a decimal point on one side only
        ("<answer>7.001</answer>", "7.00", "video-r1", 1.0),
        ("<answer>8</answer>", "10", "relative", 0.8),
        ("<answer>30</answer>", "10", "relative", 0.0),
        ("<answer>0</answer>", "0", "relative", 1.0),
        ("<answer>1</answer>", "0", "relative", 0.0),
    ],
)
def test_number(text: str, answer: str, rule: str, score: float) -> None:
    assert number_reward(text, answer, rule) == pytest.approx(score, abs=CLOSE)  # type: ignore[arg-type]


def test_number_needs_a_number() -> None:
    with pytest.raises(ValueError, match="no number"):
        number_reward("7", "left")


@pytest.mark.parametrize(
    ("text", "intervals"),
    [
        ("12.5-15 seconds", ((12.5, 15.0),)),
        ("from 0:12 to 0:20", ((12.0, 20.0),)),
        ("[1.2, 3.4]", ((1.2, 3.4),)),
        ("[[1, 2], [3, 4]]", ((1.0, 2.0), (3.0, 4.0))),
        ("1:02:03 – 1:02:09", ((3723.0, 3729.0),)),
        ("between 3 s and 5 s", ((3.0, 5.0),)),
        ("5 to 3", ()),
        ("at 12 seconds", ()),
        ("", ()),
    ],
)
def test_read_intervals(text: str, intervals: tuple[tuple[float, float], ...]) -> None:
    assert read_intervals(text) == intervals


@pytest.mark.parametrize(
    ("text", "truth", "score"),
    [
        ("2-4", ((2.0, 4.0),), 1.0),
        ("3-5", ((2.0, 4.0),), 1 / 3),
        ("5-6", ((2.0, 4.0),), 0.0),
        ("2-3, 3-4", ((2.0, 4.0),), 1.0),
        ("2-4, 3-4", ((2.0, 4.0),), 1.0),  # naming a second twice wins nothing
        ("0-10", ((1.0, 2.0), (3.0, 4.0)), 0.2),
        ("never", ((1.0, 2.0),), 0.0),
    ],
)
def test_interval(text: str, truth: tuple[tuple[float, float], ...], score: float) -> None:
    assert interval_reward(f"<answer>{text}</answer>", truth) == pytest.approx(score, abs=CLOSE)


def test_interval_needs_time() -> None:
    with pytest.raises(ValueError, match="cover no time"):
        interval_reward("1-2", ((3.0, 3.0),))
