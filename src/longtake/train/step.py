"""One optimizer step: rows in, gradients summed over rows, scaled once.

It never learns which algorithm wrote the weights.

T packed tokens, R answer tokens, E model width, L feature levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.maths.logprob import score_tokens
from longtake.maths.loss import Loss, LossTerms
from longtake.protocols import Model
from longtake.records import Features, PrefixRow
from longtake.runtime.features import fill

MOST_BAD = 5  # steps in a row without a finite gradient
ON_DEVICE = ("position_3T", "visual_T", "predict_R", "target_R", "weight_R", "old_logprob_R", "answer_R")


@dataclass(frozen=True, slots=True)
class Sums:
    """What the rows of a step add up to. Example: sums.entropy / sums.tokens."""

    loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0  # k3 estimate of KL(old || new)
    tokens: float = 0.0

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in Sums.__slots__))

    def means(self) -> dict[str, float]:
        """What to watch, per token; nan where there was none."""
        tokens = self.tokens or math.nan
        return {"entropy": self.entropy / tokens, "clipped": self.clipped / tokens, "kl": self.kl / tokens}


FeaturesOf = Callable[[Sequence[str]], list[Features]]  # handles in row order → features


def backward(
    model: Model, features: FeaturesOf, row: PrefixRow, loss: Loss, *, on_policy: bool, temperature: float = 1.0
) -> Sums:
    """Forward and backward of one packed row; gradients of the SUMMED loss are added to the parameters'.

    on_policy: the weights are those that sampled, so the ratio is 1 and the old log-probabilities are the new ones.
    temperature: of the policy, as it sampled; 1 for supervised rows.
    """
    device = model.net.device
    row = replace(row, **{name: getattr(row, name).to(device) for name in ON_DEVICE})
    films = features([handle for handle in row.features if handle is not None])
    embed_TE, deepstack_LNE = fill(model, row.ids_T, row.visual_T, films)
    hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack_LNE, Row(row.layout))
    scored = score_tokens(model.head, hidden_TE[row.predict_R], row.target_R, temperature=temperature)
    old_R = scored.logprob_R.detach() if on_policy else row.old_logprob_R
    terms: LossTerms = loss(scored.logprob_R, old_R, row.weight_R, row.answer_R)
    terms.total.backward()
    live_R = row.weight_R != 0
    entropy = torch.where(live_R, scored.entropy_R, 0).sum()
    return Sums(*(float(x.detach()) for x in (terms.total, entropy, terms.clipped, terms.kl_k3, terms.count)))


def step_optimizer(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], *, count: float, lr: float, max_norm: float
) -> float:
    """Divides the summed gradients by `count`, clips, steps, clears. Returns the gradient norm before clipping.

    A norm that is not finite leaves the weights as they were and is returned for the recipe to count.
    """
    gradients = [p.grad for p in params if p.grad is not None]
    for gradient in gradients:
        gradient.div_(count)
    norm = float(nn.utils.clip_grad_norm_(params, max_norm)) if gradients else 0.0
    if gradients and torch.isfinite(torch.tensor(norm)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def count_bad(norm: float, bad: int) -> int:
    """How many steps in a row had a gradient that is not finite, this one included.

    Raises UserError at MOST_BAD: such steps change no weight, so the run would end as it began.
    """
    bad = 0 if math.isfinite(norm) else bad + 1
    if bad >= MOST_BAD:
        why = "the gradient norm was not finite; the weights were left as they are"
        fix = "lower optim.lr, check the rows, or set dtype to float32"
        raise UserError(f"{bad} steps in a row could not be made", why=why, fix=fix)
    return bad


def adamw(
    params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over what is trained, all parameters in a few calls."""
    return torch.optim.AdamW(list(params), lr=lr, betas=betas, weight_decay=weight_decay, foreach=True)


Item = TypeVar("Item")


def chunks(items: Sequence[Item], length: Callable[[Item], int], budget: int) -> Iterable[list[Item]]:
    """Runs of items whose lengths add up to at most `budget` tokens (an item longer than it stands alone)."""
    run: list[Item] = []
    for item in items:
        if run and sum(map(length, run)) + length(item) > budget:
            yield run
            run = []
        run.append(item)
    if run:
        yield run
