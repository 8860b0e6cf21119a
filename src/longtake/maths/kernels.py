"""Attention of equally long spans in plain matrix products, forward and backward: runs wherever torch does.

`varlen` takes it where torch has no flash kernel. The backward starts from the output and its natural log-sum-exp, as
that of FlashAttention-2 does (Dao 2023, algorithm 2), so both may be those of more keys than these.

b spans of m queries, n keys; H heads, K key/value heads, D head width; heads of one key head are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCORES = 2**26  # of one slice; up to three tensors of this size live at once (768 MiB in float32)


def forward(
    q_bHmD: Float[Tensor, "b H m D"],
    k_bKnD: Float[Tensor, "b K n D"],
    v_bKnD: Float[Tensor, "b K n D"],
    *,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b H m D"], Float[Tensor, "b H m"]]:
    """Output (dtype of q) and natural log-sum-exp of scaled scores (float32; float64 for float64). If causal, m = n.

    Queries are taken in slices of at most SCORES scores, or of one query per span where that is more.
    """
    width = torch.promote_types(q_bHmD.dtype, torch.float32)
    q, k, v = q_bHmD.to(width) * scale, k_bKnD.to(width), v_bKnD.to(width)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3])
    for rows, keys in _slices(q, k, causal):
        score = _scores(_grouped(q[:, :, rows], k), k[:, :, keys], rows, causal)
        total = score.logsumexp(-1)
        out[:, :, rows] = _headed(score.sub_(total[..., None]).exp_() @ v[:, :, keys], q)
        lse[:, :, rows] = _headed(total, q)
    return out.to(q_bHmD.dtype), lse


def backward(
    grad_bHmD: Float[Tensor, "b H m D"],
    q_bHmD: Float[Tensor, "b H m D"],
    k_bKnD: Float[Tensor, "b K n D"],
    v_bKnD: Float[Tensor, "b K n D"],
    out_bHmD: Float[Tensor, "b H m D"],
    lse_bHm: Float[Tensor, "b H m"],
    *,
    causal: bool,
    scale: float,
) -> tuple[Float[Tensor, "b H m D"], Float[Tensor, "b K n D"], Float[Tensor, "b K n D"]]:
    """Gradients of q, k, v. A query whose log-sum-exp is +inf has none and gives none."""
    width = lse_bHm.dtype
    q, k, v, grad = q_bHmD.to(width) * scale, k_bKnD.to(width), v_bKnD.to(width), grad_bHmD.to(width)
    dot_bHm = (grad * out_bHmD.to(width)).sum(-1)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for rows, keys in _slices(q, k, causal):
        q_part, grad_part = _grouped(q[:, :, rows], k), _grouped(grad[:, :, rows], k)
        score = _scores(q_part, k[:, :, keys], rows, causal)
        share = score.sub_(_grouped(lse_bHm[:, :, rows], k)[..., None]).exp_()
        dv[:, :, keys] += share.mT @ grad_part
        dscore = (grad_part @ v[:, :, keys].mT).sub_(_grouped(dot_bHm[:, :, rows], k)[..., None]).mul_(share)
        dq[:, :, rows] = _headed(dscore @ k[:, :, keys], q) * scale
        dk[:, :, keys] += dscore.mT @ q_part
    return dq.to(q_bHmD.dtype), dk.to(k_bKnD.dtype), dv.to(v_bKnD.dtype)


def _slices(q_bHmD: Tensor, k_bKnD: Tensor, causal: bool) -> Iterator[tuple[slice, slice]]:
    """Runs of queries with the keys they may read."""
    (spans, heads, queries, _), keys = q_bHmD.shape, k_bKnD.shape[2]
    step = max(1, SCORES // max(1, spans * heads * keys))
    for start in range(0, queries, step):
        stop = min(start + step, queries)
        yield slice(start, stop), slice(0, stop if causal else keys)


def _scores(q: Tensor, k: Tensor, rows: slice, causal: bool) -> Tensor:
    """[b, K, H/K * rows, keys]; -inf where a key comes after the query."""
    score = q @ k.mT
    if causal:
        queries, keys = (torch.arange(i, j, device=q.device) for i, j in ((rows.start, rows.stop), (0, k.shape[2])))
        score.unflatten(2, (-1, len(queries))).masked_fill_(keys > queries[:, None], -torch.inf)
    return score


def _grouped(x: Tensor, k_bKnD: Tensor) -> Tensor:
    """[b, H, m, ...] to [b, K, H/K * m, ...]: all queries of one key head behind one another."""
    return x.unflatten(1, (k_bKnD.shape[1], -1)).flatten(2, 3)


def _headed(x: Tensor, q_bHmD: Tensor) -> Tensor:
    """[b, K, H/K * m, ...] to [b, H, m, ...]."""
    return x.unflatten(2, (q_bHmD.shape[1] // x.shape[1], -1)).flatten(1, 2)
