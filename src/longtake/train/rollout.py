"""Answers to questions and their scores: what the SFT gate, difficulty, GRPO and evaluation have in common.

N questions, G answers each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from longtake.engines.local import Kept
from longtake.parallel.ranks import ONE, Ranks
from longtake.protocols import Engine
from longtake.records import Draw, Group, Prompt, Question
from longtake.rewards.format import format_reward
from longtake.rewards.mix import Mix, accuracy
from longtake.rewards.model import Scorer
from longtake.runtime.films import Films, Look
from longtake.runtime.prefix import Keep
from longtake.train.keys import keyed


@dataclass(frozen=True, slots=True)
class Scored:
    """One answer's reward and what is watched beside it.

    Example: Scored(1.1, {"accuracy": 1.0, "format": 1.0}, True, True).
    """

    reward: float
    parts: Mapping[str, float]  # by the reward's name, before weights
    correct: bool | None  # None where the row knows no answer
    formed: bool  # think / answer template kept


@dataclass(frozen=True, slots=True)
class Rollout:
    """Scored answers to some questions, in their order."""

    looks: tuple[Look, ...]  # [N]
    groups: tuple[Group, ...]  # [N]
    scores: tuple[tuple[Scored, ...], ...]  # [N][G]

    @property
    def reward_NG(self) -> Tensor:
        return torch.tensor([[score.reward for score in own] for own in self.scores], dtype=torch.float64)

    @property
    def length_NG(self) -> Tensor:
        return torch.tensor([[len(answer.ids) for answer in group.answers] for group in self.groups])

    @property
    def accuracy(self) -> float:
        """Share of right answers among those that can be checked; nan if none can."""
        known = [score.correct for own in self.scores for score in own if score.correct is not None]
        return sum(known) / len(known) if known else math.nan

    @property
    def formed(self) -> float:
        """Share of answers that keep the template."""
        flat = [score.formed for own in self.scores for score in own]
        return sum(flat) / len(flat)

    def chosen(self, keep: Sequence[bool]) -> Rollout:
        """The questions marked in `keep` [N]."""
        picked = [i for i, kept in enumerate(keep) if kept]
        return Rollout(
            tuple(self.looks[i] for i in picked),
            tuple(self.groups[i] for i in picked),
            tuple(self.scores[i] for i in picked),
        )

    def __add__(self, other: Rollout) -> Rollout:
        return Rollout(self.looks + other.looks, self.groups + other.groups, self.scores + other.scores)


NOTHING = Rollout((), (), ())


def draws(question: Question, temperatures: Sequence[float], *key: object) -> list[Draw]:
    """One draw for every temperature; the seed depends on `key`, the question and the answer's place alone."""
    return [Draw(heat, keyed(*key, question.id, place)) for place, heat in enumerate(temperatures)]


def rollout(
    engine: Engine,
    films: Films,
    looks: Sequence[Look],
    temperatures: Sequence[float],
    reward: Mix,
    max_tokens: int,
    *key: object,
) -> Rollout:
    """Samples len(temperatures) answers to every question and scores them.

    `key` names the occasion: (seed, stage, step).
    """
    groups = answer(engine, films, looks, temperatures, max_tokens, *key)
    return scored(looks, groups, reward, ranks=films.ranks)


def answer(
    engine: Engine, films: Films, looks: Sequence[Look], temperatures: Sequence[float], max_tokens: int, *key: object
) -> list[Group]:
    """The first half of `rollout`: answers without scores."""
    prompts = [films.prompt(look) for look in looks]
    return engine.generate(prompts, [draws(look.question, temperatures, *key) for look in looks], max_tokens)


def answer_kept(
    sample: Callable[..., Iterator[list[Kept]]],
    films: Films,
    looks: Sequence[Look],
    temperatures: Sequence[float],
    max_tokens: int,
    keep: Callable[[Sequence[Prompt]], Keep],
    *key: object,
) -> Iterator[tuple[list[Look], list[Kept]]]:
    """`answer` for training, a batch at a time, with the prefills that training goes on with.

    sample: an engine's `rollout` (LocalEngine's, or train.outside's).
    """
    prompts = [films.prompt(look) for look in looks]
    start = 0
    for kept in sample(prompts, [draws(look.question, temperatures, *key) for look in looks], max_tokens, keep):
        stop = start + sum(len(one.groups) for one in kept)
        yield list(looks[start:stop]), kept
        start = stop


def scored(
    looks: Sequence[Look],
    groups: Sequence[Group],
    reward: Mix,
    models: Mapping[str, Scorer] | None = None,
    ranks: Ranks = ONE,
) -> Rollout:
    """The second half of `rollout`: every answer's reward, each asked for on one of the ranks.

    `models`: those of `reward.models`, loaded.
    """
    found = {name: model(groups, ranks) for name, model in (models or {}).items()}  # [N][G] each

    def judged(n: int) -> tuple[Scored, ...]:
        told = [{name: own[n][g] for name, own in found.items()} for g, _ in enumerate(groups[n].answers)]
        answers = zip(groups[n].answers, told, strict=True)
        return tuple(score(answer.text, looks[n].question, reward, own) for answer, own in answers)

    return Rollout(tuple(looks), tuple(groups), tuple(ranks.world.deal(range(len(looks)), judged)))


def score(text: str, question: Question, reward: Mix, scores: Mapping[str, float] | None = None) -> Scored:
    """One answer's reward; right or wrong is watched whether or not it is rewarded. `scores`: see Mix."""
    mixed = reward(text, question, scores)
    correct = accuracy(text, question) >= 1.0 if question.answer else None
    return Scored(mixed.total, mixed.parts, correct, format_reward(text) >= 1.0)
