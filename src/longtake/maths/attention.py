"""Exact attention when G answers share one long prefix: its keys and values are read once, never copied.

Row = [prefix | answer_1 | … | answer_G | next group …] (`records.Layout`). Every segment attends to itself causally,
every answer token also to all of its group's prefix; the two kernel calls are joined by log-sum-exp. The backward
gives the same two kernels the *joined* output and log-sum-exp: no flash kernel differentiates through its
log-sum-exp, so leaving the join to autograd gives right values and wrong gradients.

N groups, G answers of each, T row tokens, A answer tokens, U prefix tokens, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import torch

from longtake.maths import varlen

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from longtake.records import Layout


class Context(Protocol):
    """What a registered attention function calls: the meaning of one layer's attention in the pass that is running."""

    def __call__(
        self,
        layer: int,
        q: Float[Tensor, "1 H T D"],
        k: Float[Tensor, "1 K T D"],
        v: Float[Tensor, "1 K T D"],
        scale: float,
    ) -> Float[Tensor, "1 H T D"]: ...


@dataclass(frozen=True, slots=True)
class Row:
    """A pass over whole shared-prefix rows. Example: Row(Layout(((5, (2, 3)),)))."""

    layout: Layout

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return shared_prefix_attention(q, k, v, self.layout, scale=scale)


def refuse_unshareable(*, dropout: float, sliding_window: int | None) -> None:
    """Raises ValueError for settings that a shared prefix cannot hold; registered attention functions call it."""
    if dropout:
        raise ValueError(
            f"attention dropout is {dropout}: answers that share a prefix would share its mask; set it to 0"
        )
    if sliding_window is not None:
        raise ValueError(
            f"sliding window is {sliding_window}: shared-prefix attention reads the whole prefix; set it to null"
        )


def shared_prefix_attention(
    q: Float[Tensor, "1 H T D"],
    k: Float[Tensor, "1 K T D"],
    v: Float[Tensor, "1 K T D"],
    layout: Layout,
    *,
    scale: float,
) -> Float[Tensor, "1 H T D"]:
    """Attention over a packed row, as if each answer had a row [prefix | answer] of its own."""
    if q.shape[2] != layout.total:
        raise ValueError(f"the row holds {q.shape[2]} tokens, its layout {layout.total}")
    plan = _plan(layout, False, q.device)
    return _headed(_Joined.apply(_tokens(q), _tokens(k), _tokens(v), None, None, plan, scale))


def extend_attention(
    q: Float[Tensor, "1 H A D"],
    k: Float[Tensor, "1 K A D"],
    v: Float[Tensor, "1 K A D"],
    prefix_k: Float[Tensor, "1 K U D"],
    prefix_v: Float[Tensor, "1 K U D"],
    layout: Layout,
    *,
    scale: float,
) -> Float[Tensor, "1 H A D"]:
    """The answers' part of `shared_prefix_attention`, on prefix keys and values that were computed before.

    Both rows follow the layout: q, k, v hold its answers, prefix_k and prefix_v its prefixes. Gradients go to all five.
    """
    lengths = (q.shape[2], prefix_k.shape[2])
    prefix = sum(p for p, _ in layout.groups)
    if lengths != (layout.total - prefix, prefix):
        raise ValueError(f"(answer, prefix) tokens are {lengths}, the layout has {(layout.total - prefix, prefix)}")
    plan = _plan(layout, True, q.device)
    return _headed(_Joined.apply(*map(_tokens, (q, k, v, prefix_k, prefix_v)), plan, scale))


@dataclass(frozen=True, slots=True)
class _Plan:
    own: varlen.Spans  # every segment on itself
    cross: varlen.Spans | None  # the answers of a group, neighbours, on its prefix


@lru_cache(maxsize=8)  # layers ask for the same one in turn; a long row has megabytes of places
def _plan(layout: Layout, answers_only: bool, device: torch.device) -> _Plan:
    own: list[varlen.Span] = []
    cross: list[varlen.Span] = []
    at = prefix_at = 0  # in the row and, if prefixes have a row of their own, in that
    for prefix, answers in layout.groups:
        start = prefix_at if answers_only else at
        if not answers_only:
            own.append((at, prefix, at, prefix))
            at += prefix
        prefix_at += prefix
        cross.append((at, sum(answers), start, prefix))
        for length in answers:
            own.append((at, length, at, length))
            at += length
    own = [span for span in own if span[1]]
    cross = [span for span in cross if span[1] and span[3]]
    keys = prefix_at if answers_only else at
    return _Plan(
        varlen.plan(own, causal=True, queries=at, keys=at, device=device),
        varlen.plan(cross, causal=False, queries=at, keys=keys, device=device) if cross else None,
    )


class _Joined(torch.autograd.Function):
    """Both kernels and their join; prefix_k None = the prefix's keys are in the row itself."""

    @staticmethod
    def forward(
        ctx: Any,
        q_THD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        plan: _Plan,
        scale: float,
    ) -> Tensor:
        out, lse = varlen.forward(q_THD, k_TKD, v_TKD, plan.own, scale)
        if plan.cross is not None:
            keys, values = (k_TKD, v_TKD) if prefix_k is None or prefix_v is None else (prefix_k, prefix_v)
            seen, seen_lse = varlen.forward(q_THD, keys, values, plan.cross, scale)
            at = plan.cross.query
            own_lse = lse[at]
            joined = torch.logaddexp(own_lse, seen_lse)
            share, seen_share = (own_lse - joined).exp()[..., None], (seen_lse - joined).exp()[..., None]
            out[at] = (out[at] * share + seen * seen_share).to(out.dtype)
            lse[at] = joined
        ctx.save_for_backward(q_THD, k_TKD, v_TKD, prefix_k, prefix_v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        (grad,) = grads
        plan, scale = ctx.plan, ctx.scale
        # sums of many answers' shares: in the width of the log-sum-exp (float32 for bfloat16)
        dq, dk, dv = (x.to(lse.dtype) for x in varlen.backward(grad, q, k, v, out, lse, plan.own, scale))
        prefix_dk = prefix_dv = None
        if prefix_k is not None:
            prefix_dk, prefix_dv = (torch.zeros_like(x) for x in (prefix_k, prefix_v))
        if plan.cross is not None:
            keys, values = (k, v) if prefix_k is None else (prefix_k, prefix_v)
            seen_dq, seen_dk, seen_dv = varlen.backward(grad, q, keys, values, out, lse, plan.cross, scale)
            dq[plan.cross.query] += seen_dq
            if prefix_dk is None or prefix_dv is None:
                dk[plan.cross.key] += seen_dk
                dv[plan.cross.key] += seen_dv
            else:
                prefix_dk[plan.cross.key] = seen_dk
                prefix_dv[plan.cross.key] = seen_dv
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), prefix_dk, prefix_dv, None, None


def _tokens(x: Tensor) -> Tensor:
    """[1, heads, T, D] to [T, heads, D]."""
    return x[0].transpose(0, 1)


def _headed(x: Tensor) -> Tensor:
    """[T, heads, D] to [1, heads, T, D]."""
    return x.transpose(0, 1)[None]


def decode_attention(
    q: Float[Tensor, "NG H 1 D"],
    prefix_k: Float[Tensor, "N K P D"],
    prefix_v: Float[Tensor, "N K P D"],
    prefix_length_N: Int[Tensor, " N"],
    own_k: Float[Tensor, "NG K t D"],
    own_v: Float[Tensor, "NG K t D"],
    *,
    scale: float,
) -> Float[Tensor, "NG H 1 D"]:
    """One new token of every answer, on its question's prefix (padded at the end to P) and its own t tokens, itself
    included.

    Answers of one question are neighbours; none copies its prefix. Half precision: scores and softmax are in float32
    (the keys are widened for it), the shares rounded again to meet the values, as in flash kernels. No gradient is
    needed.
    """
    questions, kv_heads, longest, width = prefix_k.shape
    rows, heads = q.shape[:2]
    answers = rows // questions
    if answers * questions != rows or own_k.shape[0] != rows:
        raise ValueError(f"{rows} queries and {own_k.shape[0]} answers do not share {questions} questions evenly")
    # [N, K, G * heads of one key head, …] against the prefix; [N * G, K, heads of one key head, …] against own tokens
    exact = torch.promote_types(q.dtype, torch.float32)
    own_q = q.to(exact).reshape(rows, kv_heads, heads // kv_heads, width) * scale
    prefix_q = _by_question(own_q, questions)
    prefix_score = prefix_q @ prefix_k.to(exact).mT
    beyond = torch.arange(longest, device=q.device) >= prefix_length_N[:, None]
    prefix_score = prefix_score.masked_fill(beyond[:, None, None], -torch.inf)
    own_score = _by_question(own_q @ own_k.to(exact).mT, questions)
    share = torch.cat([prefix_score, own_score], -1).softmax(-1).to(q.dtype)
    out = _by_answer(share[..., :longest] @ prefix_v, answers) + _by_answer(share[..., longest:], answers) @ own_v
    return out.reshape(rows, heads, 1, width)


def _by_question(x: Tensor, questions: int) -> Tensor:
    """[N * G, K, h, n] to [N, K, G * h, n]."""
    return x.unflatten(0, (questions, -1)).transpose(1, 2).flatten(2, 3)


def _by_answer(x: Tensor, answers: int) -> Tensor:
    """[N, K, G * h, n] to [N * G, K, h, n]."""
    return x.unflatten(2, (answers, -1)).transpose(1, 2).flatten(0, 1)
