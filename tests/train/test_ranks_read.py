"""What ranks read, score and judge together is what one does alone, and nothing is done twice."""

from __future__ import annotations

from typing import Any

import pytest
from tests.ranks import run
from tests.train import test_ranks
from tests.train.paired import ASKED, Look, items
from tests.train.test_ranks import EXACT, MANY, Q3, Q25, aside, asked, meshes

from longtake.maths.logprob import score_tokens
from longtake.models.adapters import NAME
from longtake.parallel.ranks import Ranks
from longtake.records import Answer, Group, Question
from longtake.rewards.mix import Score
from longtake.rewards.model import RewardModel
from longtake.train.rollout import scored
from longtake.train.rows import read_items
from longtake.train.step import Passes

every, runs = test_ranks.every, test_ranks.runs  # fixtures


def logprobs(one: Any, ranks: Ranks, row_tokens: int) -> list[float]:
    def of(hidden: Any, row: Any) -> Any:
        return score_tokens(one.model.head, hidden, row.target_R).logprob_R

    one.films.ranks, one.passes = ranks, Passes(answer_tokens=4)
    return [
        float(x) for own in read_items(aside(one), items(one, scored=False), of, row_tokens) for y in own for x in y
    ]


def rewarded(one: Any, ranks: Ranks, row_tokens: int) -> list[float]:
    """By a reward model whose adapter is the policy's own."""
    judge = RewardModel(one.model, NAME, (44, 45), row_tokens, 4, aside(one).prefixes)
    groups = [
        Group(prompt, tuple(Answer(ids, (0.0,) * len(ids), "", "length", 0, "") for ids in said))
        for prompt, (_, _, *said) in zip(asked(one), ASKED, strict=True)
    ]
    return [score for own in judge.scores(groups, one.films.features, ranks) for score in own]


def asking(world: Any, runs: dict[str, Any], want: dict[Any, list[float]]) -> int:
    count = 0
    for _, ranks in meshes(world):
        for (ask, kind, row_tokens), own in want.items():
            assert ask(runs[kind], ranks, row_tokens) == pytest.approx(own, rel=EXACT)
            count += len(own)
    return count


@pytest.mark.parametrize(("family", "size"), [(Q3, 2), (Q25, 4)])
def test_ranks_read_what_one_reads(runs: dict[str, Any], size: int) -> None:
    asked = [
        (ask, kind, row) for ask in (logprobs, rewarded) for kind, row in (("full", 60), ("lora", MANY), ("alora", 60))
    ]
    want = {case: case[0](runs[case[1]], Ranks(), case[2]) for case in asked}
    assert run(size, asking, runs, want) == [{2: 3, 4: 5}[size] * sum(map(len, want.values()))] * size


def judged(world: Any, count: int) -> tuple[list[Any], list[float], list[str]]:
    calls: list[str] = []

    def reward(text: str, question: Question, scores: Any) -> Any:
        calls.append(text)
        return Score(float(text) + scores["model"], {})

    looks = [Look(Question(str(n), None, "?")) for n in range(count)]
    answers = [tuple(Answer((), (), str(10 * n + g), "stop", 0, "") for g in range(2)) for n in range(count)]
    groups = [Group(None, own) for own in answers]  # type: ignore[arg-type]

    def model(groups: Any, ranks: Ranks) -> Any:
        assert ranks.world is world
        return [[0.5, 0.25] for _ in groups]

    made = scored(looks, groups, reward, {"model": model}, Ranks(world))  # type: ignore[arg-type]
    return [look.question.id for look in made.looks], made.reward_NG.flatten().tolist(), calls


@pytest.mark.parametrize("size", [1, 3])
def test_every_reward_is_asked_for_once(size: int) -> None:
    found = run(size, judged, 5)
    for names, rewards, _ in found:
        assert names == [str(n) for n in range(5)]
        assert rewards == [10 * n + g + (0.5, 0.25)[g] for n in range(5) for g in range(2)]
    assert sorted(int(text) for _, _, calls in found for text in calls) == [
        10 * n + g for n in range(5) for g in (0, 1)
    ]
    assert min(len(calls) for _, _, calls in found) > 0
