"""Log-probabilities of target tokens from hidden states, a slice of rows at a time, so that [R, V] never exists at
once.

R answer tokens, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from jaxtyping import Float, Int


@dataclass(frozen=True, slots=True)
class Scored:
    """Example: scored.logprob_R.sum().backward(); the entropy (nats) is for looking at and has no gradient."""

    logprob_R: Tensor
    entropy_R: Tensor


def score_tokens(
    head: Callable[[Tensor], Tensor],
    hidden_RE: Float[Tensor, "R E"],
    target_R: Int[Tensor, " R"],
    *,
    temperature: float = 1.0,
    rows: int = 1024,
) -> Scored:
    """log softmax(head(hidden) / temperature)[target] and the entropy of the same distribution. Sampled tokens are
    scored at the temperature they were sampled at. `head` gives logits in float32 or float64, as `Model.head` does.

    At most rows × V logits live at once: with several slices, each is computed again in the backward pass. The values
    do not depend on the slicing.
    """
    if not 0 < temperature < inf:
        raise ValueError(f"temperature must be above 0 and finite, got {temperature}")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
    parts = [
        checkpoint(_slice, head, hidden, target, temperature, use_reentrant=False)
        if len(hidden_RE) > rows and torch.is_grad_enabled()
        else _slice(head, hidden, target, temperature)
        for hidden, target in zip(hidden_RE.split(rows), target_R.split(rows), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return Scored(torch.cat(logprobs), torch.cat(entropies))


def _slice(
    head: Callable[[Tensor], Tensor], hidden_RE: Tensor, target_R: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logits_RV = head(hidden_RE) / temperature
    if logits_RV.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"log-probabilities need logits in float32, the head gave {logits_RV.dtype}")
    logprob_RV = logits_RV.log_softmax(-1)
    with torch.no_grad():
        entropy_R = torch.special.entr(logprob_RV.exp()).sum(-1)
    return logprob_RV.gather(-1, target_R[:, None])[:, 0], entropy_R
