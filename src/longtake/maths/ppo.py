"""PPO's numbers: shaped rewards, advantages and returns, whitening, the value loss, the weight of the KL.

R answer tokens of A answers, each answer's in order and behind those of the one before; answer_R says whose a token is
and indexes score_A. There is no padding, so nothing averages over it. Only `value_loss` and `whiten` carry a gradient.

Where VLM-RLAIF's released code (yonseivnl/vlm-rlaif) does otherwise:
- it averages losses and whitens over padding, and ranks of unequal padding count alike; here a sum is over real tokens;
- it puts the score on the last slot of the PADDED answer; here it is on the last real token. With discount = lam = 1
  the advantages are the same; else credit passes through the values of padding;
- it multiplies score, penalties and KL together by 10, so that its KL weight is 1 and its penalties -80 and -100; here
  `Shaping.scale` is 1 unless set;
- its "k1" is max(k1, 0), which no longer estimates the KL (its mean is above it); here that is "k1-positive".
The policy's loss is `loss.clipped_surrogate`, its weights the advantages.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import torch

from longtake.maths.loss import LossTerms, kl_k1, kl_k3, without_kl

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

KLKind = Literal["k1", "k1-positive", "k3"]
SMALL = 1e-8  # beside a deviation that may be 0


def gae(
    reward_R: Float[Tensor, " R"],
    value_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    discount: float,
    lam: float,
) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
    """(advantage_R, return_R): generalized advantage estimation (arXiv:1506.02438 eq. 11-16), without gradient.

    value_R is the value before a token, as the state behind the token before it gives it. After an answer's last token,
    whether it ended or was cut off, the value is 0. return = advantage + value, what the value model learns. Raises
    ValueError if answers are not in order.
    """
    _in_order(answer_R)
    _, row_R, length_A = answer_R.unique_consecutive(return_inverse=True, return_counts=True)
    answers, longest = len(length_A), int(length_A.max()) if len(length_A) else 0
    place_R = torch.arange(len(row_R), device=row_R.device) - (length_A.cumsum(0) - length_A)[row_R]
    value_AL, reward_AL = (x.new_zeros(answers, longest + 1) for x in (value_R, reward_R))
    value_AL[row_R, place_R], reward_AL[row_R, place_R] = value_R.detach(), reward_R.detach()
    advantage_AL = torch.zeros_like(value_AL)  # a column of zeros behind the last: the end of all
    for t in reversed(range(longest)):  # behind an answer's end all is 0
        delta_A = reward_AL[:, t] + discount * value_AL[:, t + 1] - value_AL[:, t]
        advantage_AL[:, t] = delta_A + discount * lam * advantage_AL[:, t + 1]
    advantage_R = advantage_AL[row_R, place_R]
    return advantage_R, advantage_R + value_R.detach()


def whiten(x_R: Float[Tensor, " R"], *, shift_mean: bool = True, correction: int = 1) -> Float[Tensor, " R"]:
    """(x - mean) / (std + 1e-8) over all tokens; without shift_mean the mean is added again (for rewards).

    correction 1: the sample deviation (n - 1), as TRL's PPO and all of `advantage`; 0: that of VLM-RLAIF (n). The
    batch must be whole: whitening parts is another thing. One token alone is its mean.
    """
    mean = x_R.mean() if len(x_R) else 0.0
    std = x_R.std(correction=correction) if len(x_R) > 1 else 0.0
    white_R = (x_R - mean) / (std + SMALL)
    return white_R if shift_mean else white_R + mean


@dataclass(frozen=True, slots=True)
class Shaping:
    """What beside score and KL weight makes the reward of tokens; penalties are in units of the score.

    Example: Shaping(); VLM-RLAIF's is Shaping("k1-positive", unfinished=8, length=10, max_tokens=896, scale=10).
    """

    kl: KLKind = "k1"
    unfinished: float = 0.0  # taken from the score of an answer without its end token
    length: float = 0.0  # × tokens / max_tokens, taken from every score
    max_tokens: int = 0  # of an answer, for `length`
    scale: float = 1.0  # of everything: scores, penalties, KL

    def __post_init__(self) -> None:
        if self.length and self.max_tokens < 1:
            raise ValueError(f"a penalty of length needs max_tokens > 0, got {self.max_tokens}")


PLAIN = Shaping()


def token_kl(logprob_R: Float[Tensor, " R"], reference_R: Float[Tensor, " R"], kind: KLKind) -> Float[Tensor, " R"]:
    """An estimate of KL(policy || reference) at every token the policy sampled, without gradient.

    "k1": unbiased, of either sign; "k3": unbiased, never negative (see `loss`); "k1-positive": max(k1, 0), as
    VLM-RLAIF's, biased upwards.
    """
    logprob_R, reference_R = logprob_R.detach(), reference_R.detach()
    if kind == "k3":
        return kl_k3(logprob_R, reference_R)
    kl_R = kl_k1(logprob_R, reference_R)
    return kl_R if kind == "k1" else kl_R.clamp(min=0)


def shaped_rewards(
    score_A: Float[Tensor, " A"],
    logprob_R: Float[Tensor, " R"],
    reference_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    finished_A: Bool[Tensor, " A"],
    *,
    beta: float,
    shaping: Shaping = PLAIN,
) -> Float[Tensor, " R"]:
    """-beta × KL on every token, the score less its penalties on an answer's last one; without gradient.

    logprob_R: of the policy that sampled; finished_A: which answers hold their end token. Raises ValueError for an
    answer without tokens (its score would be lost) and for answers out of order.
    """
    _in_order(answer_R)
    length_A = answer_R.bincount(minlength=len(score_A))
    if len(length_A) != len(score_A) or not bool(length_A.all()):
        raise ValueError(f"{len(score_A)} scores need tokens of as many answers, got {length_A.tolist()}")
    end_A = score_A.detach() - shaping.unfinished * (~finished_A).to(score_A.dtype)
    if shaping.length:
        end_A = end_A - shaping.length * length_A.to(end_A.dtype) / shaping.max_tokens
    reward_R = -beta * token_kl(logprob_R, reference_R, shaping.kl)
    return shaping.scale * reward_R.index_add(0, length_A.cumsum(0) - 1, end_A.to(reward_R.dtype))


def value_loss(
    value_R: Float[Tensor, " R"],
    old_value_R: Float[Tensor, " R"],
    return_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"] | None = None,
    *,
    clip: float,
) -> LossTerms:
    """½ max((V - return)², (V held within `clip` of the old V - return)²), summed over tokens, as TRL and VLM-RLAIF.

    A `Loss` whose columns are old values for old log-probabilities and returns for weights: a return of 0 is one like
    others, all tokens count. answer_R is not read. clip = inf: the plain square. `clipped`: tokens whose gradient the
    clip cut; `watched`: "error" is the sum of (V - return)².
    """
    bounded_R = value_R.clamp(old_value_R - clip, old_value_R + clip)
    free_R, bound_R = (value_R - return_R).square(), (bounded_R - return_R).square()
    count = torch.tensor(len(value_R), device=value_R.device)
    watched = {"error": free_R.detach().sum()}
    return without_kl(torch.maximum(free_R, bound_R).sum() / 2, count, (bound_R > free_R).sum(), watched)


def _in_order(answer_R: Tensor) -> None:
    if bool((answer_R.diff() < 0).any()):
        raise ValueError("the tokens of an answer must lie together, and answers in order")


class KLWeight(Protocol):
    """The KL's weight in the reward, and the one of the next step."""

    @property
    def beta(self) -> float: ...

    def after(self, kl: float, count: float) -> KLWeight: ...


@dataclass(frozen=True, slots=True)
class FixedKL:
    """The same weight for ever. Example: FixedKL(0.1)."""

    beta: float

    def after(self, kl: float, count: float) -> FixedKL:
        return self


@dataclass(frozen=True, slots=True)
class AdaptiveKL:
    """A weight that follows the measured KL to a target (arXiv:1909.08593 §2.2): up where it is above, else down.

    kl and target have one unit (nats an answer, or a token), count and horizon another (answers, or tokens, of a
    step): the paper's K_β is count / horizon, at most 1 here, so that no step moves the weight by more than a fifth.
    Example: AdaptiveKL(0.1, target=6.0, horizon=10_000).after(kl=7.2, count=256).beta == 0.1 × (1 + 0.2 × 0.0256).
    """

    beta: float
    target: float
    horizon: float

    def after(self, kl: float, count: float) -> AdaptiveKL:
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        return replace(self, beta=self.beta * (1 + error * min(count / self.horizon, 1)))
