"""The pieces of a policy-gradient step: which algorithm, which answers, which rows. The loop itself is in the recipe.

N questions, G answers each, R answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from longtake.config import suggest
from longtake.data.rows import sift_questions
from longtake.engines.local import LocalEngine
from longtake.errors import UserError
from longtake.log import Log
from longtake.maths.advantage import Weights, equal_groups, overlong_penalty
from longtake.maths.algorithms import ALGORITHMS, Algorithm
from longtake.maths.loss import Loss, policy_gradient
from longtake.maths.pack import pack
from longtake.records import Question
from longtake.rewards.mix import Mix
from longtake.runtime.films import Look
from longtake.train.keys import batch, epoch_fits, keyed
from longtake.train.rollout import Rollout, answer, scored
from longtake.train.session import Session, encode, read_rows
from longtake.train.settings import Video
from longtake.train.step import Sums, backward, chunks


def choose(name: str, bounds: Mapping[str, float], *, on_policy: bool, refill: int = 0) -> Algorithm:
    """The algorithm of that name with the clip bounds that were set.

    Raises UserError for an unknown name, and for settings that would have no effect or a wrong one.
    """
    if name not in ALGORITHMS:
        near = suggest(name, ALGORITHMS)
        fix = f"did you mean '{near}'?" if near else f"one of {', '.join(ALGORITHMS)}"
        raise UserError(f"unknown algorithm '{name}'", where="--algorithm", fix=fix)
    algorithm = ALGORITHMS[name]
    if refill and not algorithm.drop_equal:
        raise UserError(f"{name} keeps groups of equal rewards", where="--refill", fix="leave --refill out")
    if algorithm.loss is policy_gradient and not on_policy:
        why = "its loss has no ratio: a second pass would be off-policy and uncorrected"
        raise UserError(f"{name} makes one pass", where="--epochs, --minibatches", why=why, fix="leave them at 1")
    if not bounds:
        return algorithm
    flag = f"--{next(iter(bounds)).replace('_', '-')}"
    if not (isinstance(algorithm.loss, partial) and "clip_low" in algorithm.loss.keywords):
        raise UserError(f"{name} has no clip", where=flag, fix="leave it out")
    if on_policy:
        why = "with one pass over fresh answers the ratio is 1 and nothing is clipped"
        raise UserError("a clip bound would have no effect", where=flag, why=why, fix="raise --epochs or --minibatches")
    return replace(algorithm, loss=partial(algorithm.loss, **bounds))


def weights_of(names: Sequence[str]) -> dict[str, float]:
    """("accuracy", "format=0.1") → {"accuracy": 1.0, "format": 0.1}. Raises UserError for what is no number."""
    found: dict[str, float] = {}
    for text in names:
        name, _, weight = text.partition("=")
        if name in found:
            raise UserError(f"the reward {name} is given twice", where="--reward", fix="give it once, with its weight")
        try:
            found[name] = float(weight or 1.0)
        except ValueError:
            why = f"its weight is '{weight}'"
            raise UserError(f"cannot weigh reward {name}", where="--reward", why=why, fix=f"{name}=0.5") from None
    return found


def read_questions(path: Path, wanted: int, reward: Mix, video: Video, log: Log) -> list[Question]:
    """Questions that `reward` can judge, at least the `wanted` of a step: asked twice in one step a question gets the
    same answers, draw for draw. Raises UserError.
    """
    questions = read_rows(sift_questions, path, video, log)
    reward.check(questions)
    if (count := len(questions)) < wanted:
        why = f"a step asks {wanted} different ones"
        raise UserError(f"only {count} questions to ask", where=str(path), why=why, fix=f"--questions {count}")
    return questions


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a step's answers come about. Example: answered, taken = sampler.answers(session, log)."""

    questions: Sequence[Question]
    count: int  # questions a step
    refill: int  # further draws, at most, for groups whose rewards are all equal (DAPO, arXiv:2503.14476 §3.2)
    video: Video
    reward: Mix
    heats: tuple[float, ...]  # [G] temperatures
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        if len(self.questions) < self.count:
            why = f"films that cannot be used left {len(self.questions)}, a step asks {self.count} different ones"
            raise UserError("too few questions to ask", why=why, fix=f"--questions {len(self.questions)}")

    def answers(self, session: Session, log: Log) -> tuple[Rollout, int]:
        """Scored answers to all questions asked in the step, and the place of the walk over questions after them."""
        step, taken = session.progress.step, session.progress.taken
        engine = LocalEngine(session.model, session.films.features, f"step-{step}")
        asked: Rollout | None = None
        for draw in range(1 + self.refill):
            taken = epoch_fits(taken, self.count, len(self.questions))
            picked = [self.questions[i] for i in batch(self.seed, len(self.questions), taken, self.count)]
            taken += self.count
            looks = [Look(q, self.video.policy(q, keyed(self.seed, "frames", step, q.id))) for q in picked]
            encode(session.films, looks, log)
            with log.phase("rollout"):
                key = (self.seed, "answers", step, draw)
                groups = answer(engine, session.films, looks, self.heats, self.max_tokens, *key)
            with log.phase("reward"):
                new = scored(looks, groups, self.reward)
            asked = new if asked is None else asked + new
            if len(differing(asked).looks) >= self.count:
                break
        assert asked is not None
        return asked, taken


def differing(answered: Rollout) -> Rollout:
    """The groups whose rewards are not all equal."""
    if not answered.looks:
        return answered
    return answered.chosen([not equal for equal in equal_groups(answered.reward_NG).tolist()])


def kept(answered: Rollout, algorithm: Algorithm, most: int) -> Rollout:
    """What is learned from: groups that differ, at most `most`, for an algorithm that drops equal ones; else all."""
    if not algorithm.drop_equal:
        return answered
    mixed = differing(answered)
    return mixed.chosen([place < most for place in range(len(mixed.looks))])


def overlong(kept: Rollout, max_tokens: int, margin: int) -> Tensor | None:
    """DAPO's soft punishment of answers in the last `margin` tokens before the limit; None if it is off."""
    if not margin or not kept.looks:
        return None
    return overlong_penalty(kept.length_NG, max_tokens=max_tokens, margin=margin)


def advantages(answered: Rollout, algorithm: Algorithm, penalty_NG: Tensor | None) -> Tensor:
    """[N, G] by the algorithm, of rewards with the length penalty."""
    return algorithm.advantage(answered.reward_NG if penalty_NG is None else answered.reward_NG + penalty_NG)


def minibatches(
    kept: Rollout, algorithm: Algorithm, penalty_NG: Tensor | None, epochs: int, count: int
) -> Iterator[tuple[Rollout, Tensor]]:
    """Whole groups with their advantages over all of `kept`, in `count` parts a pass, `epochs` passes."""
    if not kept.looks:
        return
    advantage_NG = advantages(kept, algorithm, penalty_NG)
    size = -(-len(kept.looks) // count)
    for _ in range(epochs):
        for start in range(0, len(kept.looks), size):
            part = kept.chosen([start <= place < start + size for place in range(len(kept.looks))])
            yield part, advantage_NG[start : start + size]


def backward_groups(
    session: Session, part: Rollout, weights: Weights, loss: Loss, tokens: int, *, on_policy: bool, temperature: float
) -> Sums:
    """Adds the gradients of the summed loss of `part`, in packed rows of at most `tokens` tokens.

    The policy is the distribution that was sampled from, so probabilities are taken at the sampling `temperature`.
    """
    items = [
        (
            group.prompt,
            [answer.ids for answer in group.answers],
            [[weight] * len(answer.ids) for weight, answer in zip(own, group.answers, strict=True)],
            [answer.logprob for answer in group.answers],
        )
        for group, own in zip(part.groups, weights.weight_NG.tolist(), strict=True)
    ]
    sums = Sums()
    for run in chunks(items, lambda item: len(item[0].ids) + sum(map(len, item[1])), tokens):
        row = pack(*(list(column) for column in zip(*run, strict=True)))
        sums += backward(session.model, session.films.features, row, loss, on_policy=on_policy, temperature=temperature)
    return sums


def health(answered: Rollout) -> dict[str, float]:
    """What to watch of a step's answers, groups that are dropped included; nan where no answer is known."""
    reward_NG = answered.reward_NG
    right_N = [[score.correct for score in own] for own in answered.scores]
    known = [own for own in right_N if None not in own]
    ends = [answer.finish == "stop" for group in answered.groups for answer in group.answers]
    parts = [score.parts for own in answered.scores for score in own]
    return {
        "reward": float(reward_NG.mean()),
        **{f"reward_{name}": sum(part[name] for part in parts) / len(parts) for name in parts[0]},
        "reward_std": float(reward_NG.std(1, correction=0).mean()),
        "accuracy": answered.accuracy,
        "format": answered.formed,
        "length": float(answered.length_NG.float().mean()),
        "finished": sum(ends) / len(ends),
        "groups_all_right": sum(map(all, known)) / len(known) if known else math.nan,
        "groups_all_wrong": sum(not any(own) for own in known) / len(known) if known else math.nan,
    }


def late(rows: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float | None]:
    """Means of these metrics over the last tenth of the steps; None where there is no number."""
    last = rows[-max(1, len(rows) // 10) :]
    found = {name: [value for row in last if (value := row[name]) is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}
