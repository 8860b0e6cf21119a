"""The pieces of a PPO step: one base model with four adapters, what they say of the answers, what is learned of it.

    policy     the model's own adapter: samples, and learns
    reference  the policy at the run's start, frozen; without an adapter of its own the bare base model
    reward     `longtake reward`'s adapter and head, frozen: one score an answer
    value      began as a copy of the reward model; learns to foresee the return at every token

N questions, G answers each, A = N G answers, R answer tokens of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from longtake.maths.logprob import score_tokens
from longtake.maths.ppo import Shaping, gae, shaped_rewards, token_kl, whiten
from longtake.models import adapter_files
from longtake.protocols import Model
from longtake.records import AnswerRow, Group, Layout
from longtake.rewards.model import find
from longtake.runtime.beside import load_beside
from longtake.runtime.load import find_folder
from longtake.train.oom import Facts, facts_of
from longtake.train.rollout import Rollout
from longtake.train.rows import Item, Numbers, read_items
from longtake.train.session import Session


@dataclass(frozen=True, slots=True)
class Credit:
    """How a step's scores become what tokens are worth."""

    discount: float
    lam: float
    whiten: bool  # advantages, over all tokens of the step
    whiten_rewards: bool
    shaping: Shaping


@dataclass(frozen=True, slots=True)
class Experience:
    """A step's answers with all that is learned from them; [N] items each.

    `policy`: weights are advantages, old numbers the log-probabilities as sampled. `value`: weights are returns, old
    numbers the values before learning.
    """

    policy: list[Item]
    value: list[Item]
    numbers: dict[str, float]  # what to watch
    kl: float  # nats an answer, to the reference

    @property
    def advantages(self) -> list[list[float]]:
        """[N][G] means over an answer's tokens."""
        return [[sum(own) / len(own) for own in item.weights] for item in self.policy]


def facts(session: Session, answered: Rollout) -> Facts:
    """Of the longest prompt and its answers, as they are scored: what is said where memory is short."""
    group = max(answered.groups, key=lambda one: len(one.prompt.ids))
    layout = Layout(((len(group.prompt.ids), tuple(len(answer.ids) for answer in group.answers)),))
    visual = sum(stop - start for start, stop in group.prompt.visual)
    return facts_of(session.model, layout, "nothing", visual=visual, answer_tokens=session.passes.answer_tokens)


def rewarded(answered: Rollout, score_NG: Sequence[Sequence[float]]) -> Rollout:
    """The answers with the reward model's scores as their rewards."""
    scores = tuple(
        tuple(replace(one, reward=value, parts={"score": value}) for one, value in zip(own, values, strict=True))
        for own, values in zip(answered.scores, score_NG, strict=True)
    )
    return replace(answered, scores=scores)


def dress(model: Model, checkpoint: Path | None, start: str, reward: str | Path) -> None:
    """Puts reference and value adapters beside the policy's; the value model is the reward model, or a checkpoint's.

    start: the model that the run starts from. Raises UserError if the reward model was not trained on the same base.
    """
    if (find_folder(start) / adapter_files.CONFIG).is_file():
        load_beside(model, "reference", start, trainable=False, scalar=False)
    load_beside(model, "value", checkpoint / "value" if checkpoint else find(reward), trainable=True, scalar=True)


def experience(
    session: Session, answered: Rollout, beta: float, credit: Credit, heat: float, row_tokens: int
) -> Experience:
    """Reference and value model read every answer; KL and scores become rewards, these advantages and returns.

    heat: the temperature at which the policy sampled.
    """
    groups, model, score_NG = answered.groups, session.model, answered.reward_NG
    logprobs = [[list(answer.logprob) for answer in group.answers] for group in groups]
    flat = [answer for group in groups for answer in group.answers]
    items = [Item(group.prompt, tuple(answer.ids for answer in group.answers), _ones(group)) for group in groups]

    def likelihood(hidden_RE: Tensor, row: AnswerRow) -> Tensor:
        return score_tokens(model.head, hidden_RE, row.target_R, temperature=heat).logprob_R

    with model.adapter.using("reference" if "reference" in model.adapter.others else None):
        reference_R = _flat(read_items(session, items, likelihood, row_tokens))
    with model.adapter.using("value"):
        value_R = _flat(read_items(session, items, lambda hidden, row: model.heads["value"](hidden), row_tokens))
    logprob_R = torch.tensor([x for own in logprobs for answer in own for x in answer], dtype=torch.float64)
    answer_R = torch.arange(len(flat)).repeat_interleave(torch.tensor([len(answer.ids) for answer in flat]))
    finished_A = torch.tensor([answer.finish == "stop" for answer in flat])
    reward_R = shaped_rewards(
        score_NG.flatten(), logprob_R, reference_R, answer_R, finished_A, beta=beta, shaping=credit.shaping
    )
    shaped = float(reward_R.sum()) / len(flat)
    if credit.whiten_rewards:
        reward_R = whiten(reward_R, shift_mean=False)
    advantage_R, return_R = gae(reward_R, value_R, answer_R, discount=credit.discount, lam=credit.lam)
    kl = float(token_kl(logprob_R, reference_R, "k1").sum()) / len(flat)
    unexplained = float((return_R - value_R).var(correction=0) / return_R.var(correction=0).clamp(min=1e-12))
    numbers = {
        "score": float(score_NG.mean()), "score_std": float(score_NG.std(correction=0)), "shaped": shaped,
        "kl_ref": kl, "beta": beta,
        "value": float(value_R.mean()), "return": float(return_R.mean()),
        "advantage_std": float(advantage_R.std(correction=0)), "explained_variance": 1 - unexplained,
    }  # fmt: skip
    if credit.whiten:
        advantage_R = whiten(advantage_R)
    correction_A = torch.tensor([answer.correction for answer in flat], dtype=torch.float64)
    advantage_R = advantage_R * correction_A[answer_R]  # of answers from another process
    columns = [_split(groups, x) for x in (advantage_R, logprob_R, return_R, value_R)]
    policy = [replace(item, weights=w, old=old) for item, w, old in zip(items, columns[0], columns[1], strict=True)]
    value = [replace(item, weights=w, old=old) for item, w, old in zip(items, columns[2], columns[3], strict=True)]
    return Experience(policy, value, numbers, kl)


def _ones(group: Group) -> Numbers:
    return tuple((1.0,) * len(answer.ids) for answer in group.answers)


def _flat(found: Sequence[Sequence[Tensor]]) -> Tensor:
    return torch.cat([answer for own in found for answer in own]).double()


def _split(groups: Sequence[Group], x_R: Tensor) -> list[Numbers]:
    """[N][G][R] of the flat numbers."""
    lengths = [len(answer.ids) for group in groups for answer in group.answers]
    parts = iter(x_R.split(lengths))
    return [tuple(tuple(next(parts).tolist()) for _ in group.answers) for group in groups]
