"""What a pass over prefixes keeps, and the last layer of it, of which only keys, values and segment ends are alive.

U prefix tokens (of this rank), S inner segments, H heads, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from longtake.maths.attention import Known
from longtake.runtime.shared import KV, Whole


@dataclass(slots=True)
class Call:
    """One layer's call: its input after any DeepStack addition, and all else it was given."""

    hidden: Tensor  # [1, U, E]
    other: dict[str, Any]  # transformers' keywords, without attention=
    known: Known | None = None  # attention's output and log-sum-exp, if kept


class Kept:
    """Attention of a row of prefixes that keeps keys and values as the layers make them."""

    def __init__(self, over: Whole, known: Known | None = None, kv: KV | None = None) -> None:
        """`known`: output and log-sum-exp of the one layer that will call, which are not computed again; `kv`: its
        keys and values, which are not gathered again.
        """
        self.over, self.known, self._kv = over, known, kv
        self.kv: list[KV] = []  # of the whole row

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        whole = self.over.keys(k, v, self._kv)
        self.kv.append(whole)
        return self.over.attend(q, k, v, whole, scale, self.known)[0]


class Pass(Kept):
    """The same for a whole pass, in which the last layer is called for the ends of segments alone."""

    def __init__(self, layers: nn.ModuleList, over: Whole, *, note: bool, outputs: bool, away: bool) -> None:
        """`note`: keep every layer's call in `calls`; `outputs`: and what its attention gave; `away`: on the host."""
        super().__init__(over)
        self.layers, self.note, self.outputs, self.away = layers, note, outputs, away
        self.calls: list[Call] = []
        self._met = 0

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Sees the layers' calls of one pass through the model."""
        handles = [layer.register_forward_pre_hook(self._see, with_kwargs=True) for layer in self.layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if not self.outputs:
            return super().__call__(layer, q, k, v, scale)
        whole = self.over.keys(k, v)
        self.kv.append(whole)
        out, self.calls[-1].known = self.over.attend(q, k, v, whole, scale, None, note=True)
        return out

    def _see(self, layer: nn.Module, args: tuple[Tensor, ...], other: dict[str, Any]) -> Any:
        (hidden,) = args
        self._met += 1
        if self.note:
            kept = _away(hidden) if self.away else hidden
            self.calls.append(Call(kept, {name: x for name, x in other.items() if name != "attention"}))
        if self._met < len(self.layers):
            return None
        whole = self.over.keys(*keys(layer, hidden, other))
        self.kv.append(whole)
        return at_ends(hidden, other, whole, self.over)


def _away(x: Tensor) -> Tensor:
    """To the host: pinned, and without waiting for the copy (the copy back runs on the same stream)."""
    if not x.is_cuda:
        return x
    return torch.empty(x.shape, dtype=x.dtype, pin_memory=True).copy_(x, non_blocking=True)


class _Enough(Exception):
    """Queries, keys and values are there: the rest of the layer is not needed."""


@dataclass(slots=True)
class Projections:
    """Attention that takes what it is given and ends the layer's call."""

    q: Tensor = field(init=False)  # [1, H, U, D]
    k: Tensor = field(init=False)  # [1, K, U, D]
    v: Tensor = field(init=False)
    scale: float = field(init=False)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        self.q, self.k, self.v, self.scale = q, k, v, scale
        raise _Enough


def projections(layer: nn.Module, hidden: Tensor, other: dict[str, Any]) -> Projections:
    """A layer's queries, keys and values, and nothing else of it."""
    taken = Projections()
    try:
        layer.forward(hidden, **other | {"attention": taken})
    except _Enough:
        return taken
    raise ValueError(f"{type(layer).__name__} never called the attention function: is it a recurrent layer?")


def keys(layer: nn.Module, hidden: Tensor, other: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Keys and values alone."""
    taken = projections(layer, hidden, other)
    return taken.k, taken.v


@dataclass(frozen=True, slots=True)
class _AtEnds:
    """Attention of every segment's last token, whose own key is among those of the row."""

    whole: KV
    over: Whole

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self.over.ends(q, self.whole, scale)


def at_ends(hidden: Tensor, other: dict[str, Any], whole: KV, over: Whole) -> tuple[tuple[Tensor], dict[str, Any]]:
    """The last layer's arguments for the ends of segments alone: position embeddings are cut along the tokens."""
    place_S = torch.tensor(over.places, device=hidden.device)
    cos, sin = other["position_embeddings"]
    cut = {"position_embeddings": (cos[..., place_S, :], sin[..., place_S, :]), "attention": _AtEnds(whole, over)}
    return (hidden[:, place_S],), other | cut


def first(out: Any) -> Tensor:
    """A layer's hidden states: older transformers return them in a tuple."""
    return out[0] if isinstance(out, tuple) else out
