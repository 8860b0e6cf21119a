"""MLPs and norms a tile of tokens at a time, computed again in the backward: what lies between exists for one tile.

At 250k tokens one intermediate of a 7B decoder's MLP is 9.5 GB and more numbers than int32 counts. A layer then keeps
its input alone (as activation checkpointing does; tiles as in ALST, arXiv 2506.13996).

T tokens, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Run = Callable[[Tensor], Tensor]


def tile(modules: Iterable[nn.Module], tokens: int = 8192) -> None:
    """From here on each of these modules, pointwise over the tokens of its input [1, T, E], takes `tokens` at a time.

    Parameters, their names and state_dict stay; modules inside may be replaced before or after (LoRA). Results and
    gradients are the same, up to how sums over tokens are rounded. Inputs of `tokens` or fewer go the plain way.
    Again is harmless, and sets `tokens` anew. Raises ValueError for tokens < 1.
    """
    if tokens < 1:
        raise ValueError(f"a tile needs at least one token, got {tokens}")
    kinds: dict[type, type] = {}
    for module in modules:
        if not isinstance(module, Tiled):
            kind = type(module)
            if kind not in kinds:
                kinds[kind] = type(f"Tiled{kind.__name__}", (Tiled, kind), {})
            module.__class__ = kinds[kind]
        assert isinstance(module, Tiled)
        module.tile_tokens = tokens


def pointwise(layers: nn.ModuleList, norm: nn.Module) -> list[nn.Module]:
    """What of a transformers decoder is pointwise over tokens: every layer's MLP and norms, and the final norm.

    Raises ValueError for layers that are built otherwise.
    """
    names = ("mlp", "input_layernorm", "post_attention_layernorm")
    found = [norm]
    for layer in layers:
        parts = dict(layer.named_children())
        if missing := [name for name in names if name not in parts]:
            raise ValueError(f"{type(layer).__name__} has no {missing[0]}: it cannot be tiled")
        found += [parts[name] for name in names]
    return found


class Tiled(nn.Module):
    """Comes before the class of a module that it turns into a tiled one (see `tile`)."""

    tile_tokens: int

    def forward(self, hidden: Tensor) -> Tensor:
        run: Run = super().forward
        if hidden.shape[1] <= self.tile_tokens:
            return run(hidden)
        learned = [p for p in self.parameters() if p.requires_grad]
        if not (torch.is_grad_enabled() and (hidden.requires_grad or learned)):
            return _run_in_tiles(run, hidden, self.tile_tokens)
        if self.training and any(isinstance(m, nn.Dropout) and m.p for m in self.modules()):
            raise ValueError(f"{type(self).__name__} has dropout, which would differ in the backward; set it to 0")
        return _Recomputed.apply(run, self.tile_tokens, hidden, *learned)


def _run_in_tiles(run: Run, hidden: Tensor, tokens: int) -> Tensor:
    out: Tensor | None = None
    for start in range(0, hidden.shape[1], tokens):
        part = run(hidden[:, start : start + tokens])
        if out is None:
            out = part.new_empty(hidden.shape[0], hidden.shape[1], *part.shape[2:])
        out[:, start : start + tokens] = part
    assert out is not None
    return out


class _Recomputed(torch.autograd.Function):
    """Keeps the input alone; the backward runs every tile again, with gradients."""

    @staticmethod
    def forward(ctx: Any, run: Run, tokens: int, hidden: Tensor, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(hidden)
        ctx.run, ctx.tokens, ctx.learned = run, tokens, learned
        return _run_in_tiles(run, hidden, tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (hidden,), (grad,) = ctx.saved_tensors, grads
        # sums over tiles in float32 at least
        sums = [torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for p in ctx.learned]
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[2] else None
        for start in range(0, hidden.shape[1], ctx.tokens):
            cut = slice(start, start + ctx.tokens)
            part = hidden[:, cut].detach().requires_grad_(hidden_grad is not None)
            wanted = [*ctx.learned] if hidden_grad is None else [part, *ctx.learned]
            with torch.enable_grad():
                out = ctx.run(part)
            found = list(torch.autograd.grad(out, wanted, grad[:, cut], allow_unused=True))
            if hidden_grad is not None:
                hidden_grad[:, cut] = found.pop(0)
            for total, share in zip(sums, found, strict=True):
                if share is not None:
                    total.add_(share)
        return None, None, hidden_grad, *(x.to(p.dtype) for x, p in zip(sums, ctx.learned, strict=True))
