"""The weighted sum of rewards, and rewards out of a user's file."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.records import Question
from longtake.rewards.mix import Mix, user_row
from longtake.rewards.user import load

MOST_LINES = 6
RIGHT = "<think>x</think><answer>B</answer>"
CHOICE = Question("q", None, "where ?", ("left", "right"), "B", row={"note": 3, "answer": "<answer>B</answer>"})
NUMBER = Question("n", None, "how many ?", answer="7")
TEXT = Question("t", None, "what ?", answer="a red cup")
TIME = Question("i", None, "when ?", answer="2-4")


def wrong(caught: pytest.ExceptionInfo[UserError]) -> str:
    message = str(caught.value)
    assert len(message.splitlines()) <= MOST_LINES
    return message


def test_parts_are_weighted_and_kept() -> None:
    score = Mix({"accuracy": 1.0, "format": 0.1})(RIGHT, CHOICE)
    assert score.total == pytest.approx(1.1)
    assert score.parts == {"accuracy": 1.0, "format": 1.0}
    assert Mix({"accuracy": 1.0, "format": 0.1})("B", CHOICE).total == 1.0
    assert Mix({"accuracy": 1.0, "format": -0.5})("A", CHOICE).total == 0.0


def test_scores_of_reward_models_are_given() -> None:
    mix = Mix({"model:out/reward/model": 0.5, "format": 0.1})
    assert mix.models == {"model:out/reward/model": "out/reward/model"}
    assert mix.files == ()
    score = mix(RIGHT, CHOICE, {"model:out/reward/model": -3.0})
    assert score.total == pytest.approx(-1.4)
    assert list(score.parts.items()) == [("model:out/reward/model", -3.0), ("format", 1.0)]
    mix.check([TEXT, Question("x", None, "?")])  # needs no truth
    for wrong in (None, {"other": 1.0}):
        with pytest.raises(ValueError, match="out/reward/model"):
            mix(RIGHT, CHOICE, wrong)
    with pytest.raises(ValueError, match="other"):
        Mix({"format": 1.0})(RIGHT, CHOICE, {"other": 1.0})


@pytest.mark.parametrize(
    ("question", "good", "bad"),
    [(CHOICE, "(B) right", "A"), (NUMBER, "7.0", "8"), (TEXT, "Red cup.", "blue cup")],
)
def test_accuracy_goes_by_the_question(question: Question, good: str, bad: str) -> None:
    mix = Mix({"accuracy": 1.0})
    assert mix(f"<answer>{good}</answer>", question).total == 1.0
    assert mix(f"<answer>{bad}</answer>", question).total == 0.0


def test_other_rules() -> None:
    assert Mix({"interval": 1.0})("3-4", TIME).total == pytest.approx(0.5)
    by_evidence = Question("e", None, "when ?", ("left", "right"), "B", evidence=((2.0, 4.0),))
    assert Mix({"interval": 1.0})("3-4", by_evidence).total == pytest.approx(0.5)
    assert Mix({"number-video-r1": 1.0})("7.0", NUMBER).total == 0.0
    assert Mix({"number-relative": 2.0})("6.3", NUMBER).total == pytest.approx(1.8)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({}, "no reward"),
        ({"accuracy": 0.0}, "no reward"),
        ({"accuracy": float("nan")}, "finite"),
        ({"acuracy": 1.0}, "did you mean accuracy?"),
        ({"beauty": 1.0}, "known: accuracy"),
        ({"my.py": 1.0}, "FILE:FUNCTION"),
        ({"model:": 1.0}, "model:FOLDER"),
        ({"model": 1.0}, "model:FOLDER"),
    ],
)
def test_bad_weights(weights: dict[str, float], said: str) -> None:
    with pytest.raises(UserError) as caught:
        Mix(weights)
    assert said in wrong(caught)


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("accuracy", Question("x", None, "?")),
        ("interval", TEXT),
        ("number-relative", TEXT),
        ("number-video-r1", Question("x", None, "?")),
    ],
)
def test_row_without_the_truth_that_a_rule_needs(name: str, question: Question) -> None:
    with pytest.raises(UserError) as caught:
        Mix({name: 1.0})(RIGHT, question)
    assert f"row {question.id}" in wrong(caught)


def mine(folder: Path, source: str, name: str = "my.py") -> str:
    (folder / name).write_text(textwrap.dedent(source))
    return f"{folder / name}:score"


def test_users_function_sees_its_own_row(tmp_path: Path) -> None:
    name = mine(tmp_path, "def score(text, row): return row['note'] * len(row['options']) * (row['answer'] in text)")
    assert Mix({name: 0.5})(RIGHT, CHOICE).parts == {name: 6.0}
    assert user_row(CHOICE)["answer"] == "<answer>B</answer>"  # as in the file
    assert user_row(CHOICE)["id"] == "q"  # read, where the file has none


def test_users_file_may_import_its_neighbours_and_define_classes(tmp_path: Path) -> None:
    (tmp_path / "longtake_test_neighbour.py").write_text("BONUS = 0.25")
    source = """
        from __future__ import annotations
        from dataclasses import dataclass
        from longtake_test_neighbour import BONUS
        @dataclass
        class Judge:
            bonus: float
            def __call__(self, text, row): return self.bonus
        score = Judge(BONUS)
    """
    assert load(mine(tmp_path, source))("", {}) == 0.25
    assert not list(tmp_path.glob("__pycache__/my*"))


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    assert load(mine(tmp_path, "def score(text, row): return 1"))("", {}) == 1.0
    assert load(mine(tmp_path, "def score(text, row): return 2"))("", {}) == 2.0


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def score(text, row): return", "there is a"),
        ("def scores(text, row): return 1", "did you mean"),
        ("x = 1", "defines no function"),
        ("score = 3", "no function 'score'"),
        ("def score(text): return 1", "score(text)"),
        ("def score(text, row, more): return 1", "(text, row, more)"),
        ("async def score(text, row): return 1", "async"),
        ("def score(text, row) return 1", "line 1"),
        ("import longtake_no_such_module\ndef score(text, row): return 1", "my.py:1: import longtake_no_such_module"),
        ("import sys\nsys.exit(3)", "my.py:2: sys.exit(3)"),
    ],
)
def test_file_that_does_not_load(tmp_path: Path, source: str, said: str) -> None:
    name = mine(tmp_path, source)
    if said == "there is a":
        assert callable(load(name))  # loads; what it returns is judged when called
        return
    with pytest.raises(UserError) as caught:
        load(name)
    assert said in wrong(caught)


def test_file_that_is_missing(tmp_path: Path) -> None:
    mine(tmp_path, "")
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / "mine.py:score"))
    assert f"did you mean {tmp_path / 'my.py'}?" in wrong(caught)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("None", "a `return` on every path?"),
        ("float('nan')", "nan"),
        ("float('inf')", "inf"),
        ("'1.0'", "'1.0'"),
        ("[1.0]", "[1.0]"),
        ("1 / 0", "my.py:1: def score(text, row): return 1 / 0 — ZeroDivisionError: division by zero"),
        ("row['missing']", "KeyError: 'missing'"),
        ("(_ for _ in ()).throw(ValueError('a\\nb\\nc\\nd\\ne\\nf\\ng'))", "ValueError: a"),
    ],
)
def test_users_function_that_gives_no_score(tmp_path: Path, returned: str, said: str) -> None:
    mix = Mix({mine(tmp_path, f"def score(text, row): return {returned}"): 1.0})
    with pytest.raises(UserError) as caught:
        mix("B", CHOICE)
    assert said in wrong(caught)
    assert "row q" in str(caught.value)


@pytest.mark.parametrize("returned", ["1", "True", "0.5"])
def test_whatever_is_a_number_is_a_score(tmp_path: Path, returned: str) -> None:
    assert load(mine(tmp_path, f"def score(text, row): return {returned}"))("", {}) == float(eval(returned))
