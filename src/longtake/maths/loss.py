"""Losses: sums of per-token terms times the caller's weights; the caller divides by its count.

R answer tokens of any number of rows. `weight_R` is what the algorithm wrote (advantage, length share, row weight); a
token of weight 0 is not in the loss and cannot poison it, whatever its log-probability. So cutting a batch at answer
borders changes neither value nor gradient. All four arguments of a loss are [R]; `old_logprob_R` and `weight_R` carry
no gradient.

Losses of pairs (`dpo`, `ipo`, `simpo`; P pairs): answers 2i and 2i + 1 are the chosen and the rejected one of pair i.
`old_logprob_R` is the reference's, `weight_R` one number for all tokens of a pair. A pair of which an answer has no
token in the call adds nothing, so a batch is cut between pairs; `count` says how many there were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

if TYPE_CHECKING:
    from jaxtyping import Float, Int

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], "LossTerms"]  # logprob_R, old_logprob_R, weight_R, answer_R


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss and what to watch beside it; all are sums over tokens of non-zero weight, only `total` has a gradient.

    Example: terms.clipped / terms.count is the clipped share of tokens; terms.watched["right"] / terms.count is the
    share of pairs in the right order.
    """

    total: Tensor  # to minimise
    clipped: Tensor  # tokens whose gradient (CISPO: whose ratio) the clip cut
    kl_k1: Tensor  # estimates of KL(old || new) from tokens that old sampled: plain, and
    kl_k3: Tensor  # never negative
    count: Tensor  # tokens; of a pair loss: pairs
    watched: Mapping[str, Tensor] = field(default_factory=dict)  # further sums, by names of the loss's own


def policy_gradient(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
) -> LossTerms:
    """-w log p: REINFORCE when w is an advantage (as in RLOO, arXiv:2402.14740), cross entropy when w is a row's."""
    live_R, log_ratio_R = _live(logprob_R, old_logprob_R, weight_R)
    term_R = torch.where(live_R, logprob_R, 0) * -weight_R
    return _terms(term_R, torch.zeros_like(live_R), log_ratio_R, live_R)


cross_entropy = policy_gradient  # the same sum; two names, because recipes read better with the one they mean


def clipped_surrogate(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    clip_low: float,
    clip_high: float,
) -> LossTerms:
    """-min(r w, clip(r, 1 - low, 1 + high) w), r = p / p_old of the token: PPO (arXiv:1707.06347 eq. 7).

    Separate bounds are DAPO's clip-higher (arXiv:2503.14476 eq. 10; 0.2 and 0.28).
    """
    live_R, log_ratio_R = _live(logprob_R, old_logprob_R, weight_R)
    term_R, clipped_R = _surrogate(log_ratio_R.exp(), weight_R, clip_low, clip_high)
    return _terms(term_R, clipped_R, log_ratio_R, live_R)


def sequence_surrogate(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    clip_low: float,
    clip_high: float,
) -> LossTerms:
    """The clipped surrogate with one ratio an answer, s = exp(mean of its log r): GSPO (arXiv:2507.18071 eq. 5).

    With weights A / length the tokens of an answer add up to the paper's min(s A, clip(s) A). Tokens of weight 0
    are outside the mean; an answer's tokens must be in one call. The paper's bounds are 3e-4 and 4e-4.
    """
    live_R, log_ratio_R = _live(logprob_R, old_logprob_R, weight_R)
    answers = int(answer_R.max()) + 1 if answer_R.numel() else 0
    zeros = log_ratio_R.new_zeros(answers)
    length = zeros.index_add(0, answer_R, live_R.to(zeros.dtype)).clamp(min=1)
    ratio = (zeros.index_add(0, answer_R, log_ratio_R) / length).exp()
    term_R, clipped_R = _surrogate(ratio[answer_R], weight_R, clip_low, clip_high)
    return _terms(term_R, clipped_R, log_ratio_R, live_R)


def clipped_weight(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    clip_low: float,
    clip_high: float,
) -> LossTerms:
    """-stop_gradient(clip(r, 1 - low, 1 + high)) w log p: CISPO (MiniMax-M1, arXiv:2506.13585 eq. 4-5).

    Every token keeps its gradient; only its weight is bounded. clip_low = 1 is no lower bound, as in the paper.
    """
    live_R, log_ratio_R = _live(logprob_R, old_logprob_R, weight_R)
    ratio_R = log_ratio_R.detach().exp()
    bounded_R = ratio_R.clamp(1 - clip_low, 1 + clip_high)
    term_R = torch.where(live_R, logprob_R, 0) * -weight_R * bounded_R
    return _terms(term_R, bounded_R != ratio_R, log_ratio_R, live_R)


def dpo(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    beta: float,
    smoothing: float = 0.0,
) -> LossTerms:
    """-log σ(β log p/ref of the chosen answer - β log p/ref of the rejected one): DPO (arXiv:2305.18290 eq. 7).

    smoothing: the share of pairs taken to be the wrong way round, with the loss of that order: conservative DPO
    (Mitchell 2023, "A note on DPO with noisy preferences").
    """
    pairs = pair_sums(logprob_R - old_logprob_R, weight_R, answer_R)
    reward_P2 = beta * pairs.sum_P2
    margin_P = reward_P2[:, 0] - reward_P2[:, 1]
    term_P = -(1 - smoothing) * logsigmoid(margin_P) - smoothing * logsigmoid(-margin_P)
    return _pair_terms(pairs, term_P, reward_P2)


def ipo(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    beta: float,
) -> LossTerms:
    """(log p/ref of the chosen answer - log p/ref of the rejected one - 1 / 2β)²: IPO (arXiv:2310.12036 eq. 17, β = τ).

    log p/ref is the MEAN over an answer's tokens, as in TRL 1.16's loss_type="ipo": eq. 17 reads like a sum, but
    that grows with length, and its authors told TRL's that the paper's results are the mean's. The rewards watched are
    β × the mean.
    """
    pairs = pair_sums(logprob_R - old_logprob_R, weight_R, answer_R)
    term_P = (pairs.mean_P2[:, 0] - pairs.mean_P2[:, 1] - 1 / (2 * beta)).square()
    return _pair_terms(pairs, term_P, beta * pairs.mean_P2)


def simpo(
    logprob_R: Float[Tensor, " R"],
    old_logprob_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    beta: float,
    margin: float,
) -> LossTerms:
    """-log σ(β mean log p of the chosen answer - β mean log p of the rejected one - γ): SimPO (arXiv:2405.14734 eq. 6).

    No reference: `old_logprob_R` is not read. margin is the paper's γ (TRL's `simpo_gamma`); the "margin" watched is
    that of the rewards, before γ.
    """
    pairs = pair_sums(logprob_R, weight_R, answer_R)
    reward_P2 = beta * pairs.mean_P2
    return _pair_terms(pairs, -logsigmoid(reward_P2[:, 0] - reward_P2[:, 1] - margin), reward_P2)


def kl_k1(logprob_R: Float[Tensor, " R"], reference_R: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """log p - log ref: its mean over p's samples is KL(p || ref), the mean of its gradient is 0, so it is no loss."""
    return logprob_R - reference_R


def kl_k2(logprob_R: Float[Tensor, " R"], reference_R: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """½ (log p - log ref)²: biased as a value; the mean of its gradient over p's samples is that of KL(p || ref)."""
    return (logprob_R - reference_R).square() / 2


def kl_k3(logprob_R: Float[Tensor, " R"], reference_R: Float[Tensor, " R"]) -> Float[Tensor, " R"]:
    """ref/p - 1 - log(ref/p): KL(p || ref) on p's samples, unbiased, never negative (arXiv:2402.03300 eq. 4)."""
    log_ratio_R = reference_R - logprob_R
    return log_ratio_R.expm1() - log_ratio_R


def kl_penalty(
    logprob_R: Float[Tensor, " R"], reference_R: Float[Tensor, " R"], weight_R: Float[Tensor, " R"]
) -> Float[Tensor, ""]:
    """Sum of w × k3 to a reference model: GRPO's KL term, added to `LossTerms.total` with w = β (or β / length)."""
    live_R = weight_R != 0
    logprob_R, reference_R = (torch.where(live_R, x, 0) for x in (logprob_R, reference_R))
    return (kl_k3(logprob_R, reference_R) * weight_R).sum()


def without_kl(total: Tensor, count: Tensor, clipped: Tensor, watched: Mapping[str, Tensor]) -> LossTerms:
    """The terms of a loss whose answers tell of no KL(old || new), because old did not sample them."""
    zero = torch.zeros_like(total.detach())
    return LossTerms(total, clipped, zero, zero, count, watched)


def watched_pairs(reward_P2: Float[Tensor, "P 2"]) -> dict[str, Tensor]:
    """Sums over pairs of the chosen and the rejected answer's reward, of their margin, and of who is right.

    A margin above 0 is right, a tie half right.
    """
    chosen_P, rejected_P = reward_P2.detach().unbind(-1)
    margin_P = chosen_P - rejected_P
    right_P = (margin_P.sign() + 1) / 2
    named_P = {"chosen": chosen_P, "rejected": rejected_P, "margin": margin_P, "right": right_P}
    return {name: value_P.sum() for name, value_P in named_P.items()}


@dataclass(frozen=True, slots=True)
class PairSums:
    """Tokens of pairs, added up: [P, 2] is chosen, rejected. Absent answers are zeros, their pair is not whole."""

    sum_P2: Tensor
    mean_P2: Tensor
    tokens_P2: Tensor
    weight_P: Tensor
    whole_P: Tensor


def pair_sums(value_R: Float[Tensor, " R"], weight_R: Float[Tensor, " R"], answer_R: Int[Tensor, " R"]) -> PairSums:
    """Over tokens of non-zero weight. Raises ValueError if the tokens of a pair have several weights."""
    live_R, pair_R = weight_R != 0, answer_R // 2
    pairs = int(pair_R.max()) + 1 if pair_R.numel() else 0
    zeros_A = value_R.new_zeros(2 * pairs)
    sum_P2 = zeros_A.index_add(0, answer_R, torch.where(live_R, value_R, 0)).view(pairs, 2)
    tokens_P2 = zeros_A.index_add(0, answer_R, live_R.to(zeros_A.dtype)).view(pairs, 2)
    weight_P = weight_R.new_zeros(pairs).index_put((pair_R[live_R],), weight_R[live_R])
    if not bool((live_R <= (weight_R == weight_P[pair_R])).all()):
        raise ValueError("the tokens of a pair must have one weight (or 0), those of a pair here have several")
    return PairSums(sum_P2, sum_P2 / tokens_P2.clamp(min=1), tokens_P2, weight_P, (tokens_P2 > 0).all(-1))


def _pair_terms(pairs: PairSums, term_P: Tensor, reward_P2: Tensor) -> LossTerms:
    total = torch.where(pairs.whole_P, term_P * pairs.weight_P, 0).sum()
    watched = watched_pairs(reward_P2[pairs.whole_P]) | {"tokens": pairs.tokens_P2[pairs.whole_P].sum()}
    return without_kl(total, pairs.whole_P.sum(), torch.zeros_like(total.detach()), watched)


def _live(logprob_R: Tensor, old_logprob_R: Tensor, weight_R: Tensor) -> tuple[Tensor, Tensor]:
    """Which tokens count, and their log p - log p_old, 0 elsewhere: masked before exp, for 0 × inf is nan."""
    live_R = weight_R != 0
    return live_R, torch.where(live_R, logprob_R - old_logprob_R, 0)


def _surrogate(ratio_R: Tensor, weight_R: Tensor, clip_low: float, clip_high: float) -> tuple[Tensor, Tensor]:
    free_R = ratio_R * weight_R
    bound_R = ratio_R.clamp(1 - clip_low, 1 + clip_high) * weight_R
    return -torch.minimum(free_R, bound_R), bound_R < free_R


def _terms(term_R: Tensor, clipped_R: Tensor, log_ratio_R: Tensor, live_R: Tensor) -> LossTerms:
    ratio_R = log_ratio_R.detach()
    zero_R = torch.zeros_like(ratio_R)
    return LossTerms(
        total=term_R.sum(),
        clipped=clipped_R.sum(),
        kl_k1=kl_k1(zero_R, ratio_R).sum(),
        kl_k3=kl_k3(zero_R, ratio_R).sum(),
        count=live_R.sum(),
    )
