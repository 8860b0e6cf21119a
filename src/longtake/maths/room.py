"""What a step holds in memory, by phase, and the largest number of frames that fits. Plain arithmetic.

Activations that autograd keeps for a layer were counted by saved-tensor hooks on transformers' Qwen2.5-VL and Qwen3-VL
layers with our attention, and are linear in the widths (tests/train/test_oom.py counts again).

E model width, H heads, K key/value heads, D head width, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from longtake.maths.cost import SLICE, Keep, Way, Work
from longtake.maths.shapes import Shape

WIDE = 4  # bytes: logits, gradients of keys and values, adapters and their gradients are float32
USABLE = 0.94  # of a device's memory: the rest is the driver's and fragmentation
MOST_FRAMES = 1 << 20
# Working set of a layer's backward, measured on the CPU to 10 %: graphs of the layer with the gradients on their way;
# beside what runs in tiles, tensors of all tokens as wide as the queries.
AT_ONCE = {"nothing": 0.0, "graph": 1.0, "attention": 2.2, "layers": 2.2, "host": 2.2}
SPREAD_GRAPH, SPREAD_TILES = 11, 16


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes. What stays through a step, and what each phase needs besides."""

    weights: float
    learning: float  # gradients and optimizer
    kv: float  # the prefixes' keys and values, and their gradients
    kept: float  # for the backward through the prefix: a graph or the layers' inputs
    prefill: float  # working sets
    generate: float
    answers: float
    prefix_backward: float
    host: float  # on the host

    @property
    def held(self) -> float:
        """All that stays."""
        return self.weights + self.learning + self.kv + self.kept

    @property
    def working(self) -> float:
        """The largest working set."""
        return max(self.prefill, self.generate, self.answers, self.prefix_backward)

    @property
    def peak(self) -> float:
        return self.held + self.working

    def at(self, phase: str) -> float:
        """What a phase needs in all. Example: room.at("answers")."""
        return self.held + float(getattr(self, phase))


def room(shape: Shape, work: Work, way: Way, films: int = 1) -> Room:
    """Bytes of a step; `films` of this size are answered together, and their prefills kept."""
    tokens, heads = work.inner.tokens, shape.heads * shape.head_width
    item, wide = way.item, max(WIDE, way.item)
    many = work.questions * work.group
    shared, grouped = way.mode in ("exact", "none", "alora"), way.mode == "prefix_grouper"
    kind: Keep = "layers" if way.keep == "host" and way.one_memory else way.keep
    keep = ("nothing" if way.through == 0 else kind) if shared else "graph" if grouped else "nothing"
    learned = way.learned(shape)
    if way.adapter == "full":
        weights, learning = shape.params * item * (2 if way.kl else 1), learned * 3 * item
    else:
        frozen = shape.layers * shape.layer
        weights = frozen * way.weight + (shape.params - frozen) * item + learned * wide
        learning = learned * 3 * wide
    own = graph_bytes(shape, item, tiled=tokens > way.tile)
    added = item if work.answers.tokens <= way.answer_tokens else wide  # one run of answers adds to nothing
    kv = films * tokens * shape.kv * (item + (added if keep != "nothing" else 0))
    inputs = films * tokens * shape.layers * shape.width * item
    outputs = films * tokens * (shape.layers - 1) * (heads * item + shape.heads * WIDE)
    graph = films * tokens * (shape.layers - 1) * own
    kept = {"nothing": 0.0, "graph": graph, "attention": inputs + outputs, "layers": inputs, "host": 0.0}[keep]
    stream = tokens * item * (4 * shape.width + 2 * heads)  # a layer's input, output, norm, queries, attention
    asked = min(work.answers.tokens, max(way.answer_tokens, work.answer))
    if grouped:
        asked = work.answers.tokens
    elif not shared:
        asked = min(work.rows.tokens, max(way.row_tokens, work.prefix + work.answer))
    logits = 3 * min(SLICE, asked) * shape.vocab * WIDE
    return Room(
        weights=weights,
        learning=learning,
        kv=kv,
        kept=kept,
        prefill=stream + min(tokens, way.tile) * item * 3 * shape.inner,
        generate=films * many * (work.answer * shape.kv * item + 4 * shape.vocab * WIDE),
        answers=asked * shape.layers * graph_bytes(shape, item, tiled=asked > way.tile) + logits,
        prefix_backward=_backward(shape, keep, tokens, way.tile, item),
        host=inputs if keep == "host" else 0.0,
    )


def graph_bytes(shape: Shape, item: float, *, tiled: bool) -> float:
    """What autograd keeps of one token in one layer whose weights, or adapters on them, learn.

    A norm keeps its input, the normed input and what it gives (half precision: in float32 besides), an MLP four times
    its inner width; in tiles (models.tiled) both keep their inputs alone.
    """
    half = item < WIDE
    heads, keys = shape.heads * shape.head_width, shape.kv_heads * shape.head_width
    attention = (heads + keys) * ((5 if half else 4) if shape.normed else 2)
    stream = 4 if tiled else 8 if half else 6
    return item * (stream * shape.width + attention + (0 if tiled else 4 * shape.inner)) + shape.heads * WIDE


def _backward(shape: Shape, keep: Keep, tokens: float, tile: int, item: float) -> float:
    """Working set of one layer's backward."""
    whole, heads = graph_bytes(shape, item, tiled=False), shape.heads * shape.head_width
    if keep == "nothing" or tokens <= tile:
        return AT_ONCE[keep] * tokens * whole
    if keep == "graph":
        mlp = tile * 4 * shape.inner * item
        return tokens * (graph_bytes(shape, item, tiled=True) + SPREAD_GRAPH * heads * item) + mlp
    return AT_ONCE[keep] * tile * whole + tokens * item * (SPREAD_TILES * heads + 2 * shape.width)


def fits(shape: Shape, work: Work, way: Way, device: float, host: float, films: int = 1) -> bool:
    """Whether a step fits in `device` and `host` bytes."""
    need = room(shape, work, way, films)
    return need.peak <= USABLE * device and need.host <= USABLE * host


def keep_for(shape: Shape, work: Work, way: Way, device: float, host: float, films: int = 1) -> Keep:
    """The fastest way to keep prefixes that fits, the smallest if none does."""
    if way.through == 0:
        return "nothing"
    order: tuple[Keep, ...] = ("graph", "attention", "layers", "host")
    order = order[:-1] if way.one_memory else order
    found = (keep for keep in order if fits(shape, work, replace(way, keep=keep), device, host, films))
    return next(found, order[-1])


def longer(work: Work, frames: int) -> Work:
    """The same with another number of frames, of as many tokens each."""
    return replace(work, frames=frames, visual=round(work.visual * frames / work.frames))


def largest_frames(shape: Shape, work: Work, way: Way, device: float, host: float) -> int:
    """The most frames that fit in `device` and `host` bytes, answers one by one; 0 if not even one does."""
    way = replace(way, answer_tokens=min(way.answer_tokens, work.answer))
    low, high = 0, 1
    while high < MOST_FRAMES and fits(shape, longer(work, high), way, device, host):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        inside = fits(shape, longer(work, middle), way, device, host)
        low, high = (middle, high) if inside else (low, middle)
    return low
