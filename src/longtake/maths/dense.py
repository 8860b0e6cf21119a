"""Causal attention of one very long span by cuDNN: on Hopper and later faster than aten's own flash kernels.

FlashAttention-3's authors measured 595 TFLOP/s for it against 370 for FlashAttention-2, forward, on an H100 (arXiv
2407.08608). It is taken from LONG tokens on, because cuDNN plans every new length anew (about a second), and only where
a trial on the device gives what the plain products of `kernels` give. Nothing here has run on a GPU yet: none was at
hand. Where it should not be taken: torch.backends.cuda.enable_cudnn_sdp(False).

aten finds cuDNN's plans by the strides of q, k and v alone: so all tensors are given in one layout, [T, heads, D].
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import torch

from longtake.maths import kernels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

aten = torch.ops.aten
LONG = 65536
TRIAL = 320  # tokens
NEAR = 2e-2  # half precision against the same in float32, relative


def takes(q_THD: Float[Tensor, "T H D"], kv_heads: int) -> bool:
    """Whether `forward` and `backward` can be had for such queries."""
    heads, width = q_THD.shape[1:]
    return (
        len(q_THD) >= LONG
        and q_THD.dtype in (torch.float16, torch.bfloat16)
        and width <= 128
        and width % 8 == 0
        and torch.backends.cuda.cudnn_sdp_enabled()
        and torch.cuda.get_device_capability(q_THD.device) >= (9, 0)
        and _right(q_THD.device, q_THD.dtype, heads, kv_heads, width)
    )


def forward(
    q_THD: Float[Tensor, "T H D"], k_TKD: Float[Tensor, "T K D"], v_TKD: Float[Tensor, "T K D"], scale: float
) -> tuple[Float[Tensor, "T H D"], Float[Tensor, "T H"]]:
    """Output and natural log-sum-exp of scaled scores, float32."""
    given = map(_headed, (q_THD, k_TKD, v_TKD))
    out, lse, *_ = aten._scaled_dot_product_cudnn_attention(*given, None, True, 0.0, True, False, scale=scale)
    return out[0].transpose(0, 1), lse.flatten(2)[0].T


def backward(
    grad_THD: Float[Tensor, "T H D"],
    q_THD: Float[Tensor, "T H D"],
    k_TKD: Float[Tensor, "T K D"],
    v_TKD: Float[Tensor, "T K D"],
    out_THD: Float[Tensor, "T H D"],
    lse_TH: Float[Tensor, "T H"],
    scale: float,
) -> tuple[Float[Tensor, "T H D"], Float[Tensor, "T K D"], Float[Tensor, "T K D"]]:
    """Gradients of q, k, v; output and log-sum-exp may be those of more keys."""
    no_dropout = torch.zeros((), dtype=torch.int64, device=q_THD.device)
    length = len(q_THD)
    gradients = aten._scaled_dot_product_cudnn_attention_backward(
        *map(_headed, (grad_THD, q_THD, k_TKD, v_TKD, out_THD)),
        lse_TH.T.contiguous()[None, ..., None],
        no_dropout,
        no_dropout,
        None,
        None,
        None,
        length,
        length,
        0.0,
        True,
        scale=scale,
    )
    dq, dk, dv = (x[0].transpose(0, 1) for x in gradients)
    return dq, dk, dv


def _headed(x: Tensor) -> Tensor:
    """[T, heads, D] to [1, heads, T, D] of contiguous tokens."""
    return x.contiguous().transpose(0, 1)[None]


@cache
def _right(device: torch.device, dtype: torch.dtype, heads: int, kv_heads: int, width: int) -> bool:
    """Whether cuDNN gives what plain products give, also with a log-sum-exp of more keys than these."""
    noise = torch.Generator(device).manual_seed(0)
    q, k, v, grad = (
        torch.randn(TRIAL, count, width, generator=noise, device=device).to(dtype)
        for count in (heads, kv_heads, kv_heads, heads)
    )
    scale = width**-0.5
    exact = _headed(q), _headed(k), _headed(v)
    want_out, want_lse = kernels.forward(*exact, causal=True, scale=scale)
    more_lse = want_lse + 0.5
    wanted = kernels.backward(_headed(grad), *exact, want_out, more_lse, causal=True, scale=scale)
    try:
        out, lse = forward(q, k, v, scale)
        found = backward(grad, q, k, v, out, more_lse[0].T, scale)
    except (RuntimeError, TypeError):  # no such op in this build, or no plan for such heads
        return False
    pairs = zip((out, *found), (want_out, *wanted), strict=True)
    return bool((lse - want_lse[0].T).abs().max() < NEAR) and all(_near(x, y[0].transpose(0, 1)) for x, y in pairs)


def _near(x: Tensor, y: Tensor) -> bool:
    return bool((x.float() - y.float()).norm() <= NEAR * y.float().norm())
