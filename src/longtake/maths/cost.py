"""What a step costs: seconds by phase, from the shapes of a network and the rates of a device. Plain arithmetic.

A pass over tokens costs
    layers × (a call + tokens × attention's handling of a token) + linear FLOP / rate + attention FLOP / rate,
a decoding step its calls, and the larger of reading weights, keys and values once and of their arithmetic. A step is a
few passes; which, is the method's (`predict`). Rates are a model of the device (maths.devices), or were probed.

FLOP are dense ones: 2 for a weight and a token forward, as many for the gradient of the input and again for that of the
weight; 4 H D for a pair of query and key forward, 10 H D backward (FlashAttention-2, arXiv 2307.08691). maths.room has
the bytes. G answers, H heads, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import ceil
from typing import Literal

from longtake.maths.shapes import Shape

Keep = Literal["nothing", "graph", "attention", "layers", "host"]  # as runtime.prefix
Adapter = Literal["full", "lora", "alora"]
Mode = Literal["exact", "none", "alora", "per_answer", "per_answer_3pass", "encode_once", "prefix_grouper"]
WHOLE_ROWS = ("per_answer", "per_answer_3pass", "encode_once")  # one row [prefix | answer] for every answer
SOURCE_FPS = 30  # of a film that is looked at once a second
SLICE = 1024  # rows of logits at once (maths.logprob)
THIN = 2.0  # products of small rank take about twice the time of their FLOP (measured on the CPU)
WINDOWS = 1.08  # attention inside the vision tower, beside its matrix products


@dataclass(frozen=True, slots=True)
class Tokens:
    """A pass over `tokens` in which queries and keys meet `pairs` times. Example: Tokens(512, 512**2 / 2)."""

    tokens: float
    pairs: float


@dataclass(frozen=True, slots=True)
class Work:
    """A film and what is asked about it in one step.

    Example: Work(frames=512, visual=35_840, question=256, questions=1, group=8, answer=768).
    """

    frames: int  # 0: not known
    visual: int  # tokens of the film
    question: int  # tokens of a prompt beside it
    questions: int = 1  # on this film
    group: int = 8  # G
    answer: int = 768  # tokens

    @property
    def prefix(self) -> int:
        """Tokens before an answer."""
        return self.visual + self.question

    @property
    def inner(self) -> Tokens:
        """All prefixes: the film once, every question once."""
        pairs = self.visual**2 / 2 + self.questions * (self.question * self.visual + self.question**2 / 2)
        return Tokens(self.visual + self.questions * self.question, pairs)

    @property
    def answers(self) -> Tokens:
        """All answers, on prefixes that were computed before."""
        many = self.questions * self.group
        return Tokens(many * self.answer, many * (self.answer * self.prefix + self.answer**2 / 2))

    @property
    def rows(self) -> Tokens:
        """One row [prefix | answer] for every answer."""
        many, row = self.questions * self.group, self.prefix + self.answer
        return Tokens(many * row, many * row**2 / 2)


@dataclass(frozen=True, slots=True)
class Way:
    """How it is trained. Example: Way("exact", "layers", adapter="lora")."""

    mode: Mode = "exact"
    keep: Keep = "layers"
    adapter: Adapter = "full"
    rank: int = 32
    targets: tuple[str, ...] | None = None  # adapted linear layers; None = all
    item: float = 2.0  # bytes of a number
    weight: float = 2.0  # bytes of a frozen weight (nf4: about 0.55)
    chance: float = 1.0  # of the backward through a prefix (prefix_gradient)
    warm: bool = True  # alora: keys and values of the prefixes are cached
    epochs: int = 1  # passes over a step's answers
    updates: int = 1  # optimizer steps on them
    repeats: bool = False  # rewards came first: the update computes the prefixes again
    kl: bool = False  # a pass of the reference model
    row_tokens: int = 16384  # prefix tokens held at once; of whole rows: in one pass
    answer_tokens: int = 16384  # in one forward and backward on a prefix
    tile: int = 8192  # tokens of an MLP at once
    one_memory: bool = False  # device and host have the same: the CPU

    @property
    def through(self) -> float:
        """How often a gradient goes through the prefix."""
        return 0.0 if self.mode in ("none", "alora") else self.chance

    def learned(self, shape: Shape) -> int:
        """Parameters that learn; the tower never does."""
        return (
            shape.params - shape.tower - shape.merger
            if self.adapter == "full"
            else shape.adapter(self.rank, self.targets)
        )


@dataclass(frozen=True, slots=True)
class Both:
    """A rate or a cost, forward and backward. Example: Both(4e11, 3e11)."""

    forward: float
    backward: float

    def over(self, number: float) -> Both:
        """Both divided by it."""
        return Both(self.forward / number, self.backward / number)


@dataclass(frozen=True, slots=True)
class Rates:
    """What a device does in a second, and what a call costs whatever its size."""

    linear: Both  # FLOP/s of matrix products
    attend: Both  # FLOP/s of flash attention
    head: Both  # FLOP/s of logits and their log-probabilities, in float32
    decode: float  # FLOP/s of attention of single tokens
    encode: float  # FLOP/s of the vision tower
    memory: float  # bytes/s
    host: float  # bytes/s between device and host
    disk: float  # bytes/s
    decoded: float  # frames/s out of an mp4
    learn: float  # parameters/s of the optimizer
    layer: Both = Both(0.0, 0.0)  # seconds of a layer's call
    token: Both = Both(0.0, 0.0)  # seconds in which a layer's attention handles a token, pairs aside
    step: float = 0.0  # seconds of a decoding step in a layer


@dataclass(frozen=True, slots=True)
class Seconds:
    """Of one film in one step, by phase."""

    decode: float = 0.0  # first touch: mp4 to frames
    encode: float = 0.0  # first touch: frames to features
    load: float = 0.0  # features, or keys and values, from disk
    prefill: float = 0.0
    generate: float = 0.0
    score: float = 0.0  # passes without gradient: repeated prefixes, old policy, reference
    answers: float = 0.0  # forward and backward
    prefix_backward: float = 0.0
    optimizer: float = 0.0

    @property
    def total(self) -> float:
        """A first touch."""
        return sum(getattr(self, field.name) for field in fields(self))

    @property
    def cached(self) -> float:
        """With the film's features on disk."""
        return self.total - self.decode - self.encode

    @property
    def update(self) -> float:
        """Answers known → optimizer done, on prefixes that are there."""
        return self.score + self.answers + self.prefix_backward + self.optimizer


def predict(shape: Shape, work: Work, way: Way, rates: Rates) -> Seconds:
    """Seconds by phase of one film in one step."""
    go, back = _Pass(shape, way, rates, backward=False), _Pass(shape, way, rates, backward=True)
    inner, answers = work.inner, work.answers
    encode = 2 * (shape.tower * shape.merge + shape.merger) * work.visual * WINDOWS / rates.encode
    cached = way.mode == "alora" and way.warm
    prefill = 0.0 if cached else go.prefix(inner)
    row, together, prefix_backward, again = answers, way.answer_tokens, 0.0, 0.0
    if way.mode in WHOLE_ROWS:
        row, together = work.rows, way.row_tokens
        again = 0.0 if way.mode == "encode_once" else work.questions * work.group * encode
    elif way.mode == "prefix_grouper":
        row = Tokens(inner.tokens + answers.tokens, inner.pairs + answers.pairs)
        together = ceil(row.tokens)
    else:
        seen = Tokens(inner.tokens, 0.0) if way.keep == "attention" else inner
        moved = 2 * inner.tokens * shape.layers * shape.width * way.item / rates.host if way.keep == "host" else 0.0
        noted = go.prefix(seen) + moved if way.keep in ("attention", "layers", "host") else 0.0
        prefix_backward = way.through * (noted + back.prefix(inner) + go.tiles(inner))
    answered = again + go.whole(row, together) + go.head(answers, together)
    score = way.epochs * prefill if way.repeats else 0.0
    score += 2 * answered if way.mode == "per_answer_3pass" else 0.0
    score += answered + (prefill if row is answers else 0.0) if way.kl else 0.0
    numbers = inner.tokens * shape.kv if cached else work.visual * shape.width * (1 + shape.levels)
    return Seconds(
        decode=work.frames * SOURCE_FPS / rates.decoded,
        encode=encode,
        load=numbers * way.item / rates.disk,
        prefill=prefill,
        generate=_generate(shape, work, way, rates),
        score=score,
        answers=way.epochs * (answered + back.whole(row, together) + back.head(answers, together)),
        prefix_backward=way.epochs * prefix_backward,
        optimizer=way.updates * way.learned(shape) / rates.learn,
    )


@dataclass(frozen=True, slots=True)
class _Pass:
    """Seconds of passes in one direction."""

    shape: Shape
    way: Way
    rates: Rates
    backward: bool

    def whole(self, row: Tokens, together: float) -> float:
        """All layers, `together` tokens in a call."""
        layers, calls = self.shape.layers, ceil(row.tokens / together)
        linear = self._linear(layers * self.shape.layer, row.tokens)
        tiled = self.backward and min(row.tokens, together) > self.way.tile
        again = 2 * layers * self.shape.mlp * row.tokens / self.rates.linear.forward if tiled else 0.0
        return self._layers(layers, row, calls) + linear + again

    def prefix(self, row: Tokens) -> float:
        """One call; of the last layer keys and values alone (runtime.top makes its queries too, and drops them)."""
        layers = self.shape.layers - 1
        last = self.shape.width * self.shape.kv / self.shape.layers if self.backward else self.shape.projections
        return self._layers(layers, row, 1) + self._linear(layers * self.shape.layer + last, row.tokens)

    def tiles(self, row: Tokens) -> float:
        """What the backward of a long prefix computes again besides: of a graph MLPs (models.tiled), of layers that are
        computed again anyway queries, keys and values, twice (runtime.tiles).
        """
        if row.tokens <= self.way.tile:
            return 0.0
        weights = self.shape.mlp if self.way.keep == "graph" else 2 * self.shape.projections
        return self._linear((self.shape.layers - 1) * weights, row.tokens)

    def head(self, row: Tokens, together: float) -> float:
        """Log-probabilities of answers; logits of several slices are computed again in the backward."""
        flop = (4 if self.backward and self.way.adapter == "full" else 2) * self.shape.head * row.tokens
        again = flop / self.rates.head.forward if self.backward and min(row.tokens, together) > SLICE else 0.0
        return flop / self._of(self.rates.head) + again

    def _layers(self, layers: int, row: Tokens, calls: int) -> float:
        """Calls and attention."""
        flop = (10 if self.backward else 4) * self.shape.heads * self.shape.head_width * row.pairs
        each = calls * self._of(self.rates.layer) + row.tokens * self._of(self.rates.token)
        return layers * (each + flop / self._of(self.rates.attend))

    def _linear(self, weights: float, tokens: float) -> float:
        """Frozen weights need the gradient of their input alone; adapters are small matrices beside them."""
        frozen = self.way.adapter != "full"
        share = THIN * self.way.learned(self.shape) / (self.shape.layers * self.shape.layer) if frozen else 0.0
        flop = (2 + 4 * share if frozen else 4) if self.backward else 2 + 2 * share
        return flop * weights * tokens / self._of(self.rates.linear)

    def _of(self, both: Both) -> float:
        return both.backward if self.backward else both.forward


def _generate(shape: Shape, work: Work, way: Way, rates: Rates) -> float:
    """Every step reads the weights once, each prefix once, each answer's own tokens."""
    many = work.questions * work.group
    kept = (work.inner.tokens + many * work.answer / 2) * shape.kv * way.item / rates.memory
    pairs = many * (work.prefix + work.answer / 2)
    attention = max(4 * shape.layers * shape.heads * shape.head_width * pairs / rates.decode, kept)
    weight = way.weight if way.weight >= way.item else way.weight + 2 * way.item  # four bits are widened first
    return work.answer * (shape.layers * rates.step + reading(shape, many, weight, rates) + attention)


def reading(shape: Shape, answers: int, weight: float, rates: Rates) -> float:
    """Seconds in which a decoding step takes `answers` tokens through the weights (bytes each): they are read, or
    multiplied if that takes longer. Half precision widens the head for its float32 logits.
    """
    body, head = shape.layers * shape.layer, shape.head * (weight if weight >= 4 else 10.0)
    multiplied = 2 * answers * (body / rates.linear.forward + shape.head / rates.head.forward)
    return max(multiplied, (body * weight + head) / rates.memory)
