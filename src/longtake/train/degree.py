"""How many ranks share a prefix: as few as have room for the longest, for those that share nothing need not meet."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

from longtake.log import Log
from longtake.maths.cost import Work
from longtake.maths.cost_ranks import Mesh, fewest
from longtake.maths.room import room
from longtake.maths.shapes import shape_of
from longtake.parallel.fsdp import in_parts
from longtake.parallel.ranks import mesh
from longtake.protocols import Model
from longtake.runtime.films import Films, Look
from longtake.runtime.shared import fits
from longtake.train.memory import Memory
from longtake.train.oom import way_of
from longtake.train.passes import room_of

ANSWERS = Memory().answer_tokens


def spread(films: Films, looks: Iterable[Look], log: Log) -> None:
    """Sequences of ranks for the longest prompt there was so far; says how many. Nothing to do for one rank."""
    world = films.ranks.world
    if world.size == 1:
        return
    longest = max(films.longest, _longest(films, looks))
    found = films.sequence or degree(films, longest)
    if films.longest and found == films.ranks.sequence.size:
        return
    films.longest, films.ranks = longest, mesh(world, found, films.attention)
    log.note(f"{world.size} ranks: {told(films, found, longest)}")


def told(films: Films, degree: int, longest: int) -> str:
    """How they share, for people."""
    if degree == 1:
        return f"each takes questions of its own (the longest prompt, {longest} tokens, fits one)"
    many = films.ranks.world.size // degree
    head = f"{many} sequence{'s' * (many > 1)} of {degree}, which share prompts of up to {longest} tokens; "
    shape = shape_of(films.model.net.config.to_dict())
    heads = f"{shape.heads} heads and {shape.kv_heads} key heads"
    if films.attention == "gather":
        return head + "keys and values are gathered"
    if fits(shape.heads, shape.kv_heads, degree):
        return head + "attention goes by heads"
    return head + f"keys and values are gathered: {heads} cannot be parted so"


def degree(films: Films, longest: int) -> int:
    """The fewest ranks, of a number that divides the world, with room for a prompt of `longest` tokens; else all."""
    model, size = films.model, films.ranks.world.size
    device, _ = room_of(model.net.device)
    shape, way = shape_of(model.net.config.to_dict()), way_of(model, "layers", ANSWERS)
    work = Work(frames=1, visual=longest, question=1, answer=ANSWERS // 8)  # of eight, learned from at once
    found = fewest(shape, work, way, Mesh(size, shares=in_parts(model.layers)), device, inf)
    return found.sequence if found else size


def large(model: Model) -> bool:
    """Whether weights, gradients and optimizer of full fine-tuning take more than a third of a rank's memory."""
    device, _ = room_of(model.net.device)
    shape, way = shape_of(model.net.config.to_dict()), way_of(model, "layers", ANSWERS)
    found = room(shape, Work(frames=1, visual=1, question=1), way)
    return found.weights + found.learning > device / 3


def _longest(films: Films, looks: Iterable[Look]) -> int:
    """Tokens of the longest prompt, of one look for every number and size of frames."""
    alike: dict[object, Look] = {}
    for look in looks:
        receipt = films.receipt(look)
        size = receipt and (receipt.width, receipt.height, len(receipt.indices), receipt.image)
        alike.setdefault(size, look)
    return max((len(films.prompt(look).ids) for look in alike.values()), default=0)
