"""What judges write, and what it means: one clear verdict, or none."""

from __future__ import annotations

import pytest

from longtake.rewards.verdict import score, verdict

VERDICTS = [
    ("Both see the cup, only A sees the swap. <answer>A</answer>", "A"),
    ("<answer> B </answer>", "B"),
    ("<answer>Output B</answer>", "B"),
    ("<answer>tie</answer>", "tie"),
    ("<answer>(A).</answer>", "A"),
    ("<answer>A", "A"),
    ("<think>Output B is better</think><answer>A</answer>", "A"),
    ("<think>I lean to <answer>B</answer></think>A", "A"),
    ("<answer>A</answer> … <answer>A</answer>", "A"),
    ('{"reasoning": "A leaves the door out", "better": "B"}', "B"),
    ('```json\n{"better": "tie"}\n```', "tie"),
    ('Output A is better. {"better": "B"}', "B"),
    ('{"reasoning": "the {red} cup", "better": "A"}', "A"),
    ("<answer>Output B is better</answer>", "B"),
    ("Output A is better because it names the cup.", "A"),
    ("Output B is better than Output A: it is right.", "B"),
    ("**Answer B** is clearly better.", "B"),
    ("The better output is B.", "B"),
    ("Verdict: A", "A"),
    ("I prefer response B because of the swap", "B"),
    ("[[B]]", "B"),
    ("My final answer is A, and that is that.", "A"),
    ("A", "A"),
    (" B. ", "B"),
    ("Output A", "A"),
    ("tie", "tie"),
    ("They are equally good.", "tie"),
    ("The answer is a tie", "tie"),
    ("Neither of them is better.", "tie"),
]
NOTHING = [
    "",
    "<answer></answer>",
    "<answer>A</answer> or <answer>B</answer>",
    "<answer>A or B</answer>",
    "<answer>C</answer>",
    "<answer>a</answer>",
    '{"better": "A"} {"better": "B"}',
    "Output A is better in detail. Output B is better overall.",
    "Output A is better, but the answer is: tie. They are equally good.",
    "Output A is not better.",
    "A better answer would name the cup.",
    "The answer is A better description of B.",
    "A B",
    "[[a]]",
    "<think>Output A is better",
    "so left </think> apple",
    "write <answer>A</answer> or <answer>B</answer>, or <answer>tie</answer>",
    "I cannot say.",
]
SCORES = [
    ("<answer>4</answer>", 4.0),
    ("It is right. <answer> 2/5 </answer>", 2.0),
    ("<answer>Score: 5</answer>", 5.0),
    ('{"score": 3, "reasoning": "5 swaps of 7"}', 3.0),
    ("Score: 4", 4.0),
    ("I rate it 4.5/5.", 4.5),
    ("The rating is 1 out of 5", 1.0),
    ("3", 3.0),
    ("<think>maybe 2</think> 4.", 4.0),
]
NO_SCORES = [
    "",
    "6",
    "<answer>0</answer>",
    "Score: 2. Score: 3.",
    "there are 3 cups and 4 swaps",
    "four",
    "-3",
    "1.2.3",
]


@pytest.mark.parametrize(("text", "want"), VERDICTS)
def test_a_verdict_is_read(text: str, want: str) -> None:
    assert verdict(text) == want


@pytest.mark.parametrize("text", NOTHING)
def test_doubt_is_no_verdict(text: str) -> None:
    assert verdict(text) is None


@pytest.mark.parametrize(("text", "want"), SCORES)
def test_a_score_is_read(text: str, want: float) -> None:
    assert score(text) == want


@pytest.mark.parametrize("text", NO_SCORES)
def test_what_is_no_score_from_1_to_5_is_none(text: str) -> None:
    assert score(text) is None
