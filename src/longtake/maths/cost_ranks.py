"""What a step costs where ranks share prefixes: seconds, bytes on each, bytes between them. Plain arithmetic.

A sequence of d ranks has a share of a prefix's tokens on each (maths.share) and all its keys and values on all of them;
answers are dealt out. So what grows with layers times width is parted by d, and keys and values are the floor: a prefix
whose keys and values leave no room fits no number of ranks. Nothing travels while something is computed: seconds add.

n ranks, in n / d sequences; G answers, K key/value heads, D head width, E model width.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import ceil

from longtake.maths.cost import Both, Keep, Rates, Seconds, Way, Work, predict
from longtake.maths.room import MOST_FRAMES, USABLE, WIDE, Room, longer, room
from longtake.maths.shapes import Shape

# Copies of a layer's keys and values beside those that stay: while they are joined; while the layer goes back, as wide
# as they are and in float32 (measured on the CPU in float32: 1.0, and 3.0 to 3.9 in all).
JOINING, ADDING, SUMMING = 1, 2, 2


@dataclass(frozen=True, slots=True)
class Links:
    """Bytes a second that one GPU takes in. Example: Links().gather(64) == 400e9."""

    near: float = 450e9  # from GPUs of its machine (NVLink of H100 and H200)
    far: float = 50e9  # from other machines, by a network card of its own
    machine: int = 8  # GPUs

    def gather(self, ranks: int) -> float:
        """Of what all hold, or is summed over all: what comes from elsewhere comes once, by all cards of a machine."""
        return self.near if ranks <= self.machine else min(self.near, self.machine * self.far)

    def swap(self, ranks: int) -> float:
        """Of what each has for each: all that is for other machines goes by the own card."""
        if ranks <= self.machine:
            return self.near
        return (ranks - 1) / max((self.machine - 1) / self.near, (ranks - self.machine) / self.far)


@dataclass(frozen=True, slots=True)
class Mesh:
    """Who shares what. Example: Mesh(64, 8).data == 8."""

    ranks: int = 1  # n
    sequence: int = 1  # d
    shares: bool = False  # weights, gradients and optimizer lie in n shares
    by_heads: bool = False  # attention ("ulysses")

    @property
    def data(self) -> int:
        """Sequences: each has questions of its own."""
        return self.ranks // self.sequence


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds on one sequence: of one film with its questions, and at the end of a step."""

    film: Seconds  # computing
    keys: float  # keys and values and their gradients (by heads: queries and outputs too) on their way
    weights: float  # those in shares gathered, their gradients summed
    last: float  # gradients that are whole, summed over all ranks

    def seconds(self, films: int, mesh: Mesh) -> float:
        """Of a step on so many films, their features at hand."""
        each = self.film.cached - self.film.optimizer + self.keys + self.weights
        return ceil(films / mesh.data) * each + self.film.optimizer + self.last


def layer_bytes(shape: Shape, tokens: float, way: Way, mesh: Mesh) -> Both:
    """What a rank gets from the others for one layer of a prefix of `tokens`, forward and backward.

    Gradients of keys and values are summed in float32. By heads queries go out and what attention gave comes back,
    once more where the backward computes the layer again.
    """
    others, kv = 1 - 1 / mesh.sequence, tokens * shape.kv / shape.layers
    asked = 0.0
    if mesh.by_heads:
        asked = 2 * others * tokens / mesh.sequence * shape.heads * shape.head_width * way.item
    passes = way.through * (1 if way.keep == "graph" else 2)
    return Both(others * kv * way.item + asked, way.through * others * kv * max(WIDE, way.item) + passes * asked)


def room_of_rank(shape: Shape, work: Work, way: Way, mesh: Mesh) -> Room:
    """Bytes on each rank; one film at a time."""
    few = _dealt(work, mesh)
    own, whole = room(shape, _cut(few, mesh), way), room(shape, few, way)
    found = replace(own, kv=whole.kv)
    if mesh.sequence > 1:
        layer = work.inner.tokens * shape.kv / shape.layers
        joined = JOINING * layer * way.item
        summed = layer * (ADDING * way.item + SUMMING * max(WIDE, way.item)) if way.through else 0.0
        found = replace(found, prefill=own.prefill + joined, prefix_backward=own.prefix_backward + summed)
    return _in_shares(shape, way, mesh, found) if mesh.shares else found


def _in_shares(shape: Shape, way: Way, mesh: Mesh, found: Room) -> Room:
    """Full fine-tuning's weights, gradients and moments a share on each (parallel.fsdp): all whole while answers are
    decoded; while it learns one layer, its gradient in two widths, and what lies beside the layers.
    """
    learned = way.learned(shape)
    beside = learned - shape.layers * shape.layer
    working = shape.layer * (2 * way.item + WIDE) + beside * 2 * way.item
    return replace(
        found,
        weights=found.weights - learned * way.item * (1 - 1 / mesh.ranks),
        learning=found.learning / mesh.ranks,
        prefill=found.prefill + learned * way.item,
        generate=found.generate + learned * way.item,
        answers=found.answers + working,
        prefix_backward=found.prefix_backward + working,
    )


def fits(shape: Shape, work: Work, way: Way, mesh: Mesh, device: float, host: float) -> bool:
    """Whether it fits on every rank: `device` bytes, and of the host's memory `host` bytes for each rank."""
    need = room_of_rank(shape, work, way, mesh)
    return need.peak <= USABLE * device and need.host <= USABLE * host


def fewest(shape: Shape, work: Work, way: Way, mesh: Mesh, device: float, host: float) -> Mesh | None:
    """The mesh with the shortest sequences that have room; None if none has."""
    made = (replace(mesh, sequence=d) for d in range(1, mesh.ranks + 1) if mesh.ranks % d == 0)
    return next((one for one in made if fits(shape, work, way, one, device, host)), None)


def keep_on(shape: Shape, work: Work, way: Way, mesh: Mesh, device: float, host: float) -> Keep:
    """The fastest way to keep a prefix that fits."""
    order: tuple[Keep, ...] = ("graph", "attention", "layers", "host") if way.through else ("nothing",)
    found = (keep for keep in order if fits(shape, work, replace(way, keep=keep), mesh, device, host))
    return next(found, order[-1])


def most_frames(shape: Shape, work: Work, way: Way, mesh: Mesh, device: float, host: float) -> int:
    """The most frames that fit, all ranks one sequence; 0 if not even one does."""
    whole, low, high = replace(mesh, sequence=mesh.ranks), 0, MOST_FRAMES
    while high - low > 1:
        middle = (low + high) // 2
        inside = fits(shape, longer(work, middle), way, whole, device, host)
        low, high = (middle, high) if inside else (low, middle)
    return low


def predict_on(shape: Shape, work: Work, way: Way, rates: Rates, mesh: Mesh, links: Links) -> Step:
    """Seconds of one film in one step; on one rank those of `predict`.

    Decoding a film and reading its features are not parted. A rank's share of a prefix meets 1 / d of its pairs.
    """
    few, d = _dealt(work, mesh), mesh.sequence
    slower = replace(rates, attend=rates.attend.over(d))  # a cut alone has 1 / d² of the pairs
    whole, part = predict(shape, few, way, rates), predict(shape, _cut(few, mesh), way, slower)
    repeated = way.epochs * way.repeats + way.kl
    film = replace(
        whole,
        encode=whole.encode / mesh.ranks,
        prefill=part.prefill,
        score=whole.score + repeated * (part.prefill - whole.prefill),
        prefix_backward=part.prefix_backward,
        optimizer=whole.optimizer / (mesh.ranks if mesh.shares else 1),
    )
    moved = layer_bytes(shape, work.inner.tokens, way, replace(mesh, by_heads=False))
    computed = (film.prefill > 0) + repeated
    keys = shape.layers * (computed * moved.forward + way.epochs * moved.backward) / links.gather(d)
    if mesh.by_heads:
        every = layer_bytes(shape, work.inner.tokens, way, mesh)
        asked = computed * (every.forward - moved.forward) + way.epochs * (every.backward - moved.backward)
        keys += (shape.layers - 1) * asked / links.swap(d)
    return Step(film, keys, *_wires(shape, few, way, mesh, links))


def _wires(shape: Shape, few: Work, way: Way, mesh: Mesh, links: Links) -> tuple[float, float]:
    """Seconds for weights in shares of one film, and for the gradients of a step."""
    others, rate, learned = 1 - 1 / mesh.ranks, links.gather(mesh.ranks), way.learned(shape)
    if not mesh.shares:
        return 0.0, 2 * others * learned * max(WIDE, way.item) / rate
    layers, wide = shape.layers * shape.layer, max(WIDE, way.item)
    runs = ceil(few.answers.tokens / way.answer_tokens)
    back = way.epochs * (runs + (way.through > 0))  # backwards; answers have forwards as well
    gathered = learned + layers * (way.epochs * runs + back)
    return others * (gathered * way.item + layers * back * wide) / rate, others * (learned - layers) * wide / rate


def _dealt(work: Work, mesh: Mesh) -> Work:
    """A rank's answers to each question."""
    return replace(work, group=ceil(work.group / mesh.sequence))


def _cut(work: Work, mesh: Mesh) -> Work:
    """A rank's tokens."""
    d = mesh.sequence
    return replace(work, visual=ceil(work.visual / d), question=ceil(work.question / d))
