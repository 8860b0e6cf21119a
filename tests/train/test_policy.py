"""The pieces of a policy-gradient step: the algorithm that was meant, whole groups in mini-batches, late means."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from longtake.errors import UserError
from longtake.maths.algorithms import ALGORITHMS
from longtake.records import Answer, FramePolicy, Group, Prompt, Question
from longtake.runtime.films import Look
from longtake.train.policy import choose, differing, health, kept, late, minibatches, shaped, weights_of
from longtake.train.rollout import NOTHING, Rollout, Scored

REWARDS = ((1.0, 0.0, 1.0), (0.5, 0.5, 0.5), (0.0, 0.2, 0.9), (1.0, 1.0, 1.0), (0.0, 0.0, 0.3))
LENGTHS = ((3, 9, 10), (1, 1, 1), (10, 8, 6), (2, 2, 2), (5, 10, 7))


def answered() -> Rollout:
    """Five questions of three answers; a reward of 1 is right, an answer of ten tokens was cut."""
    looks, groups, scores = [], [], []
    for n, (rewards, lengths) in enumerate(zip(REWARDS, LENGTHS, strict=True)):
        looks.append(Look(Question(f"q{n}", None, "?"), FramePolicy(frames=1)))
        prompt = Prompt(f"q{n}", (1, 2), (), torch.zeros(3, 2, dtype=torch.int64), None, None)
        ends = ["length" if length == 10 else "stop" for length in lengths]
        groups.append(
            Group(
                prompt, tuple(Answer((7,) * k, (-1.0,) * k, "", e, 0, "") for k, e in zip(lengths, ends, strict=True))
            )
        )
        scores.append(tuple(Scored(r, {"mine": r / 2}, r == 1.0, formed=r > 0) for r in rewards))
    return Rollout(tuple(looks), tuple(groups), tuple(scores))


def names(rollout: Rollout) -> list[str]:
    return [look.question.id for look in rollout.looks]


def test_an_algorithm_by_its_name() -> None:
    for name, algorithm in ALGORITHMS.items():
        assert choose(name, None, on_policy=True) is algorithm


def test_clip_bounds_replace_the_algorithms_own() -> None:
    found = choose("dapo", (0.2, 0.5), on_policy=False)
    assert isinstance(found.loss, partial)
    assert found.loss.keywords == {"clip_low": 0.2, "clip_high": 0.5}
    assert found.centred is ALGORITHMS["dapo"].centred
    logprob, old = torch.tensor([0.4, -0.4]).log1p(), torch.zeros(2)
    one, answer = torch.ones(2), torch.zeros(2, dtype=torch.int64)
    assert found.loss(logprob, old, one, answer).clipped == 0
    assert choose("dapo", (0.2, 0.3), on_policy=False).loss(logprob, old, one, answer).clipped == 1


@pytest.mark.parametrize("name", ["rloo"])
def test_bounds_without_effect_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="has no clip"):
        choose(name, (0.1, 0.2), on_policy=True)
    with pytest.raises(UserError, match="--clip") as caught:
        choose("grpo", (0.1, 0.1), on_policy=True)
    assert "--epochs" in str(caught.value)


def test_what_would_be_wrong_or_idle_is_refused() -> None:
    for name in ALGORITHMS:
        if name == "rloo":  # its loss has no ratio
            with pytest.raises(UserError, match="makes one pass"):
                choose(name, None, on_policy=False)
        else:
            assert choose(name, None, on_policy=False) is ALGORITHMS[name]
        if ALGORITHMS[name].drop_equal:
            assert choose(name, None, on_policy=True, refill=3) is ALGORITHMS[name]
        else:  # nothing to refill: no group is dropped
            with pytest.raises(UserError, match="keeps groups of equal rewards"):
                choose(name, None, on_policy=True, refill=1)


def test_weights_of_rewards() -> None:
    assert weights_of(("accuracy", "format=0.1", "my.py:score=-2")) == {
        "accuracy": 1.0, "format": 0.1, "my.py:score": -2.0,
    }  # fmt: skip
    with pytest.raises(UserError, match="its weight is 'x'"):
        weights_of(("accuracy=x",))
    with pytest.raises(UserError, match="accuracy is given twice"):
        weights_of(("accuracy", "format", "accuracy=2"))


def test_only_groups_that_differ_teach() -> None:
    assert names(differing(answered())) == ["q0", "q2", "q4"]
    none = answered().chosen([False, True, False, True, False])
    assert names(differing(none)) == []
    assert names(differing(differing(none))) == []


def test_what_is_learned_from() -> None:
    """Equal groups leave for an algorithm that drops them, and what refills drew beyond a step's number of groups."""
    assert names(kept(answered(), ALGORITHMS["dapo"], 9)) == ["q0", "q2", "q4"]
    assert names(kept(answered(), ALGORITHMS["dapo"], 2)) == ["q0", "q2"]
    assert names(kept(answered(), ALGORITHMS["grpo"], 2)) == names(answered())


@pytest.mark.parametrize(("count", "sizes"), [(1, [5]), (2, [3, 2]), (3, [2, 2, 1]), (5, [1] * 5), (9, [1] * 5)])
def test_minibatches_are_whole_groups_with_the_advantages_of_the_batch(count: int, sizes: list[int]) -> None:
    rollout, algorithm = answered(), ALGORITHMS["reinforce_pp"]
    want = algorithm.advantage(rollout.reward_NG)
    parts = list(minibatches(rollout, rollout.reward_NG, algorithm, 2, count))
    assert [len(part.looks) for part, _ in parts] == sizes * 2
    for half in (parts[: len(sizes)], parts[len(sizes) :]):
        assert [name for part, _ in half for name in names(part)] == names(rollout)
        torch.testing.assert_close(torch.cat([advantage for _, advantage in half]), want)
    assert list(minibatches(NOTHING, NOTHING.reward_NG, algorithm, 2, count)) == []


def test_a_penalty_is_part_of_the_reward() -> None:
    rollout = answered()
    punished = shaped(rollout, max_tokens=10, margin=4)
    assert (punished - rollout.reward_NG)[0].tolist() == [0.0, -0.75, -1.0]
    assert torch.equal(shaped(rollout, 10, 0), rollout.reward_NG)
    assert not shaped(NOTHING, 10, 4).numel()


def test_what_to_watch() -> None:
    found = health(answered())
    assert found["reward"] == pytest.approx(sum(map(sum, REWARDS)) / 15)
    assert found["accuracy"] == pytest.approx(5 / 15)
    assert found["format"] == pytest.approx(11 / 15)
    assert found["length"] == pytest.approx(sum(map(sum, LENGTHS)) / 15)
    assert found["finished"] == pytest.approx(12 / 15)
    assert (found["groups_all_right"], found["groups_all_wrong"]) == (1 / 5, 3 / 5)
    assert found["reward_mine"] == pytest.approx(sum(map(sum, REWARDS)) / 30)
    spread = [torch.tensor(own).std(correction=0).item() for own in REWARDS]
    assert found["reward_std"] == pytest.approx(sum(spread) / 5)


def test_without_known_answers_there_is_no_accuracy() -> None:
    rollout = answered()
    unknown = replace(rollout, scores=tuple(tuple(replace(s, correct=None) for s in own) for own in rollout.scores))
    found = health(unknown)
    assert all(math.isnan(found[name]) for name in ("accuracy", "groups_all_right", "groups_all_wrong"))
    assert found["reward"] == health(rollout)["reward"]
    half = replace(rollout, scores=(*unknown.scores[:3], *rollout.scores[3:]))
    assert (health(half)["groups_all_right"], health(half)["groups_all_wrong"]) == (1 / 2, 1 / 2)
    assert health(half)["accuracy"] == pytest.approx(3 / 6)


def test_the_last_tenth_of_the_steps() -> None:
    rows = [{"reward": float(n), "length": None, "accuracy": None if n == 28 else 1.0 * n} for n in range(30)]
    found = late(rows, ("reward", "length", "accuracy"))
    assert found == {"reward": 28.0, "length": None, "accuracy": 28.0}  # steps without a number do not count as 0
    assert late(rows[:4], ("reward",)) == {"reward": 3.0}
