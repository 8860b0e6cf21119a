"""Answer extraction on the traps that the field's extractors fall into."""

from __future__ import annotations

import pytest

from longtake.rewards.extract import answer_span, extract, result

SIDES = ("left", "middle", "right", "nowhere")
PEOPLE = ("a woman", "two dogs", "a man in red", "nobody")
TRAPS = [
    # plain forms
    ("B", "B"),
    ("b", "B"),
    ("B.", "B"),
    ("(B)", "B"),
    ("[B]", "B"),
    ("B)", "B"),
    ("B) left", "B"),  # the letter is what was asked for
    ("(C) right", "C"),
    ("C: right", "C"),
    ("C - right", "C"),
    ("B.middle", "B"),
    ("b) middle", "B"),
    ("B middle", "B"),
    ("**B**", "B"),
    ("**Answer:** B", "B"),
    ("\\boxed{B}", "B"),
    ("$\\boxed{\\text{B}}$", "B"),
    ("（Ｂ）", "B"),
    ("答案是B", "B"),
    ("'B'", "B"),
    ("A", "A"),
    # tags and thinking
    ("<answer>B</answer>", "B"),
    ("<answer> B. </answer>", "B"),
    ("<ANSWER>\nB\n</ANSWER>", "B"),
    ("<answer>B", "B"),
    ("B</answer>", "B"),
    ("<think> A or C? </think><answer>C</answer>", "C"),
    ("<think> maybe <answer>A</answer> </think> <answer>B</answer>", "B"),
    ("<think> so <answer>B</answer></think>", "B"),
    ("<think> never closed <answer>B</answer>", "B"),
    ("<think> It could be B, the answer is B", None),
    ("the template opened the thought: A? </think>\nC", "C"),
    ("<answer>A</answer> no <answer>B</answer>", "B"),
    ("<answer>B</answer> because A is wrong", "B"),
    ("<answer></answer>", None),
    ("<think>B</think>", None),
    ("<answer>option b</answer>", "B"),
    ("<answer>(a)</answer>", "A"),
    # phrases
    ("I think it is option C, not A", "C"),
    ("option C, not A.", "C"),
    ("I think it is option C, not A.", "C"),
    ("Not A but C", "C"),
    ("The answer is not A. It is C.", "C"),
    ("Best answer: C", "C"),
    ("Best option: (B", "B"),
    ("Based on the video, D", "D"),
    ("Answer: (C) right", "C"),
    ("Answer: A\nExplanation: the ball moved", "A"),
    ("The correct option is B: middle", "B"),
    ("Therefore, the final answer is: B", "B"),
    ("My choice would be D", "D"),
    ("the answer is b", "B"),
    ("The answer is a.", "A"),
    ("The answer is A because the cup moved", "A"),
    ("The answer is left.", "A"),
    ("The answer is B, since A shows the ball earlier", "B"),
    ("Answer: B. Option A is seen earlier.", "B"),
    ("Option A is tempting, but option B is right.", "B"),
    ("D is correct, while B is wrong", "D"),
    ("A is wrong. B is wrong. So D.", "D"),
    ("It is neither A nor B; C", "C"),
    ("This rules out B and leaves C", "C"),
    ("I would not choose B. C", "C"),
    ("A. No wait, C", "C"),
    ("Is the answer A? No, it's C.", "C"),
    ("First I thought A, but it is C", "C"),
    ("Plan B failed, so the answer is D", "D"),
    ("The ball starts left. Two swaps.\n\nTherefore, the correct answer is **B. middle**.", "B"),
    ("The correct answer is:\n\nB) middle", "B"),
    ("So the answer should be (D).", "D"),
    ("Option A says left, but the ball ends on the right, so C.", "C"),
    ("I'd go with A here", "A"),
    ("B is the best choice", "B"),
    ("Ruling out A and D, the cup is B.", "B"),
    # words that only look like letters
    ("A man walks, so the answer is B.", "B"),
    ("A man walks by.", None),
    ("The answer is a tough one", None),
    ("They visit Washington D.C. twice", None),
    ("I don't know", None),
    ("Team A won.", None),
    ("It's over", None),
    # texts of options
    ("left", "A"),
    ("Left.", "A"),
    ("the middle", "B"),
    ("It ends up in the middle.", "B"),
    ("left, not right", "A"),
    ("from left to right", None),
    # doubt
    ("A or B", None),
    ("A and C", None),
    ("A, C", None),
    ("A/B", None),
    ("<answer>A B</answer>", None),
    ("Answer: A, B", None),
    ("A) left B) middle C) right D) nowhere", None),
    ("A) left B) middle C) right D) nowhere. Answer: B", "B"),
    ("E", None),
    ("The answer is E", None),
    ("", None),
]


@pytest.mark.parametrize(("text", "letter"), TRAPS)
def test_trap(text: str, letter: str | None) -> None:
    assert extract(text, SIDES) == letter


@pytest.mark.parametrize(
    ("text", "options", "letter"),
    [
        ("A man in red", PEOPLE, "C"),
        ("The answer is A man in red", PEOPLE, "C"),
        ("<answer>two dogs</answer>", PEOPLE, "B"),
        ("A woman", PEOPLE, "A"),
        ("4", ("3", "4", "5"), "B"),
        ("There are 4 of them", ("3", "4", "5"), "B"),
        ("There are 14", ("3", "4", "5"), None),
        ("1.5", ("1", "5", "1.5"), "C"),
        ("It was dark red", ("red", "dark red"), "B"),
        ("No", ("Yes", "No"), "B"),
        ("same", ("same", "same"), None),  # two options read alike
        ("B", ("B", "A"), "B"),  # a letter is a letter, whatever the options say
        ("I", tuple("123456789"), "I"),
        ("I saw it", tuple("123456789"), None),
        ("B", (), None),
    ],
)
def test_trap_of_the_options(text: str, options: tuple[str, ...], letter: str | None) -> None:
    assert extract(text, options) == letter


def test_own_template_of_every_letter() -> None:
    for place, letter in enumerate("ABCD"):
        assert extract(f"<think> s0 a s1 b </think> <answer> {letter} </answer>", SIDES) == letter
        assert extract(f"<think>\nA? B? C? D?\n</think>\n<answer>{letter}. {SIDES[place]}</answer>", SIDES) == letter


def test_result_of_an_open_question_is_its_span() -> None:
    assert result("<think>x</think><answer> 7 cups </answer>", ()) == "7 cups"
    assert result("<think>x", ()) is None
    assert result("<answer>B.</answer>", SIDES) == "B"


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("7", ("7", False)),
        ("<think>x</think> 7 ", ("7", False)),
        ("<think>x</think><answer> 7 </answer>", ("7", True)),
        ("<think>x", ("", False)),
    ],
)
def test_answer_span(text: str, span: tuple[str, bool]) -> None:
    assert answer_span(text) == span
