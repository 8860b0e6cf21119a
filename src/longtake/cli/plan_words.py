"""A plan as people read it, and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from longtake.maths.cost import Seconds, Way, Work
from longtake.maths.devices import GB, Device
from longtake.maths.knobs import Saving
from longtake.maths.room import Room
from longtake.maths.shapes import Shape

PHASES = {
    "load": "cache read",
    "prefill": "prefill",
    "generate": "generate",
    "score": "score, no gradient",
    "answers": "answers, forward and backward",
    "prefix_backward": "prefix backward",
    "optimizer": "optimizer",
}
TOUCH = {"decode": "decode mp4", "encode": "encode"}
HELD = {
    "weights": "weights",
    "learning": "gradients, optimizer",
    "kv": "prefix keys and values",
    "kept": "kept for the backward",
    "working": "working set",
    "peak": "peak",
    "host": "on the host",
}
KEEPS = {
    "graph": "graph",
    "attention": "layer inputs, attention",
    "layers": "layer inputs",
    "host": "inputs on host",
    "nothing": "nothing",
}
MOST_ADVICE = 5


@dataclass(frozen=True, slots=True)
class Column:
    """One number of frames."""

    work: Work
    way: Way
    seconds: Seconds  # of one film in one step
    room: Room
    fits: bool
    scale: int  # by which positions must be scaled for the longest sequence: 1 = as they are, 0 = not known
    step_s: float  # of a whole step, films cached
    hours: float  # of the run
    tier: float  # bytes on disk, all films: decoded frames
    features: float
    prefixes: float  # bytes of keys and values of all prefixes (alora): in memory, or on disk


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is told."""

    model: str
    shape: Shape
    device: Device
    probed: bool
    trains: str  # how, in a line
    columns: tuple[Column, ...]
    budgets: tuple[int, ...]  # GB
    largest: dict[str, tuple[int, ...]]  # mode → frames by budgets
    advice: tuple[Saving, ...]  # for the last column
    films: int
    notes: tuple[str, ...]
    reach: int  # positions that the model knows; 0 = not known


def text(plan: Plan) -> str:
    """The whole table."""
    return "\n".join([*_head(plan), *_table(plan), "", *_largest(plan), "", *_advice(plan), *_notes(plan)])


def _head(plan: Plan) -> list[str]:
    shape, kv = plan.shape, plan.columns[0].way.item * plan.shape.kv / 1e3
    source = "seconds: rates measured here" if plan.probed else "seconds: a model of the device, --probe measures it"
    return [
        f"{plan.model}: {shape.layers} layers of {shape.width}, {_many(shape.params)} parameters, "
        f"{kv:.0f} kB of keys and values a token",
        plan.trains,
        f"{plan.device.name}, {plan.device.bytes / GB:.0f} GB; {source}; bytes: a model",
        "",
    ]


def _table(plan: Plan) -> list[str]:
    columns = plan.columns
    rows: list[tuple[str, list[str]]] = [
        ("frames", [f"{c.work.frames:,}" for c in columns]),
        ("prefix tokens", [f"{c.work.prefix:,}" for c in columns]),
        *_context(plan),
        ("kept of a prefix", [KEEPS[c.way.keep] for c in columns]),
        (f"seconds a film, G = {columns[0].work.group}", []),
    ]

    def seconds(names: dict[str, str]) -> Iterable[tuple[str, list[str]]]:
        for name, words in names.items():
            if any(getattr(c.seconds, name) for c in columns):
                yield f"  {words}", [_short(getattr(c.seconds, name)) for c in columns]

    rows += seconds(PHASES)
    rows.append(("  together", [_short(c.seconds.cached) for c in columns]))
    rows.append(("  first time also", []))
    rows += [(f"  {name}", numbers) for name, numbers in seconds(TOUCH)]
    rows.append(("GB", []))
    for name, words in HELD.items():
        if any(getattr(c.room, name) for c in columns):
            rows.append((f"  {words}", [_short(getattr(c.room, name) / GB) for c in columns]))
    rows.append(("  fits", ["yes" if c.fits else "NO" for c in columns]))
    rows.append((f"run of {plan.films:,} films", []))
    rows.append(("  seconds a step", [_short(c.step_s) for c in columns]))
    rows.append(("  hours", [_short(c.hours) for c in columns]))
    rows += _disk(plan)
    return _aligned(rows)


def _context(plan: Plan) -> Iterable[tuple[str, list[str]]]:
    """What --context.rope must be."""
    if plan.reach:
        yield f"context of {plan.reach:,}", [f"linear:{c.scale}" if c.scale > 1 else "fits" for c in plan.columns]


def _disk(plan: Plan) -> Iterable[tuple[str, list[str]]]:
    kinds: dict[str, Callable[[Column], float]] = {
        "disk GB: decoded frames": lambda c: c.tier,
        "disk GB: features": lambda c: c.features,
        "kept GB: prefixes' keys and values": lambda c: c.prefixes,
    }
    for words, size in kinds.items():
        if any(size(c) for c in plan.columns):
            yield f"  {words}", [_short(size(c) / GB) for c in plan.columns]


def _largest(plan: Plan) -> list[str]:
    rows = [(f"  {name}", [f"{frames:,}" for frames in found]) for name, found in plan.largest.items()]
    return _aligned([("most frames, answers one by one, in", [f"{gb} GB" for gb in plan.budgets]), *rows])


def _advice(plan: Plan) -> list[str]:
    column = plan.columns[-1]
    lines = [f"what to change at {column.work.frames:,} frames (saves GB at the peak, seconds a film)"]
    for number, saving in enumerate(plan.advice[:MOST_ADVICE], start=1):
        same = "" if saving.knob.same else "  (trains differently)"
        numbers = f"{saving.bytes / GB:+.1f} GB  {saving.seconds:+.1f} s"
        lines.append(f"  {number}. {saving.knob.words:<30} {numbers:>22}{same}")
    return lines if len(lines) > 1 else ["nothing worth changing"]


def _notes(plan: Plan) -> list[str]:
    notes = list(plan.notes)
    if any(column.scale > 1 for column in plan.columns):
        notes.insert(
            0, "beyond the context a run is refused: --context.rope as above, fewer frames or --context.reduce"
        )
    return ["", *notes] if notes else []


def as_json(plan: Plan) -> dict[str, Any]:
    """The same for programs: seconds, GB."""
    return {
        "model": plan.model,
        "shape": asdict(plan.shape),
        "device": plan.device.name,
        "gb": plan.device.bytes / GB,
        "rates": "probed" if plan.probed else "model",
        "columns": [_column(c) for c in plan.columns],
        "largest": {name: dict(zip(map(str, plan.budgets), n, strict=True)) for name, n in plan.largest.items()},
        "advice": [
            {"change": s.knob.words, "same": s.knob.same, "gb": s.bytes / GB, "seconds": s.seconds} for s in plan.advice
        ],
        "notes": list(plan.notes),
        "context": plan.reach or None,
    }


def _column(column: Column) -> dict[str, Any]:
    held = {
        name: getattr(column.room, name) / GB for name in (*HELD, "prefill", "generate", "answers", "prefix_backward")
    }
    return {
        "frames": column.work.frames,
        "prefix": column.work.prefix,
        "context_factor": column.scale or None,
        "keep": column.way.keep,
        "seconds": asdict(column.seconds) | {"together": column.seconds.cached},
        "gb": held,
        "fits": column.fits,
        "step_s": column.step_s,
        "hours": column.hours,
        "disk_gb": {"tier": column.tier / GB, "features": column.features / GB, "prefixes": column.prefixes / GB},
    }


def _aligned(rows: Sequence[tuple[str, list[str]]]) -> list[str]:
    """Names to the left, numbers to the right."""
    first = max(len(name) for name, _ in rows)
    widths = [max(len(row[i]) for _, row in rows if row) for i in range(max(len(row) for _, row in rows))]
    return [
        f"{name:<{first}}  " + "  ".join(f"{value:>{width}}" for value, width in zip(row, widths, strict=False))
        if row
        else name
        for name, row in rows
    ]


def _many(count: int) -> str:
    """8.29 B, 5.3 M."""
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _short(number: float) -> str:
    """Three digits: 0.012, 1.23, 45.6, 7,890."""
    if number >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 or number == 0 else f"{number:.3f}"
