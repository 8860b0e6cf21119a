"""A prefix computed once for all its answers: prefill, answers on its keys and values, one backward through it.

    prefill   the prefixes forward, once; their keys and values are kept, and what the backward needs
    extend    answers on them, in as many runs as memory wants; gradients of the prefix's keys and values add up
    finish    one backward through the prefix with what has added up

Exact: the sum of the answers' losses is a function of the prefix's keys, values and last hidden states alone, so their
gradients, added over answers, are all that the prefix's own backward needs (performance.md; 2606.01143 for text).
Of the last layer only keys, values and the ends of segments are alive: nobody reads its other outputs, none is made.

U prefix tokens (of this rank, where several share them), A answer tokens, S inner segments, R scored tokens, H heads, K
key/value heads, D head width, E width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from longtake.maths.attention import extend_attention
from longtake.parallel.fsdp import held, share_backward
from longtake.records import AnswerRow, Layout, PrefixRow
from longtake.runtime import tiles
from longtake.runtime.shared import Whole
from longtake.runtime.top import Call, Kept, Pass, at_ends, first, keys

Keep = Literal["nothing", "graph", "attention", "layers", "host"]
TILE = 8192  # tokens of a layer that is computed again
Inputs = Callable[[], tuple[Tensor, Tensor | None]]  # embed_UE with features in place, DeepStack [levels, N, E] or None


class Net(Protocol):
    """The part of protocols.Model that a prefix needs."""

    @property
    def layers(self) -> nn.ModuleList: ...
    @property
    def norm(self) -> nn.Module: ...
    def embed(self, ids_T: Tensor) -> Tensor: ...
    def hidden(
        self, embed_TE: Tensor, position_3T: Tensor, visual_T: Tensor, deepstack: Tensor | None, attention: Any
    ) -> Tensor: ...


@dataclass(slots=True)
class Prefill:
    """Prefixes that were computed once. Example: prefill(model, stem(row), inputs, "layers").kv[0][0].shape."""

    over: Whole  # inner segments alone, and who has them
    kv: list[tuple[Tensor, Tensor]]  # a layer: keys and values [1, K, U, D], without a graph
    ends_SE: Tensor  # hidden states after the final norm at every segment's end; a leaf where a backward follows
    keep: Keep
    inputs: Inputs | None = None
    graph: list[Tensor] = field(default_factory=list)  # "graph": keys and values of all layers, then the ends
    calls: list[Call] = field(default_factory=list)  # "attention", "layers", "host"
    visual_U: Tensor | None = None
    added: list[tuple[Tensor, Tensor] | None] = field(default_factory=list)  # gradients of kv [U, K, D]

    @property
    def layout(self) -> Layout:
        return self.over.layout

    @property
    def tips_NE(self) -> Tensor:
        """Where every prompt's answers begin: ends of the segments that no inner one continues."""
        tips = [number for number, s in enumerate(self.layout.segments) if s.stop == s.start + s.length]
        return self.ends_SE if len(tips) == len(self.ends_SE) else self.ends_SE[tips]

    def buffers(self, layer: int, once: bool) -> tuple[Tensor, Tensor] | None:
        """Where the gradients of a layer's keys and values add up; None for a prefix without backward.

        In float32 at least; with `once`, where nothing is added to them, as wide as the kernels give them.
        """
        if self.keep == "nothing":
            return None
        found = self.added[layer]
        if found is None:
            k, v = (x[0].transpose(0, 1) for x in self.kv[layer])
            wide = k.dtype if once else torch.promote_types(k.dtype, torch.float32)
            found = self.added[layer] = (torch.zeros_like(k, dtype=wide), torch.zeros_like(v, dtype=wide))
        return found


def prefill(model: Net, row: PrefixRow, inputs: Inputs, keep: Keep, over: Whole | None = None) -> Prefill:
    """Computes the prefixes of a row without answers (`pack` without any, or `stem`).

    over: the ranks that share it (all of them call); `inputs` are then those of this rank's tokens.
    keep: "nothing" for answers alone; for a backward "graph" (fastest, most memory), "layers" (only layers' inputs;
    each layer is computed again in its backward), "attention" (these and what attention gave, which is not computed
    again) or "host" (layers' inputs in the host's memory).
    """
    again = keep in ("attention", "layers", "host")
    over = over or Whole(row.layout)
    top = Pass(model.layers, over, note=again, outputs=keep == "attention", away=keep == "host")
    with torch.set_grad_enabled(keep == "graph"), top.hooked():
        embed_UE, deepstack = inputs()
        if deepstack is not None:  # the last layer's visual places are dead
            deepstack = deepstack[: len(model.layers) - 1]
        position_3U, visual_U = over.cut(row.position_3T, 1), over.cut(row.visual_T)
        ends_SE = over.gathered(model.hidden(embed_UE, position_3U, visual_U, deepstack, top))
    made = Prefill(over, [(k.detach(), v.detach()) for k, v in top.kv], ends_SE.detach(), keep)
    if keep == "nothing":
        return made
    made.added = [None] * len(top.kv)
    made.inputs = inputs
    made.ends_SE = made.ends_SE.to(torch.promote_types(ends_SE.dtype, torch.float32)).requires_grad_()
    if keep == "graph":
        made.graph = [x for pair in top.kv for x in pair] + [ends_SE]
        return made
    made.visual_U = visual_U
    made.calls = top.calls
    return made


def extend(model: Net, made: Prefill, row: AnswerRow, *, once: bool = False) -> Tensor:
    """[R, E] hidden states that predict row.target_R: the answers on the kept keys and values.

    A backward through them adds the gradients of parameters to .grad and those of the prefix to its buffers. `once`: no
    other answers come, so the buffers need not be wider than what the kernels give.
    """
    none = torch.zeros(len(row.ids_A), dtype=torch.bool, device=row.ids_A.device)
    ends_SE = made.ends_SE
    if len(row.ids_A):
        embed_AE = model.embed(row.ids_A)
        hidden_AE = model.hidden(embed_AE, row.position_3A, none, None, _Answers(made, row.layout, once=once))
        table = torch.cat([ends_SE.to(hidden_AE.dtype), hidden_AE])
    else:
        table = ends_SE.to(made.kv[0][0].dtype)
    return embedding(row.source_R.to(table.device), table)  # table[…] adds gradients in any order on several threads


def begin(model: Net, made: Prefill, row: AnswerRow) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """`extend` without a backward, with the answers' own keys and values [1, K, A, D] of every layer."""
    kv: list[tuple[Tensor, Tensor]] = []
    attention = _Answers(made, row.layout, kv)
    none = torch.zeros(len(row.ids_A), dtype=torch.bool, device=row.ids_A.device)
    hidden_AE = model.hidden(model.embed(row.ids_A), row.position_3A, none, None, attention)
    return hidden_AE[row.source_R.to(hidden_AE.device) - len(made.ends_SE)], kv


def finish(model: Net, made: Prefill, scale: float = 1.0, tile: int = TILE) -> None:
    """The backward through the prefix, with what its answers added up times `scale`; frees all that was kept. A layer
    that is computed again is so `tile` tokens at a time.

    Raises ValueError for a prefill that kept nothing, or was finished before.
    """
    if made.inputs is None:
        raise ValueError("this prefill has no backward: it kept nothing, or was finished before")
    if made.over.any(made.ends_SE.grad is not None or any(made.added)):
        if made.keep == "graph":
            _through_graph(made, scale)
        else:
            _through_layers(model, made, scale, tile)
    else:
        share_backward(model.layers)
    made.inputs, made.graph, made.calls, made.added = None, [], [], []


def _through_graph(made: Prefill, scale: float) -> None:
    given = [gradient for layer in range(len(made.kv)) for gradient in _gradients(made, layer, scale)]
    given.append(_end_gradient(made, scale))
    live = [(x, g) for x, g in zip(made.graph, given, strict=True) if x.requires_grad]
    if live:
        torch.autograd.backward([x for x, _ in live], [g.to(x.dtype) for x, g in live])


def _through_layers(model: Net, made: Prefill, scale: float, tile: int) -> None:
    assert made.inputs is not None
    assert made.visual_U is not None
    with torch.enable_grad():
        embed_UE, deepstack = made.inputs()
    learns = _learns_from(model, embed_UE.requires_grad or (deepstack is not None and deepstack.requires_grad))
    levels = 0 if deepstack is None or not deepstack.requires_grad else min(len(deepstack), len(model.layers) - 1)
    deep: list[Tensor] = []  # gradients of DeepStack levels, last first
    gradient: Tensor | None = None  # of the layer's output [1, U, E]
    for number in reversed(range(len(model.layers))):
        call = made.calls.pop()
        call.hidden = call.hidden.to(embed_UE.device).detach()
        own = _gradients(made, number, scale)
        made.added[number] = None
        with held(model.layers[number]):
            if gradient is not None and call.hidden.shape[1] > tile and learns[number]:
                gradient = tiles.backward(model.layers[number], call, made.over, made.kv[number], gradient, own, tile)
            else:
                call.hidden.requires_grad_(learns[number])
                gradient = _through_layer(model, made, number, call, gradient, own, scale)
        if 0 < number <= levels:  # of the DeepStack level that was added to the layer's input
            deep.append(gradient[0, made.visual_U.to(gradient.device)])
        if not learns[number]:
            return
    _into_inputs(embed_UE, deepstack, gradient, deep)


def _through_layer(
    model: Net, made: Prefill, number: int, call: Call, gradient: Tensor | None, own: list[Tensor], scale: float
) -> Tensor:
    """The gradient of a layer's input; `gradient`: of its output, None for the last layer."""
    layer, hidden = model.layers[number], call.hidden
    with torch.enable_grad():
        if gradient is None:
            whole = made.over.keys(*keys(layer, hidden, call.other), made.kv[number])
            args, other = at_ends(hidden, call.other, whole, made.over)
            outputs = [made.over.gathered(model.norm(first(layer(*args, **other)))[0])]
            given = [_end_gradient(made, scale)]
        else:
            seen = Kept(made.over, call.known, made.kv[number])
            outputs = [first(layer(hidden, **call.other | {"attention": seen}))]
            whole, given = seen.kv[0], [gradient]
    live = [(x, g) for x, g in zip([*outputs, *whole], given + own, strict=True) if x.requires_grad]
    if live:
        torch.autograd.backward([x for x, _ in live], [g.to(x.dtype) for x, g in live])
    return hidden.grad if hidden.grad is not None else torch.zeros_like(hidden)


def _into_inputs(embed_UE: Tensor, deepstack: Tensor | None, gradient: Tensor | None, deep: list[Tensor]) -> None:
    """The last of the way: token embeddings, and a vision tower that is being trained."""
    assert gradient is not None
    outputs, given = [embed_UE], [gradient[0]]
    if deepstack is not None and deepstack.requires_grad:
        none = [torch.zeros_like(deepstack[0])] * (len(deepstack) - len(deep))
        outputs.append(deepstack)
        given.append(torch.stack([*reversed(deep), *none]))
    live = [(x, g) for x, g in zip(outputs, given, strict=True) if x.requires_grad]
    if live:
        torch.autograd.backward([x for x, _ in live], [g for _, g in live])


def _learns_from(model: Net, inputs: bool) -> list[bool]:
    """For every layer, whether anything that learns lies before it."""
    learns, below = [], inputs
    for layer in model.layers:
        learns.append(below)
        below = below or any(p.requires_grad for p in layer.parameters())
    return learns


def _gradients(made: Prefill, layer: int, scale: float) -> list[Tensor]:
    """Of a layer's keys and values, [1, K, U, D]."""
    added = made.added[layer]
    if added is None:
        return [torch.zeros_like(x) for x in made.kv[layer]]
    return [(x if scale == 1 else x * scale).transpose(0, 1)[None] for x in added]


def _end_gradient(made: Prefill, scale: float) -> Tensor:
    found = made.ends_SE.grad
    return torch.zeros_like(made.ends_SE) if found is None else found * scale


class _Answers:
    """Attention of answers on a prefill; no dataclass, for FSDP copies those that a layer is given, tensors and all."""

    def __init__(
        self, made: Prefill, layout: Layout, kv: list[tuple[Tensor, Tensor]] | None = None, *, once: bool = False
    ) -> None:
        """`kv`: where to keep the answers' own keys and values."""
        self.made, self.layout, self.kv, self.once = made, layout, kv, once

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        if self.kv is not None:
            self.kv.append((k, v))
        kept = self.made.kv[layer]
        return extend_attention(q, k, v, *kept, self.layout, scale=scale, into=self.made.buffers(layer, self.once))
