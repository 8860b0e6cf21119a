"""What can be turned when memory or time is short, and what the cost model says it saves."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from longtake.maths.cost import Rates, Way, Work, predict
from longtake.maths.room import longer, room
from longtake.maths.shapes import Shape

NF4 = 0.55  # bytes of a weight, with its scales
LITTLE = 0.01  # of what is needed: a saving below this share is not worth a line


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting. Example: Knob("--memory.keep layers", same=True, work, way)."""

    words: str
    same: bool  # trains the same: only memory and time differ
    work: Work
    way: Way


@dataclass(frozen=True, slots=True)
class Saving:
    """A knob and what it saves; less than 0 is what it costs."""

    knob: Knob
    bytes: float
    seconds: float


def knobs(work: Work, way: Way) -> Iterator[Knob]:
    """All that can be turned from here, by the names of the settings of `grpo`."""
    if way.through and way.keep in ("graph", "attention"):
        yield Knob("--memory.keep layers", True, work, replace(way, keep="layers"))
    if way.through and way.keep != "host":
        yield Knob("--memory.keep host", True, work, replace(way, keep="host"))
    asked = int(min(way.answer_tokens, work.answers.tokens))
    if asked > work.answer:
        fewer = max(asked // 4, work.answer)
        yield Knob(f"--memory.answer-tokens {fewer}", True, work, replace(way, answer_tokens=fewer))
    if way.adapter == "full":
        yield Knob("--adapter.kind lora", False, work, replace(way, adapter="lora"))
    elif way.weight > NF4:
        yield Knob("--adapter.quantize nf4", False, work, replace(way, weight=NF4))
    if way.through:
        frozen = replace(way, mode="none", keep="nothing")
        yield Knob("--prefix-gradient none", False, work, frozen)
        if way.chance > 0.25:
            yield Knob("--prefix-gradient 0.25", False, work, replace(way, chance=0.25))
    if way.adapter == "lora":
        activated = replace(way, mode="alora", adapter="alora", keep="nothing", kl=False)
        yield Knob("--adapter.kind alora", False, work, activated)
    if work.frames > 1:
        fewer = work.frames * 3 // 4
        yield Knob(f"--video.frames {fewer}", False, longer(work, fewer), way)
    elif work.frames == 0 and work.visual > 1:
        less = replace(work, visual=work.visual * 3 // 4)
        yield Knob("three quarters of --video.frames", False, less, way)
    if work.group > 2:
        yield Knob(f"--group-size {work.group // 2}", False, replace(work, group=work.group // 2), way)
    if work.answer > 1:
        yield Knob(f"--max-tokens {work.answer // 2}", False, replace(work, answer=work.answer // 2), way)


def savings(shape: Shape, work: Work, way: Way, *, phase: str = "", rates: Rates | None = None) -> list[Saving]:
    """What every knob saves: bytes at the peak (or in `phase`), seconds by `rates` of a film (0 without).

    Those that train the same come first, then by bytes saved.
    """

    def cost(work: Work, way: Way) -> tuple[float, float]:
        need = room(shape, work, way)
        return need.at(phase) if phase else need.peak, predict(shape, work, way, rates).cached if rates else 0.0

    whole, whole_s = cost(work, way)
    found = []
    for knob in knobs(work, way):
        need, seconds = cost(knob.work, knob.way)
        found.append(Saving(knob, whole - need, whole_s - seconds))
    return sorted(found, key=lambda saving: (not saving.knob.same, -saving.bytes))
