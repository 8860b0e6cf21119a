"""`plan --probe`: what this machine does, from short runs of the real core on a slice of a network of that shape.

A slice is a few decoder layers with random weights. Layers without attention, attention, head, decoding and optimizer
are timed each by itself, forward and backward, where it matters at several lengths; maths.cost puts them together. What
needs a film or a disk stays as the model of the device has it.

T tokens, A answers, H heads, K key/value heads, D head width, E model width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longtake.engines.local import LocalEngine
from longtake.maths.attention import shared_prefix_attention
from longtake.maths.cost import Both, Rates, reading
from longtake.maths.decode import Level, Readers, decode_attention
from longtake.maths.logprob import score_tokens
from longtake.maths.shapes import Shape
from longtake.models.decoder import Decoder
from longtake.models.quiet import quiet
from longtake.records import Draw, Layout, Prompt
from longtake.train.step import adamw, step_optimizer

MOST_LAYERS, MOST_VOCABULARY = 4, 32768  # of a slice
SLICE_BYTES = 16e9  # of its weights, gradients and moments
SHORT, LONG, APART = 16, 32768, 4  # tokens of a pass, and from one length to the next
REPEATS = 3  # of what takes little
SHARE = 0.2  # of the seconds, for one kind of pass
SCORED = 512  # tokens
ANSWERS, STEPS, PREFIXES = 8, (2, 50), (512, 8192)  # of decoding
COPIED = 1 << 26  # numbers


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

    def timed(self, work: Callable[[], object]) -> float:
        """Seconds of the work."""
        start = self.now()
        work()
        return self.now() - start

    def random(self, *shape: int) -> Tensor:
        """A leaf that learns."""
        return torch.randn(shape, device=self.device, dtype=self.dtype, requires_grad=True)


CPU = Where()


class Slice(Decoder):
    """A few layers as the engine sees a model: answers never end, and nobody reads them."""

    end_ids: tuple[int, ...] = ()
    adapter = None

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
    layers, pair = len(model.layers), 4 * shape.heads * shape.head_width
    passes = _grown(lambda tokens: _layers(model, where, tokens), SHORT, SHARE * seconds)
    attention = _grown(lambda tokens: _attention(shape, where, tokens), 16 * SHORT, SHARE * seconds)
    call = _line([(point.tokens, point.took) for point in passes])
    token = _line([(point.tokens / 2, point.took.over(point.tokens)) for point in attention])
    head = min((_head(model, where) for _ in range(REPEATS)), key=lambda both: both.forward + both.backward)
    scored = 2 * SCORED * model.lm_head.weight.numel()
    weights = layers * shape.layer
    made = replace(
        rates,
        linear=Both(2 * weights / call.each.forward, 4 * weights / call.each.backward),
        attend=Both(pair / token.each.forward, 2.5 * pair / token.each.backward),
        head=Both(scored / head.forward, 2 * scored / head.backward),
        layer=call.fixed.over(layers),
        token=token.fixed,
        encode=weights / call.each.forward,
        memory=_memory(where),
        decode=pair / _decode_attention(shape, where),
        learn=_learning(model, where),
    )
    known = reading(
        replace(shape, layers=layers, vocab=model.lm_head.out_features), ANSWERS, where.dtype.itemsize, made
    )
    return replace(made, step=max(_step(model, where) - known, 0.0) / layers)


def slice_of(shape: Shape, where: Where) -> Slice:
    """Random layers of that shape, as many as MOST_LAYERS and SLICE_BYTES allow, and a head."""
    from transformers import LlamaConfig, LlamaModel, Qwen3Config, Qwen3Model

    layers = int(min(shape.layers, MOST_LAYERS, max(1, SLICE_BYTES / (4 * where.dtype.itemsize * shape.layer))))
    vocab = min(shape.vocab, MOST_VOCABULARY)
    sizes: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": shape.width, "intermediate_size": shape.inner, "num_hidden_layers": layers,
        "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads, "head_dim": shape.head_width,
        "max_position_embeddings": 1 << 20, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    with quiet(), torch.random.fork_rng(), torch.device(where.device):
        text: Any = Qwen3Model(Qwen3Config(**sizes)) if shape.normed else LlamaModel(LlamaConfig(**sizes))
        head = torch.nn.Linear(shape.width, vocab, bias=False)
    return Slice(text.to(where.dtype).eval(), head.to(where.dtype), rope_rows=1)


@dataclass(frozen=True, slots=True)
class Point:
    """What a pass over that many tokens took. Example: Point(512, Both(0.02, 0.05))."""

    tokens: float
    took: Both


@dataclass(frozen=True, slots=True)
class Line:
    """fixed + each × x, forward and backward."""

    fixed: Both
    each: Both


def _grown(measure: Callable[[int], Both], tokens: int, seconds: float) -> list[Point]:
    """Two or more points of growing length; together they take about the seconds."""
    found: list[Point] = []
    while True:
        took = measure(tokens)  # also warms up
        for _ in range(REPEATS if took.forward + took.backward < seconds / 40 else 1):
            again = measure(tokens)
            took = Both(min(took.forward, again.forward), min(took.backward, again.backward))
        found.append(Point(tokens, took))
        tokens *= APART
        one = took.forward + took.backward
        if len(found) > 1 and (tokens > LONG or 2 * APART * one > seconds):
            return found


def _line(points: list[tuple[float, Both]]) -> Line:
    """Through the first and the last point; nothing is negative, and a slope is never 0."""
    (x, low), (y, high) = points[0], points[-1]
    sides = []
    for first, last in ((low.forward, high.forward), (low.backward, high.backward)):
        each = max((last - first) / (y - x), 1e-3 * last / y)
        sides.append((max(first - each * x, 0.0), each))
    return Line(Both(sides[0][0], sides[1][0]), Both(sides[0][1], sides[1][1]))


def _layers(model: Slice, where: Where, tokens: int) -> Both:
    """All layers of the slice without attention."""
    embed_TE = where.random(tokens, model.net.config.hidden_size)
    position_3T = torch.arange(tokens, device=where.device).expand(3, -1)
    none = torch.zeros(tokens, dtype=torch.bool, device=where.device)

    def run() -> Tensor:
        return model.hidden(embed_TE, position_3T, none, None, _Local())

    with torch.no_grad():  # as a prefill; keeping a graph besides costs little where memory is reused
        forward = where.timed(run)
    hidden_TE = run()
    backward = where.timed(lambda: hidden_TE.backward(torch.ones_like(hidden_TE)))
    model.net.zero_grad(set_to_none=True)
    return Both(forward, backward)


def _attention(shape: Shape, where: Where, tokens: int) -> Both:
    """One layer's attention of a prefix."""
    q = where.random(1, shape.heads, tokens, shape.head_width)
    k, v = (where.random(1, shape.kv_heads, tokens, shape.head_width) for _ in range(2))
    layout = Layout(((tokens, ()),))

    def run() -> Tensor:
        return shared_prefix_attention(q, k, v, layout, scale=shape.head_width**-0.5)

    with torch.no_grad():
        forward = where.timed(run)
    out = run()
    return Both(forward, where.timed(lambda: out.backward(torch.ones_like(out))))


def _head(model: Slice, where: Where) -> Both:
    """Log-probabilities of SCORED tokens."""
    hidden_RE = where.random(SCORED, model.net.config.hidden_size)
    target_R = torch.zeros(SCORED, dtype=torch.int64, device=where.device)
    start = where.now()
    total = score_tokens(model.head, hidden_RE, target_R).logprob_R.sum()
    middle = where.now()
    total.backward()
    return Both(middle - start, where.now() - middle)


def _decode_attention(shape: Shape, where: Where) -> float:
    """Seconds of one answer's new token and one key, one layer."""
    readers = Readers.of([0] * ANSWERS, torch.device(where.device))
    q = where.random(ANSWERS, shape.heads, 1, shape.head_width).detach()
    own = where.random(ANSWERS, shape.kv_heads, 1, shape.head_width).detach()

    def part(prefix: int) -> Tensor:
        """Keys or values as the core's lie in memory: a token's heads are neighbours."""
        return where.random(1, prefix, shape.kv_heads, shape.head_width).detach().transpose(1, 2)

    def all_of(layers: list[list[Level]]) -> None:
        for levels in layers:
            decode_attention(q, levels, own, own, scale=1.0)

    def took(prefix: int) -> float:
        """Layers in turn: no cache holds them all."""
        layers = [[Level(part(prefix), part(prefix), None, readers)] for _ in range(MOST_LAYERS)]
        return min(where.timed(partial(all_of, layers)) for _ in range(4 * REPEATS)) / MOST_LAYERS

    short, long = PREFIXES
    return max(took(long) - took(short), 1e-9) / (ANSWERS * (long - short))


def _step(model: Slice, where: Where) -> float:
    """Seconds of one token for all answers, on a short prefix."""
    prompt = Prompt("probe", tuple(range(SHORT)), (), torch.arange(SHORT).expand(3, -1), None, None)
    engine = LocalEngine(model, lambda handles: [], "")  # type: ignore[arg-type]  # as much of a Model as it calls
    draws = [[Draw(1.0, number) for number in range(ANSWERS)]]

    def took(steps: int) -> float:
        return min(where.timed(lambda: engine.generate([prompt], draws, steps)) for _ in range(2))

    took(1)
    few, many = STEPS
    return max(took(many) - took(few), 1e-9) / (many - few)


def _learning(model: Slice, where: Where) -> float:
    """Parameters that an optimizer step handles in a second."""
    params = list(model.net.layers.parameters())
    optimizer = adamw(params, 1e-6, (0.9, 0.95), 0.0)
    took = []
    for _ in range(REPEATS):
        for param in params:
            param.grad = torch.ones_like(param)
        took.append(where.timed(lambda: step_optimizer(optimizer, params, count=1.0, lr=1e-6, max_norm=1.0)))
    return sum(param.numel() for param in params) / min(took)


def _memory(where: Where) -> float:
    """Bytes that are read or written in a second."""
    source = torch.zeros(COPIED, device=where.device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(where.timed(lambda: target.copy_(source)) for _ in range(REPEATS))
