"""Rows of all ranks, with a gradient: what goes out comes back summed.

S rows of this rank, U of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from longtake.parallel.axis import Axis


def gathered(x: Tensor, counts: Sequence[int], axis: Axis, known: Tensor | None = None) -> Tensor:
    """[U, …] the rows of all ranks, of which this one gives x [S, …]; its gradient is the sum of all ranks' for x.

    `known`: the value, where it was gathered before: then only the gradient travels. Summed in float32 at least.
    """
    return x if axis.size == 1 else _Gathered.apply(x, list(counts), axis, known)


def swapped(x: Tensor, give: Sequence[int], take: Sequence[int], axis: Axis) -> Tensor:
    """`Axis.swap` with a gradient."""
    return x if axis.size == 1 else _Swapped.apply(x, list(give), list(take), axis)


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: list[int], axis: Axis, known: Tensor | None) -> Tensor:
        ctx.counts, ctx.axis, ctx.dtype = counts, axis, x.dtype
        return axis.rows(x, counts) if known is None else known.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        wide = grads[0].to(torch.promote_types(ctx.dtype, torch.float32))
        return ctx.axis.home(wide, ctx.counts).to(ctx.dtype), None, None, None


class _Swapped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, give: list[int], take: list[int], axis: Axis) -> Tensor:
        ctx.give, ctx.take, ctx.axis = give, take, axis
        return axis.swap(x, give, take)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.axis.swap(grads[0], ctx.take, ctx.give), None, None, None
