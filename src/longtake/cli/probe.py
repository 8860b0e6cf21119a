"""`plan --probe`: what this machine does, from short runs of the real core on a slice of a network of that shape.

A slice is a few decoder layers with random weights. Passes of several lengths, with and without attention, give the
rates of maths.cost forward and backward; the engine gives those of decoding, an optimizer step its own. What needs a
film or a disk stays as the device's model has it.

T tokens, H heads, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from longtake.engines.local import LocalEngine
from longtake.maths.attention import Context, Row
from longtake.maths.cost import Both, Rates
from longtake.maths.shapes import Shape
from longtake.models.decoder import Decoder
from longtake.models.quiet import quiet
from longtake.records import Draw, Layout, Prompt
from longtake.train.step import adamw, step_optimizer

MOST_LAYERS = 4
SLICE_BYTES = 16e9  # of weights, gradients and moments
SHORT, LONG = 64, 32768  # tokens of a pass
APART = 8  # from one length to the next
REPEATS = 3  # of what takes less than its share of the time
ANSWERS, STEPS = 8, (2, 26)  # of decoding


@dataclass(frozen=True, slots=True)
class Where:
    """What is measured, and by which clock: that of the wall, or time.process_time on a busy machine.

    Example: Where("cuda", torch.bfloat16).
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    clock: Callable[[], float] = time.perf_counter

    def now(self) -> float:
        """Seconds, once the device has done what it was given."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)
        return self.clock()


CPU = Where()


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds of a pass over that many tokens. Example: Point(512, 0.02, 0.05)."""

    tokens: int
    forward: float
    backward: float


class Slice(Decoder):
    """A few layers as the engine sees a model: answers never end, and nobody reads them."""

    end_ids: tuple[int, ...] = ()
    adapter = None

    def __init__(self, text: Any, lm_head: torch.nn.Linear, where: Where) -> None:
        super().__init__(text, lm_head, rope_rows=1)
        self.where = where

    @property
    def net(self) -> Any:
        return self.text

    @property
    def tokenizer(self) -> Slice:
        return self

    def decode(self, ids: Any, **_: Any) -> str:
        """Text of an answer."""
        return ""


class _Local:
    """No attention: every token reads itself, so that queries, keys and values all get a gradient."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return q + (k + v).repeat_interleave(q.shape[1] // k.shape[1], 1)


def probe(shape: Shape, rates: Rates, where: Where = CPU, seconds: float = 20.0) -> Rates:
    """`rates` with what was measured in their place, in about that many seconds."""
    model = slice_of(shape, where)
    layers = len(model.layers)
    bare = passes(model, lambda tokens: _Local(), seconds / 4, SHORT)
    calls = [_line([(p.tokens, _side(p, back)) for p in bare]) for back in (False, True)]
    whole = passes(model, lambda tokens: Row(Layout(((tokens, ()),))), seconds / 2, APART * SHORT)
    weights, flop = layers * shape.layer, 4 * layers * shape.heads * shape.head_width
    linear, attend, token = [], [], []
    for back, (call, each) in zip((False, True), calls, strict=True):
        linear.append((4 if back else 2) * weights / each)
        more = [(p.tokens / 2, max(_side(p, back) - call - each * p.tokens, 0.0) / p.tokens) for p in whole]
        own, pair = _line(more)  # a token's own part, and that of every pair
        token.append(own / layers)
        attend.append((2.5 if back else 1) * flop / max(pair, 1e-18))
    made = replace(
        rates,
        linear=Both(*linear),
        attend=Both(*attend),
        token=Both(*token),
        layer=Both(calls[0][0] / layers, calls[1][0] / layers),
        encode=linear[0] / 2,
        learn=_learning(model),
    )
    return _decoding(model, shape, made, [p.tokens for p in whole[:: max(1, len(whole) - 1)]])


def slice_of(shape: Shape, where: Where) -> Slice:
    """Random layers of that shape, as many as MOST_LAYERS and SLICE_BYTES allow, and a small head."""
    from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

    layers = int(min(shape.layers, MOST_LAYERS, max(2, SLICE_BYTES / (4 * where.dtype.itemsize * shape.layer))))
    vocab = min(shape.vocab, 4096)
    sizes: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": shape.width, "intermediate_size": shape.inner, "num_hidden_layers": layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_width,
        "max_position_embeddings": 1 << 20, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    with quiet(), torch.random.fork_rng(), torch.device(where.device):
        text: Any = Qwen3Model(Qwen3Config(**sizes)) if shape.normed else LlamaModel(LlamaConfig(**sizes))
        head = torch.nn.Linear(shape.width, vocab, bias=False)
    return Slice(text.to(where.dtype).eval(), head.to(where.dtype), where)


def passes(model: Slice, context: Callable[[int], Context], seconds: float, shortest: int) -> list[Point]:
    """Two or more points of growing length; the longest takes about a third of the seconds."""
    found: list[Point] = []
    tokens = shortest
    while True:
        point = _pass(model, context(tokens), tokens)  # also warms up
        took = point.forward + point.backward
        for _ in range(REPEATS if took < seconds / 30 else 0):
            again = _pass(model, context(tokens), tokens)
            point = Point(tokens, min(point.forward, again.forward), min(point.backward, again.backward))
        found.append(point)
        growth = APART**2 if len(found) > 1 else APART  # attention grows with the square
        if len(found) > 1 and (tokens * APART > LONG or took * growth > seconds):
            return found
        tokens *= APART


def _pass(model: Slice, context: Context, tokens: int) -> Point:
    device, dtype = model.net.device, model.net.dtype
    embed_TE = torch.randn(tokens, model.net.config.hidden_size, device=device, dtype=dtype, requires_grad=True)
    position_3T = torch.arange(tokens, device=device).expand(3, -1)
    none = torch.zeros(tokens, dtype=torch.bool, device=device)
    now = model.where.now
    with torch.no_grad():  # as a prefill; keeping a graph besides is little where memory is reused
        start = now()
        model.hidden(embed_TE, position_3T, none, None, context)
        forward = now() - start
    hidden_TE = model.hidden(embed_TE, position_3T, none, None, context)
    gradient = torch.ones_like(hidden_TE)
    start = now()
    hidden_TE.backward(gradient)
    backward = now() - start
    model.net.zero_grad(set_to_none=True)
    return Point(tokens, forward, backward)


def _decoding(model: Slice, shape: Shape, rates: Rates, prefixes: list[int]) -> Rates:
    """`rates` with those of decoding, from answers on a short and a long prefix."""
    layers = len(model.layers)
    took = [_step(model, tokens) for tokens in prefixes]
    own = (STEPS[0] + STEPS[1]) / 2
    each = (took[-1] - took[0]) / (ANSWERS * (prefixes[-1] - prefixes[0]))
    arithmetic = 2 * ANSWERS * (layers * shape.layer + model.lm_head.weight.numel()) / rates.linear.forward
    fixed = took[0] - each * ANSWERS * (prefixes[0] + own) - arithmetic
    flop = 4 * layers * shape.heads * shape.head_width
    return replace(rates, step=max(fixed, 0.0) / layers, decode=flop / max(each, 1e-15))


def _step(model: Slice, prefix: int) -> float:
    """Seconds of one token for all answers."""
    ids = tuple(range(1, 64)) * (prefix // 63 + 1)
    prompt = Prompt("probe", ids[:prefix], (), torch.arange(prefix).expand(3, -1), None, None)
    engine = LocalEngine(model, lambda handles: [], "")  # type: ignore[arg-type]  # as much of a Model as it calls
    draws = [[Draw(1.0, number) for number in range(ANSWERS)]]

    def run(steps: int) -> float:
        start = model.where.now()
        engine.generate([prompt], draws, steps)
        return model.where.now() - start

    run(1)
    few, many = (min(run(steps) for _ in range(2)) for steps in STEPS)
    return max(many - few, 1e-9) / (STEPS[1] - STEPS[0])


def _learning(model: Slice) -> float:
    """Parameters that an optimizer step handles in a second."""
    params = list(model.net.layers.parameters())
    optimizer = adamw(params, 1e-6, (0.9, 0.95), 0.0)
    took = []
    for _ in range(REPEATS):
        for param in params:
            param.grad = torch.ones_like(param)
        start = model.where.now()
        step_optimizer(optimizer, params, count=1.0, lr=1e-6, max_norm=1.0)
        took.append(model.where.now() - start)
    return sum(param.numel() for param in params) / min(took)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(fixed, each) of the line through the first and the last point; neither is negative."""
    (x, low), (y, high) = points[0], points[-1]
    each = max(high - low, 0.0) / (y - x)
    return max(low - each * x, 0.0), each


def _side(point: Point, back: bool) -> float:
    return point.backward if back else point.forward
