"""Critic-free advantages: the rewards of every group in, one number an answer out; token weights come last.

N questions (groups), G answers of one question. Rewards are one number an answer; none of these functions carries a
gradient. A group is *equal* when its answers all have the same reward: it holds no signal, and gets exact zeros from
every function that subtracts the group's mean. `std` is the sample deviation (n - 1), as TRL and verl take it; the
papers leave it open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

Normaliser = Literal["batch tokens", "per answer mean", "constant"]


def equal_groups(reward_NG: Float[Tensor, "N G"]) -> Bool[Tensor, " N"]:
    """Which groups have the same reward for all answers. DAPO (arXiv:2503.14476 §3.2) samples others in their place."""
    return reward_NG.amax(-1) == reward_NG.amin(-1)


def group_mean(reward_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """A = r - mean(group): Dr. GRPO (arXiv:2503.20783 §3.2)."""
    return torch.where(equal_groups(reward_NG)[:, None], 0, reward_NG - reward_NG.mean(-1, keepdim=True))


def group_normalised(reward_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """A = (r - mean(group)) / std(group): GRPO (arXiv:2402.03300 §4.1.2) and DAPO (arXiv:2503.14476 eq. 9)."""
    if reward_NG.shape[-1] < 2:
        raise ValueError(f"group_normalised needs at least 2 answers a question, got {reward_NG.shape[-1]}")
    deviation_N1 = reward_NG.std(-1, keepdim=True)
    return torch.where(equal_groups(reward_NG)[:, None], 0, group_mean(reward_NG) / deviation_N1)


def batch_scale(reward_NG: Float[Tensor, "N G"]) -> float:
    """1 / std(rewards of all groups that are not equal), 0 if all are: longtake's default, times `group_mean`.

    Group mean with batch deviation is Lite PPO's (arXiv:2508.08221); a question that is nearly always solved or failed
    is not blown up as in `group_normalised`. Equal groups leave the batch, hence its deviation too.
    """
    kept_NG = reward_NG[~equal_groups(reward_NG)]
    return 1 / float(kept_NG.std()) if kept_NG.numel() else 0.0


def one(reward_NG: Float[Tensor, "N G"]) -> float:
    """The scale of an advantage that looks at one group alone."""
    return 1.0


def leave_one_out(reward_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """A_i = r_i - mean of the other answers' rewards: RLOO (arXiv:2402.14740)."""
    answers = reward_NG.shape[-1]
    if answers < 2:
        raise ValueError(f"leave_one_out needs at least 2 answers a question, got {answers}")
    return group_mean(reward_NG) * answers / (answers - 1)


def batch_normalised(reward_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """A = (r - mean(batch)) / std(batch): REINFORCE++ (arXiv:2501.03262) for one reward an answer, without KL."""
    return _over_std(reward_NG - reward_NG.mean())


def group_mean_batch_normalised(reward_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """B = r - mean(group); A = (B - mean(B)) / std(B over the batch): REINFORCE++-baseline (arXiv:2501.03262)."""
    return _over_std(group_mean(reward_NG))


def _over_std(centred_NG: Float[Tensor, "N G"]) -> Float[Tensor, "N G"]:
    """Divided by the deviation over the batch; zeros when all are the same."""
    if centred_NG.amax() == centred_NG.amin():
        return torch.zeros_like(centred_NG)
    return centred_NG / centred_NG.std()


def overlong_penalty(length_NG: Int[Tensor, "N G"], *, max_tokens: int, margin: int) -> Float[Tensor, "N G"]:
    """What DAPO's soft overlong punishment adds to the reward (arXiv:2503.14476 eq. 13), in [-1, 0].

    0 up to max_tokens - margin tokens, then linear down to -1 at max_tokens, and -1 beyond. The paper: 20480 and 4096.
    """
    if not 0 < margin <= max_tokens:
        raise ValueError(f"margin must be in 1..max_tokens ({max_tokens}), got {margin}")
    return ((max_tokens - margin - length_NG) / margin).clamp(-1, 0)


@dataclass(frozen=True, slots=True)
class Weights:
    """What the rows of a batch carry. Example: Weights(weight_NG, 812.0): sum the losses, divide by 812."""

    weight_NG: Tensor  # the same for every token of an answer
    count: float  # over the whole batch


def token_weights(
    advantage_NG: Float[Tensor, "N G"], length_NG: Int[Tensor, "N G"], normaliser: Normaliser, *, max_tokens: int
) -> Weights:
    """Advantages into weights and the count by which the summed loss is divided. Lengths are in tokens.

    "batch tokens": every token counts the same (DAPO eq. 8). "per answer mean": every answer counts the same, its
    tokens share (GRPO eq. 3, GSPO eq. 5). "constant": answers × max_tokens, whatever the lengths (Dr. GRPO).
    """
    if normaliser == "batch tokens":
        return Weights(advantage_NG, float(length_NG.sum()))
    if normaliser == "per answer mean":
        return Weights(advantage_NG / length_NG.clamp(min=1), float(advantage_NG.numel()))
    return Weights(advantage_NG, float(advantage_NG.numel() * max_tokens))
