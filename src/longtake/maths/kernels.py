"""Attention of equally long spans in plain matrix products, forward and backward: runs wherever torch does.

`varlen` takes it where torch has no flash kernel. The backward starts from the output and its natural log-sum-exp, as
that of FlashAttention-2 does (Dao 2023, algorithm 2), so both may be those of more keys than these.

b spans of m queries, n keys; H heads, K key/value heads, D head width; heads of one key head are neighbours.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import e, log, log2
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

SCORES = 2**26  # of one slice; up to three tensors of this size live at once (768 MiB in float32)
TILE = (1024, 2**18)  # keys and scores of a tile of the backward on the CPU: two of these fit its cache


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
    """Gradients of q, k, v. A query whose log-sum-exp is +inf has none and gives none.

    Keys times queries, a tile at a time. A column of ones beside k and v takes the log-sum-exp and rowsum(dO ∘ O) off
    within the products; powers are of 2.
    """
    kv_heads, kind = k_bKnD.shape[1], lse_bHm.dtype
    q, grad, out, lse = (_placed(x, kv_heads).to(kind) for x in (q_bHmD, grad_bHmD, out_bHmD, lse_bHm[..., None]))
    k, v = (x.flatten(0, 1).to(kind) for x in (k_bKnD, v_bKnD))
    q = q * (scale * log2(e))
    q_less = torch.cat([q, lse.clamp(max=torch.finfo(kind).max / 4) * -log2(e)], -1).mT
    grad_less = torch.cat([grad, -(grad * out).sum(-1, keepdim=True)], -1).mT
    k_one, v_one = (torch.cat([x, x.new_ones(*x.shape[:2], 1)], -1) for x in (k, v))
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    share_room, dscore_room = k.new_empty(0), k.new_empty(0)
    for rows, keys, later in _tiles(q_bHmD, k_bKnD, causal):
        share = torch.bmm(k_one[:, keys], q_less[..., rows], out=share_room.resize_(0)).exp2_()
        if later is not None:
            share[:, -len(later) :].unflatten(2, (later.shape[1], -1)).masked_fill_(later[..., None], 0)
        dv[:, keys].baddbmm_(share, grad[:, rows])
        dscore = torch.bmm(v_one[:, keys], grad_less[..., rows], out=dscore_room.resize_(0)).mul_(share)
        dq[:, rows].baddbmm_(dscore.mT, k[:, keys])
        dk[:, keys].baddbmm_(dscore, q[:, rows])
    dq, dk = dq.mul_(scale), dk.mul_(log(2))
    dq = dq.unflatten(0, (-1, kv_heads)).unflatten(2, (q_bHmD.shape[2], -1)).transpose(2, 3).flatten(1, 2)
    return dq.to(q_bHmD.dtype), dk.view(k_bKnD.shape).to(k_bKnD.dtype), dv.view(v_bKnD.shape).to(v_bKnD.dtype)


def _placed(x: Tensor, kv_heads: int) -> Tensor:
    """[b, H, m, n] to [b * K, m * H/K, n]: all queries of one key head behind one another, place by place."""
    return x.unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(2, 3).flatten(0, 1)


def _tiles(q_bHmD: Tensor, k_bKnD: Tensor, causal: bool) -> Iterator[tuple[slice, slice, Tensor | None]]:
    """Rows of `_placed` queries, keys that they read, and which of the last of these keys come after which place."""
    (spans, heads, places, _), (kv_heads, keys), device = q_bHmD.shape, k_bKnD.shape[1:3], q_bHmD.device
    most, scores = TILE if device.type == "cpu" else (8192, SCORES)
    each = heads // kv_heads
    step = max(1, scores // max(1, spans * heads * min(most, keys)))
    for start in range(0, places, step):
        stop = min(start + step, places)
        for first in range(0, stop if causal else keys, most):
            last = min(first + most, stop if causal else keys)
            later = None
            if causal and last > start:
                key, place = (torch.arange(i, j, device=device) for i, j in ((max(first, start), last), (start, stop)))
                later = key[:, None] > place
            yield slice(start * each, stop * each), slice(first, last), later


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
