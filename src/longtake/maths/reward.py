"""Losses of a reward model: sums over pairs of what two answers to one question score; the caller divides by its count.

A answers, P pairs: score_A[2i] is the score of the chosen answer of pair i, score_A[2i + 1] that of the rejected one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn.functional import logsigmoid

from longtake.maths.loss import LossTerms, pair_sums, watched_pairs, without_kl

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

Centring = Literal["trl", "vlm_rlaif"]


def bradley_terry(
    score_A: Float[Tensor, " A"],
    *,
    margin_P: Float[Tensor, " P"] | None = None,
    weight_P: Float[Tensor, " P"] | None = None,
    centring: float = 0.0,
    way: Centring = "trl",
    sign: float | None = None,
) -> LossTerms:
    """-log σ(r chosen - r rejected - margin), plus `centring` × what pulls scores to 0, since only differences count.

    margin_P: by how much the chosen answer should lead (Llama 2, arXiv:2307.09288 eq. 2).
    way "trl": (r chosen + r rejected)² of every pair (arXiv:2312.09244; TRL's center_rewards_coefficient, 0.01 there).
    way "vlm_rlaif": |mean over the batch of (r chosen + r rejected)| (arXiv:2402.03746, 1e-3 there). That is no sum
    over pairs, but sign × sum is, in value and gradient, if `sign` is `batch_sign` of the WHOLE batch: where a batch is
    cut into rows, score all of it without gradient first. The other way takes no sign.

    `watched`: as of a loss of pairs, with scores for rewards. Raises ValueError for an odd number of scores, or if
    `sign` and `way` disagree.
    """
    if len(score_A) % 2:
        raise ValueError(f"scores come in pairs (chosen, rejected), got {len(score_A)}")
    if (sign is not None) != (way == "vlm_rlaif"):
        raise ValueError(f'sign belongs to "vlm_rlaif" centring and only to it, got {sign} with "{way}"')
    score_P2 = score_A.view(-1, 2)
    lead_P, sum_P = score_P2[:, 0] - score_P2[:, 1], score_P2.sum(-1)
    pull_P = sum_P.square() if sign is None else sum_P * sign
    term_P = centring * pull_P - logsigmoid(lead_P if margin_P is None else lead_P - margin_P)
    total = (term_P if weight_P is None else term_P * weight_P).sum()
    count = torch.tensor(len(score_P2), device=score_A.device)
    return without_kl(total, count, torch.zeros_like(total.detach()), watched_pairs(score_P2))


def bradley_terry_of_tokens(
    scalar_R: Float[Tensor, " R"],
    margin_R: Float[Tensor, " R"],
    weight_R: Float[Tensor, " R"],
    answer_R: Int[Tensor, " R"],
    *,
    centring: float = 0.0,
    way: Centring = "trl",
    sign: float | None = None,
) -> LossTerms:
    """`bradley_terry` with the columns of a `Loss`: an answer's score is the scalar at its one token of weight not 0.

    weight_R there is the pair's weight, margin_R its margin (in place of old log-probabilities; read at the chosen
    answer's). Pairs are as in `loss.dpo`: one of which an answer is absent adds nothing. Raises ValueError if an answer
    has several tokens of weight not 0, else as `bradley_terry`.
    """
    pairs = pair_sums(scalar_R, weight_R, answer_R)
    if bool((pairs.tokens_P2 > 1).any()):
        raise ValueError("an answer has one score: at most one of its tokens may have a weight that is not 0")
    margin_P = pair_sums(margin_R, weight_R, answer_R).sum_P2[pairs.whole_P, 0]
    score_A = pairs.sum_P2[pairs.whole_P].flatten()
    weight_P = pairs.weight_P[pairs.whole_P]
    return bradley_terry(score_A, margin_P=margin_P, weight_P=weight_P, centring=centring, way=way, sign=sign)


def batch_sign(score_A: Float[Tensor, " A"]) -> float:
    """Of the sum of all scores of a batch (times weights, where pairs have some), without gradient: -1, 0 or 1."""
    return float(score_A.detach().sum().sign())
