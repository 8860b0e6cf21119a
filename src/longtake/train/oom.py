"""Out of memory, said so that the reader knows what to turn: which phase, how many tokens, what was held, three knobs.

The numbers are those of the cost model (maths.room); what the allocator said is quoted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch

from longtake.errors import UserError
from longtake.maths.cost import Adapter, Keep, Mode, Way, Work
from longtake.maths.knobs import LITTLE, Saving, savings
from longtake.maths.room import room
from longtake.maths.shapes import Shape, shape_of
from longtake.protocols import Model
from longtake.records import Layout

Phase = Literal["prefill", "generate", "answers", "prefix_backward"]
CPU_WORDS = ("can't allocate memory", "DefaultCPUAllocator", "not enough memory", "Cannot allocate memory")
KNOBS = 3
KEPT = {"graph": "graph", "attention": "layer inputs and attention"}
GB = 1e9


@dataclass(frozen=True, slots=True)
class Facts:
    """What was running. Example: Facts(shape, Work(64, 4480, 30), Way("exact", "graph"))."""

    shape: Shape
    work: Work
    way: Way


@contextmanager
def explained(phase: Phase, facts: Callable[[], Facts]) -> Iterator[None]:
    """Around one phase of a step: a failed allocation becomes a UserError. `facts` is asked only then.

    Example: with explained("answers", lambda: facts_of(model, row.layout, "graph", visual=4480)): …
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not is_oom(error):
            raise
        raise told(phase, facts(), error) from error


def is_oom(error: BaseException) -> bool:
    """Whether an allocator said no: CUDA's has a class of its own, the CPU's a RuntimeError with these words."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (any(w in text for w in CPU_WORDS) or "out of memory" in text)


def told(phase: Phase, facts: Facts, error: BaseException) -> UserError:
    """Six lines: phase and tokens, what the allocator said, what was held, three knobs."""
    shape, work, way = facts.shape, facts.work, facts.way
    need = room(shape, work, way)
    prefix, answers = work.inner.tokens, work.answers.tokens
    parts = {
        "weights": need.weights,
        "gradients and optimizer": need.learning,
        "prefix keys and values": need.kv,
        KEPT.get(way.keep, "layer inputs"): need.kept,
        "this phase": getattr(need, phase),
    }
    held = ", ".join(f"{name} {gb(size)}" for name, size in parts.items() if size >= LITTLE * need.at(phase))
    found: dict[str, Saving] = {}  # the best of each setting
    for saving in savings(shape, work, way, phase=phase):
        if saving.bytes >= LITTLE * need.at(phase):
            found.setdefault(saving.knob.words.split()[0], saving)
    best = list(found.values())[:KNOBS]
    turned = [f"{n}) {s.knob.words} saves {gb(s.bytes)}" for n, s in enumerate(best, start=1)]
    return UserError(
        f"out of memory in {phase.replace('_', ' ')}: {prefix:,.0f} prefix tokens, {answers:,.0f} answer tokens",
        where=" ".join(str(error).split())[:160] or type(error).__name__,
        why=f"by the cost model {held}",
        fix="\n      ".join(turned) or "a smaller model, or a device with more memory",
    )


def facts_of(
    model: Model,
    layout: Layout,
    keep: Keep,
    *,
    visual: int,
    asked: tuple[int, int] | None = None,
    answer_tokens: int = 0,
) -> Facts:
    """Facts of a row as it runs.

    visual: tokens of its films. asked: (answers to a question, tokens of each) where the layout has none yet, as in a
    rollout. answer_tokens: fed in one forward and backward; 0 = all.
    """
    segments = layout.segments
    answers = [segment.length for segment in segments if not segment.inner]
    inner = [segment for segment in segments if segment.inner]
    films = sum(before.stop > after.start for before, after in pairwise(inner))  # that several questions share
    questions = max(1, len(inner) - films)
    text = max(0, layout.stem.total - visual)
    group, length = asked or (round(len(answers) / questions), round(sum(answers) / max(1, len(answers))))
    work = Work(0, visual, round(text / questions), questions, max(1, group), max(1, length))
    return Facts(shape_of(model.net.config.to_dict()), work, way_of(model, keep, answer_tokens or sum(answers) or 1))


def way_of(model: Model, keep: Keep, answer_tokens: int) -> Way:
    """How this model is trained, read off its parameters."""
    shape, item = shape_of(model.net.config.to_dict()), float(model.net.dtype.itemsize)
    mode: Mode = "none" if keep == "nothing" else "exact"
    way = Way(
        mode, keep, item=item, weight=item, answer_tokens=answer_tokens, one_memory=model.net.device.type == "cpu"
    )
    if model.adapter is None:
        return way
    kind: Adapter = model.adapter.kind
    frozen = sum(p.nbytes for p in model.layers.parameters() if not p.requires_grad)
    if kind == "alora":
        way = replace(way, mode="alora", keep="nothing")
    rank = int(model.adapter.config.r)
    return replace(way, adapter=kind, rank=rank, weight=frozen / (shape.layers * shape.layer))


def gb(size: float) -> str:
    """Bytes for people. Example: gb(2.5e9) == "2.5 GB"."""
    return f"{size / GB:.1f} GB" if abs(size) >= GB / 10 else f"{size / 1e6:.0f} MB"
