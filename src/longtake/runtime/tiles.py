"""The backward of one long layer, tile by tile: of all that its graph holds, attention's own tensors alone are whole.

A pre-norm decoder layer is pointwise over tokens but for attention. So it is called a tile at a time, twice: once up to
its queries, keys and values, once with attention's output given. Attention's backward in between is that of the whole
row. The layer stays transformers' own: only the attention function that it calls differs from pass to pass.

U prefix tokens, H heads, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from longtake.runtime.shared import KV, Whole
from longtake.runtime.top import Call, first, projections


@dataclass(frozen=True, slots=True)
class _Given:
    """Attention whose output is known."""

    out: Tensor  # [1, H, t, D]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self.out


def backward(
    layer: nn.Module, call: Call, over: Whole, kv: KV, gradient: Tensor, gradient_kv: list[Tensor], tokens: int
) -> Tensor:
    """The gradient of the layer's input [1, U, E]; those of parameters are added to theirs.

    gradient: of its output [1, U, E]; gradient_kv: of the row's keys and values `kv`, from what continues the prefix.
    """
    spans = [(start, min(start + tokens, call.hidden.shape[1])) for start in range(0, call.hidden.shape[1], tokens)]
    with torch.no_grad():
        parts = [projections(layer, call.hidden[:, a:b], _cut(call.other, a, b)) for a, b in spans]
    scale = parts[0].scale
    q, k, v = (torch.cat(each, 2).requires_grad_() for each in zip(*((p.q, p.k, p.v) for p in parts), strict=True))
    del parts
    with torch.enable_grad():
        whole = over.keys(k, v, kv)
        out, _ = over.attend(q, k, v, whole, scale, call.known)
    given, own = torch.empty_like(out), torch.empty_like(call.hidden)
    for a, b in spans:
        x, seen = _leaf(call.hidden[:, a:b]), _leaf(out[:, :, a:b])
        with torch.enable_grad():
            y = first(layer(x, **_cut(call.other, a, b) | {"attention": _Given(seen)}))
        y.backward(gradient[:, a:b])
        assert x.grad is not None
        assert seen.grad is not None
        own[:, a:b], given[:, :, a:b] = x.grad, seen.grad
    torch.autograd.backward([out, *whole], [given, *(g.to(x.dtype) for g, x in zip(gradient_kv, whole, strict=True))])
    del out, given, whole
    for a, b in spans:
        x = _leaf(call.hidden[:, a:b])
        with torch.enable_grad():
            part = projections(layer, x, _cut(call.other, a, b))
        grads = [whole.grad[:, :, a:b] for whole in (q, k, v) if whole.grad is not None]
        torch.autograd.backward([part.q, part.k, part.v], grads)
        assert x.grad is not None
        own[:, a:b] += x.grad
    return own


def _leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def _cut(other: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    """A layer's keywords for some of its tokens."""
    cos, sin = other["position_embeddings"]
    return other | {"position_embeddings": (cos[..., start:stop, :], sin[..., start:stop, :])}
