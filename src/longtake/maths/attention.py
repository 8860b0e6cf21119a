"""Exact attention when G answers share one long prefix: its keys and values are read once, never copied.

Row = [prefix | answer_1 | … | answer_G | next group …] or deeper, a tree of segments (`records.Layout`). Every segment
attends to itself causally and to all of the segments that it continues; the kernel calls, one per depth, are joined by
log-sum-exp. The backward gives the same kernels the *joined* output and log-sum-exp: no flash kernel differentiates
through its log-sum-exp, so leaving the join to autograd gives right values and wrong gradients.

T tokens of a row, C of them asking, A of answers, U of inner segments; H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.autograd.function import once_differentiable

from longtake.maths import varlen
from longtake.maths.spans import Plan, plan_ends, plan_row, plan_share

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from longtake.maths.share import Run
    from longtake.records import Layout

Known = tuple["Tensor", "Tensor"]  # output [T, H, D] and log-sum-exp [T, H]


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
    known: Known | None = None,
) -> Float[Tensor, "1 H T D"]:
    """Attention over a packed row, as if each answer had a row of its own: all that it continues, then itself.

    `known`: what `shared_prefix_forward` gave for the same arguments; then only the backward is computed.
    """
    plan = plan_row(layout, "all", _ragged(q), q.device)
    _check(q, plan)
    return _headed(_Joined.apply(*map(_tokens, (q, k, v)), None, None, _Given(plan, scale, known=known)))


def shared_prefix_forward(
    q: Float[Tensor, "1 H T D"],
    k: Float[Tensor, "1 K T D"],
    v: Float[Tensor, "1 K T D"],
    layout: Layout,
    *,
    scale: float,
) -> tuple[Float[Tensor, "1 H T D"], Known]:
    """`shared_prefix_attention` without a gradient, and what a later call needs to have one (it shares the output)."""
    plan = plan_row(layout, "all", _ragged(q), q.device)
    _check(q, plan)
    with torch.no_grad():
        keys, values = _tokens(k), _tokens(v)
        known = _forward(_tokens(q), keys, values, keys, values, plan, scale)
    return _headed(known[0]), known


def ends_attention(
    q: Float[Tensor, "1 H C D"],
    k: Float[Tensor, "1 K T D"],
    v: Float[Tensor, "1 K T D"],
    layout: Layout,
    *,
    scale: float,
    mine: tuple[int, ...] | None = None,
) -> Float[Tensor, "1 H C D"]:
    """`shared_prefix_attention` for the answers and the last token of every inner segment alone: of a last layer nobody
    reads more. q holds these in row order (segments of no tokens have none), k and v the whole row.

    `mine`: of a row of inner segments, only those of these numbers ask.
    """
    if mine is None:
        plan = plan_row(layout, "ends", _ragged(q), q.device)
    else:
        plan = plan_ends(layout, mine, _ragged(q), q.device)
    _check(q, plan)
    return _headed(_Joined.apply(*map(_tokens, (q, k, v)), None, None, _Given(plan, scale)))


def extend_attention(
    q: Float[Tensor, "1 H A D"],
    k: Float[Tensor, "1 K A D"],
    v: Float[Tensor, "1 K A D"],
    prefix_k: Float[Tensor, "1 K U D"],
    prefix_v: Float[Tensor, "1 K U D"],
    layout: Layout,
    *,
    scale: float,
    into: tuple[Float[Tensor, "U K D"], Float[Tensor, "U K D"]] | None = None,
) -> Float[Tensor, "1 H A D"]:
    """The answers' part of `shared_prefix_attention`, on prefix keys and values that were computed before.

    Both rows follow the layout: q, k, v hold its answers, prefix_k and prefix_v its inner segments. Gradients go to all
    five; or, with `into` (float32, float64 for float64), the backward *adds* the prefix's gK and gV to these two
    buffers, and prefix_k and prefix_v get none. There is such a backward even where q, k and v need no gradient.
    """
    lengths = (q.shape[2], prefix_k.shape[2])
    prefix = layout.stem.total
    if lengths != (layout.total - prefix, prefix):
        raise ValueError(f"(answer, prefix) tokens are {lengths}, the layout has {(layout.total - prefix, prefix)}")
    plan = plan_row(layout, "answers", _ragged(q), q.device)
    if into is not None and not q.requires_grad and torch.is_grad_enabled():
        q = q.detach().requires_grad_()
    return _headed(_Joined.apply(*map(_tokens, (q, k, v, prefix_k, prefix_v)), _Given(plan, scale, into=into)))


def share_attention(
    q: Float[Tensor, "1 H S D"],
    k: Float[Tensor, "1 K S D"],
    v: Float[Tensor, "1 K S D"],
    whole: tuple[Float[Tensor, "1 K U D"], Float[Tensor, "1 K U D"]],
    layout: Layout,
    runs: tuple[Run, ...],
    *,
    scale: float,
    known: Known | None = None,
) -> tuple[Float[Tensor, "1 H S D"], Known]:
    """`shared_prefix_attention` of a row of inner segments for the tokens of `runs` alone, which q, k and v hold.

    whole: keys and values of the row. Gradients go to all five, each key's share once: to k and v what a run reads of
    itself, to `whole` the rest. `known`: as there; it is returned as well.
    """
    plan = plan_share(layout, runs, _ragged(q), q.device)
    _check(q, plan)
    own_q, own_k, own_v, whole_k, whole_v = (_tokens(x) for x in (q, k, v, *whole))
    if known is None:
        with torch.no_grad():
            known = _forward(own_q, own_k, own_v, whole_k, whole_v, plan, scale)
    return _headed(_Joined.apply(own_q, own_k, own_v, whole_k, whole_v, _Given(plan, scale, known=known))), known


@dataclass(frozen=True, slots=True)
class _Given:
    """What _Joined takes beside tensors to differentiate."""

    plan: Plan
    scale: float
    known: Known | None = None
    into: tuple[Tensor, Tensor] | None = None


def _check(q: Tensor, plan: Plan) -> None:
    if q.shape[2] != plan.queries:
        raise ValueError(f"the row holds {q.shape[2]} tokens, its layout {plan.queries}")


def _forward(q_CHD: Tensor, k: Tensor, v: Tensor, inner_k: Tensor, inner_v: Tensor, plan: Plan, scale: float) -> Known:
    out, lse = q_CHD.new_empty(q_CHD.shape), q_CHD.new_empty(q_CHD.shape[:2], dtype=_wide(q_CHD))
    for call in plan.own:
        seen, seen_lse = varlen.forward(q_CHD, k, v, call, scale)
        call.query.places.put(out, seen)
        call.query.places.put(lse, seen_lse)
    for call in plan.cross:
        seen, seen_lse = varlen.forward(q_CHD, inner_k, inner_v, call, scale)
        at = call.query.places
        before, before_lse = at.of(out).to(lse.dtype), at.of(lse)
        share = (seen_lse - before_lse).sigmoid()[..., None]
        at.put(out, before.lerp(seen.to(lse.dtype), share))
        at.put(lse, torch.logaddexp(before_lse, seen_lse))
    return out, lse


class _Joined(torch.autograd.Function):
    """The calls and their joins; prefix_k None = the inner segments' keys are in the row itself."""

    @staticmethod
    def forward(
        ctx: Any,
        q_CHD: Tensor,
        k_TKD: Tensor,
        v_TKD: Tensor,
        prefix_k: Tensor | None,
        prefix_v: Tensor | None,
        given: _Given,
    ) -> Tensor:
        inner = (k_TKD, v_TKD) if prefix_k is None or prefix_v is None else (prefix_k, prefix_v)
        out, lse = given.known or _forward(q_CHD, k_TKD, v_TKD, *inner, given.plan, given.scale)
        ctx.save_for_backward(q_CHD, k_TKD, v_TKD, prefix_k, prefix_v, out, lse)
        ctx.given = given
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, prefix_k, prefix_v, out, lse = ctx.saved_tensors
        given, grad = ctx.given, _dense(grads[0])
        # sums of many answers' shares: in the width of the log-sum-exp (float32 for bfloat16)
        dq = q.new_empty(q.shape, dtype=lse.dtype)
        dk, dv = (x.new_empty(x.shape, dtype=lse.dtype) for x in (k, v))
        if not given.plan.covers:
            dk, dv = dk.zero_(), dv.zero_()
        for call in given.plan.own:
            shares = varlen.backward(grad, q, k, v, out, lse, call, given.scale)
            for at, total, share in zip((call.query, call.key, call.key), (dq, dk, dv), shares, strict=True):
                at.places.put(total, share)
        keys, values, gk, gv = k, v, dk, dv
        if prefix_k is not None:
            keys, values = prefix_k, prefix_v
            gk, gv = given.into or (torch.zeros_like(x, dtype=lse.dtype) for x in (keys, values))
        for call in given.plan.cross:
            shares = varlen.backward(grad, q, keys, values, out, lse, call, given.scale)
            for at, total, share in zip((call.query, call.key, call.key), (dq, gk, gv), shares, strict=True):
                at.places.add(total, share)
        inner = (None, None) if prefix_k is None or given.into else (gk.to(keys.dtype), gv.to(keys.dtype))
        return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype), *inner, None


def _ragged(q: Tensor) -> bool:
    return varlen.takes_ragged(q.device, q.dtype)


def _wide(x: Tensor) -> torch.dtype:
    """What log-sum-exp and sums are kept in."""
    return torch.promote_types(x.dtype, torch.float32)


def _dense(x: Tensor) -> Tensor:
    """Kernels want the numbers of a head behind one another."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _tokens(x: Tensor) -> Tensor:
    """[1, heads, T, D] to [T, heads, D]."""
    return _dense(x[0].transpose(0, 1))


def _headed(x: Tensor) -> Tensor:
    """[T, heads, D] to [1, heads, T, D]."""
    return x.transpose(0, 1)[None]
