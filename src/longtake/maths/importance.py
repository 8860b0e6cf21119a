"""Answers that another process sampled, weighed for the trainer's policy: sequence-masked importance correction.

An engine in another process computes the same network with other kernels, so it samples from a distribution mu that is
not quite the trainer's pi. An answer's ratio is r = prod pi(token) / mu(token) over its tokens. It weighs r where r is
at most the cap, else nothing: a ratio beyond it says that the two disagree, and would only add variance. pi and mu are
taken at the temperature of sampling. Source: `sequence_mask`, TRL's default for vLLM (GRPOConfig, cap 3).

A answers, R their tokens behind one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from longtake.maths.loss import kl_k3

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mismatch:
    """How far engine and trainer are apart on sampled tokens. Example: mismatch(pi_R, mu_R, answer_R, 3.0).kl."""

    weight_A: Tensor  # of every answer: its ratio, 0 where masked
    kl: float  # nats a token: k3 estimate of KL(mu || pi), never negative
    gap: float  # largest difference of two log-probabilities
    mean: float  # mean difference, without its sign
    masked: float  # share of answers
    tokens: int


def mismatch(
    logprob_R: Float[Tensor, " R"], sampled_R: Float[Tensor, " R"], answer_R: Int[Tensor, " R"], cap: float
) -> Mismatch:
    """`logprob_R` are the trainer's, `sampled_R` the engine's; `answer_R` counts answers from 0, each with a token.

    `cap` 0 = no correction: every answer weighs 1. A number that is not finite masks its answer.
    """
    apart_R = logprob_R.double() - sampled_R.double()
    sums_A = torch.zeros(int(answer_R.max()) + 1, dtype=torch.float64).index_add(0, answer_R, apart_R)
    ratio_A = sums_A.exp()
    weight_A = torch.where(ratio_A <= cap, ratio_A, 0) if cap else torch.ones_like(ratio_A)
    return Mismatch(
        weight_A,
        kl=float(kl_k3(torch.zeros_like(apart_R), apart_R).mean()),
        gap=float(apart_R.abs().max()),
        mean=float(apart_R.abs().mean()),
        masked=float((weight_A == 0).double().mean()),
        tokens=len(apart_R),
    )
