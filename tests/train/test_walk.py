"""Stages from easy to hard: who is in them, how many steps they get, and that a step depends on its number alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.world import silent

from longtake.errors import UserError
from longtake.log import RunFolder, read_json
from longtake.records import Example, Question, Span
from longtake.sim import tiny
from longtake.train.walk import Stage, Walk, in_stages, open_walk

WORDS = tiny.tokenizer()
END = WORDS.eos_token_id


@dataclass(frozen=True)
class Given:
    """What open_walk reads of a config."""

    curriculum: str = "length"
    curriculum_cuts: tuple[float, ...] = (0.5,)
    steps: int = 10
    batch: int = 2
    batch_by: str = "count"
    shuffle: bool = True
    seed: int = 0
    rows: Path = Path("rows.jsonl")


def examples(lengths: Sequence[int], rates: Sequence[Any] = ()) -> list[Example]:
    """Answers of so many words and an end."""
    rows: list[dict[str, Any]] = [{"pass_rate": rate} for rate in rates] or [{} for _ in lengths]
    return [
        Example(Question(f"q{n}", None, "?", row=row), ((Span(" ".join(["left"] * (length - 1))),),))
        for n, (length, row) in enumerate(zip(lengths, rows, strict=True))
    ]


def names(found: Sequence[Example]) -> list[str]:
    return [example.question.id for example in found]


def walked(walk: Walk, steps: int) -> list[list[str]]:
    return [names(walk.take(step, step * (walk.size or 0))) for step in range(steps)]


@given(
    st.lists(st.integers(0, 5), min_size=3, max_size=40), st.integers(3, 200), st.sampled_from([(0.654,), (0.3, 0.7)])
)
def test_stages_are_the_quantiles_and_get_their_share_of_the_steps(
    hard: list[int], steps: int, cuts: tuple[float, ...]
) -> None:
    every = examples([2] * len(hard))
    stages = in_stages(every, hard, cuts, steps)
    level = dict(zip(names(every), hard, strict=True))
    assert sorted(n for stage in stages for n in names(stage.examples)) == sorted(level)
    for one, other in pairwise(stages):
        assert max(level[n] for n in names(one.examples)) <= min(level[n] for n in names(other.examples))
    stops = [*(stage.start for stage in stages[1:]), steps]
    for stage, stop in zip(stages, stops, strict=True):
        assert abs((stop - stage.start) / steps - len(stage.examples) / len(hard)) <= 1 / steps + 1e-9
    done = 0
    for cut, stage in zip(cuts, stages, strict=False):
        done += len(stage.examples)
        assert abs(done - cut * len(hard)) <= 0.5


def test_vlm_rlaifs_split() -> None:
    """214k short answers, then 113k long ones, one epoch each."""
    every = examples([2] * 327)
    first, second = in_stages(every, range(327), (0.654,), 327)
    assert (len(first.examples), second.start, len(second.examples)) == (214, 214, 113)


def test_a_stage_shows_all_of_its_own_before_any_comes_again() -> None:
    walk = open_walk(examples([5, 3, 9, 2, 8, 4, 7, 6]), Given(steps=8), WORDS, END, silent())
    found = walked(walk, 8)
    for start, own in ((0, {"q0", "q1", "q3", "q5"}), (4, {"q2", "q4", "q6", "q7"})):
        for epoch in (found[start : start + 2], found[start + 2 : start + 4]):
            assert sorted(epoch[0] + epoch[1]) == sorted(own)
    assert [walk.stage(step) for step in range(8)] == [1] * 4 + [2] * 4
    assert found[0] + found[1] != found[2] + found[3]  # an order of its own every epoch
    odd = walked(open_walk(examples([5, 3, 9, 2, 8, 4, 7, 6, 10]), Given(steps=9), WORDS, END, silent()), 9)
    assert sorted([*odd[4], *odd[5], odd[6][0]]) == ["q2", "q4", "q6", "q7", "q8"]


def test_a_step_depends_on_its_number_and_the_seed_alone() -> None:
    every = examples(list(range(2, 22)))
    walks = [open_walk(every, Given(seed=seed), WORDS, END, silent()) for seed in (0, 0, 1)]
    assert names(walks[1].take(7, 14)) == walked(walks[0], 8)[7]
    assert walked(walks[2], 10) != walked(walks[0], 10)


def test_without_a_curriculum_all_are_one_stage() -> None:
    every = examples([5, 3, 9])
    walk = open_walk(every, Given(curriculum="none", shuffle=False), WORDS, END, silent())
    assert walk == Walk((Stage(tuple(every), 0),), 2, False, 0)
    assert walked(walk, 3) == [["q0", "q1"], ["q2", "q0"], ["q1", "q2"]]


def test_length_is_what_is_learned_of_an_answer() -> None:
    """Tokens of weight 0 do not count; several answers count with their mean."""
    read = Example(Question("read", None, "?"), ((Span("left left left left", 0.0), Span("left")),))  # 2 with its end
    mean = Example(Question("mean", None, "?"), ((Span("left left"),), (Span("left left left left"),)))  # 3 and 5
    talk = Example(Question("talk", None, "?"), ((Span("left"), Span("so so so so so", 0.0, "user"), Span("left")),))
    plain = examples([3, 5])
    walk = open_walk(
        [mean, *plain, read, talk], Given(curriculum_cuts=(0.2, 0.4, 0.6, 0.8), batch=1), WORDS, END, silent()
    )
    assert [names(stage.examples) for stage in walk.stages] == [["read"], ["q0"], ["mean"], ["talk"], ["q1"]]


def test_pass_rates_go_from_high_to_low_and_borders_are_said(tmp_path: Path) -> None:
    log = silent()
    log.open(RunFolder.open(tmp_path / "run", "sft", {}))
    every = examples([2] * 5, rates=[0.0, 1.0, 0.5, 0.75, 0.25])
    walk = open_walk(every, Given("pass_rate", (0.6,), steps=20, batch=1), WORDS, END, log)
    assert [names(stage.examples) for stage in walk.stages] == [["q1", "q3", "q2"], ["q4", "q0"]]
    assert read_json(tmp_path / "run" / "run.json")["notes"] == [
        "stage 1 of 2: steps 1 to 12, 3 questions, pass rate 1 to 0.5",
        "stage 2 of 2: steps 13 to 20, 2 questions, pass rate 0.25 to 0",
    ]


@pytest.mark.parametrize(
    ("given", "rates", "why"),
    [
        (Given("pass_rate"), [], "no pass_rate"),
        (Given("pass_rate"), [1.0, 0.5, None, 0.0], "1 of 4 rows"),
        (Given("pass_rate"), [1.0, 0.5, 2.0, 0.0], "1 of 4 rows"),
        (Given("pass_rate"), [1.0, 0.5, 0.25, "half"], "1 of 4 rows"),
        (Given("pass_rate"), [0.5] * 4, "pass rate 0.5 throughout"),
        (Given(curriculum_cuts=(0.1,)), [], "no question"),
        (Given(steps=1), [], "no step"),
        (Given(batch=3), [], "smallest stage"),
        (Given("none", batch=5), [], "only 4 questions"),
    ],
)
def test_what_cannot_be_walked(given: Given, rates: list[Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        open_walk(examples([2, 3, 4, 5], rates), given, WORDS, END, silent())
