"""`longtake plan`: memory, seconds and disk of a training run before it is started, and what to change.

Needs no weights and no GPU: the numbers are maths.cost and maths.room on the sizes in config.json. With --probe the
rates are measured here, on a slice of such a network.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import Field, model_validator

from longtake.cli.plan_model import Known, Sizes, known
from longtake.cli.plan_words import Column, Plan, as_json, text
from longtake.config import Settings, suggest
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.folder import machine
from longtake.maths.cost import Keep, Mode, Rates, Way, Work, predict
from longtake.maths.devices import DEVICES, GB, Device, cpu
from longtake.maths.knobs import NF4, Saving, savings
from longtake.maths.room import fits, keep_for, largest_frames, room
from longtake.maths.shapes import Shape
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory, PrefixGradient, probability

ALGORITHMS = ("longtake", "grpo", "dapo", "dr_grpo", "gspo", "cispo", "rloo", "reinforce_pp", "reinforce_pp_baseline")
REWARDS_FIRST = ("reinforce_pp", "reinforce_pp_baseline")  # their advantages need every reward of a step
BUDGETS = (24, 48, 80, 141)  # GB
BYTES = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
PIXEL_BYTES = 3
WORTH = 0.03  # of the peak or of the seconds: advice that saves less is not given


class Config(Settings):
    """What a run would need: memory, seconds, disk."""

    model: str | None = Field(
        None, description="folder, hub id in the local cache, or a name: qwen2.5-vl-7b, qwen3-vl-8b"
    )
    sizes: Sizes | None = Field(None, description="instead of a model")
    frames: tuple[int, ...] = Field((64, 256, 512, 1024), description="frames a film; each is a column")
    tokens_per_frame: float | None = Field(
        None, gt=0, description="default: as the model's processor makes them, or 70"
    )
    question_tokens: int = Field(256, ge=1, description="tokens of a prompt beside the film")
    questions_per_film: int = Field(1, ge=1, description="that a step asks about one film; they share it")
    group_size: int = Field(8, ge=1, description="G, answers to each question")
    max_tokens: int = Field(768, ge=1, description="tokens of an answer")
    algorithm: str = Field("longtake", description=", ".join(ALGORITHMS))
    epochs: int = Field(1, ge=1, description="optimizer passes over a step's answers")
    minibatches: int = Field(1, ge=1, description="optimizer steps in a pass")
    kl: bool = Field(False, description="a reference model scores the answers as well")
    adapter: Adapter = Field(Adapter(), description="all weights, or a LoRA on the decoder")
    prefix_gradient: PrefixGradient = Field("exact", description="exact, none, or its probability")
    memory: Memory = Field(Memory(), description="what is held at once")
    questions: int = Field(16, ge=1, description="questions a step")
    steps: int = Field(200, ge=1, description="steps of the run")
    films: int | None = Field(None, ge=1, description="different films of the run (default: none is seen twice)")
    dtype: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 on a GPU, else float32")
    device: str | None = Field(None, description=f"{', '.join(DEVICES)} or cpu (default: this computer's)")
    gb: float | None = Field(None, gt=0, description="memory of the device, if not as usual")
    probe: bool = Field(False, description="measure the rates of this computer first (half a minute)")

    @model_validator(mode="after")
    def _used(self) -> Config:
        if (self.model is None) == (self.sizes is None):
            raise ValueError("give --model or --sizes, one of them")
        if not self.frames or min(self.frames) < 1:
            raise ValueError("frames must be one or more numbers from 1 on")
        if self.questions % self.questions_per_film:
            raise ValueError(f"questions {self.questions} must be a multiple of questions_per_film")
        if "alpha" in self.adapter.model_fields_set:
            raise ValueError("adapter.alpha has no effect on what a run needs: leave it out")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns {"model", "device", "rates", "columns", "largest", "advice", "notes"}."""
    config.memory.check(config.adapter.kind, config.prefix_gradient)
    found = known(config.model, config.sizes, config.tokens_per_frame)
    device = _device(config)
    item = BYTES[config.dtype] if config.dtype != "auto" else 4.0 if device.on_cpu else 2.0
    rates = device.rates(item)
    if config.probe:
        rates = _probed(config, found.shape, rates, item)
    plan = made(config, found, device, rates, item)
    log.say(text(plan))
    return as_json(plan)


def made(config: Config, found: Known, device: Device, rates: Rates, item: float) -> Plan:
    """The plan by these rates."""
    way = way_of(config, found.shape, device, item)
    columns = tuple(_column(config, found, device, rates, way, frames) for frames in sorted(set(config.frames)))
    last = columns[-1]
    largest = {}
    for name, mode, keep in MODES:
        if keep == "host" and device.on_cpu:
            continue
        adapter = "alora" if mode == "alora" else "lora" if way.adapter == "alora" else way.adapter
        other = replace(way, mode=mode, keep=keep, adapter=adapter, chance=1.0)
        largest[name] = tuple(largest_frames(found.shape, last.work, other, gb * GB, device.host) for gb in BUDGETS)
    advice = advised(savings(found.shape, last.work, last.way, rates=rates), last)
    asked = config.steps * config.questions // config.questions_per_film
    return Plan(
        found.name, found.shape, device, config.probe, _trains(config), columns, BUDGETS, largest, tuple(advice),
        min(config.films or asked, asked), found.notes, found.reach,
    )  # fmt: skip


def advised(found: Sequence[Saving], column: Column) -> list[Saving]:
    """What is worth it: most memory first where that is short, else most seconds."""
    peak, seconds = column.room.peak, column.seconds.cached
    if not column.fits:
        return [saving for saving in found if saving.bytes >= WORTH * peak]
    quicker = [saving for saving in found if saving.seconds >= WORTH * seconds]
    return sorted(quicker, key=lambda saving: (not saving.knob.same, -saving.seconds))


def _trains(config: Config) -> str:
    """How the run trains, in a line."""
    kind, gradient = config.adapter.kind, config.prefix_gradient
    learns = "all weights learn" if kind == "full" else f"{kind} of rank {config.adapter.rank}"
    four = " on nf4" if config.adapter.quantize else ""
    through = "" if kind == "alora" else f", prefix gradient {gradient}"
    asked = f"{config.questions} questions a step, {config.group_size} answers of {config.max_tokens} tokens to each"
    return f"{config.algorithm}, {learns}{four}{through}; {asked}"


MODES: tuple[tuple[str, Mode, Keep], ...] = (
    ("exact, graph", "exact", "graph"),
    ("exact, attention", "exact", "attention"),
    ("exact, layers", "exact", "layers"),
    ("exact, host", "exact", "host"),
    ("none", "none", "nothing"),
    ("alora", "alora", "nothing"),
)


def way_of(config: Config, shape: Shape, device: Device, item: float) -> Way:
    """How the run trains. Raises UserError for an unknown algorithm or adapter target."""
    if config.algorithm not in ALGORITHMS:
        near = suggest(config.algorithm, ALGORITHMS)
        fix = f"did you mean '{near}'?" if near else f"one of {', '.join(ALGORITHMS)}"
        raise UserError(f"unknown algorithm '{config.algorithm}'", where="--algorithm", fix=fix)
    for name in config.adapter.targets or ():
        if name not in shape.matrices():
            fix = f"did you mean '{suggest(name, shape.matrices()) or 'q_proj'}'?"
            raise UserError(f"no linear layer '{name}'", where="--adapter.targets", fix=fix)
    chance = probability(config.prefix_gradient)
    alora, off_policy = config.adapter.kind == "alora", config.epochs * config.minibatches > 1
    keep = config.memory.keep
    return Way(
        mode="alora" if alora else "exact" if chance else "none",
        keep="nothing" if alora or not chance else "graph" if keep == "auto" else keep,
        adapter=config.adapter.kind,
        rank=config.adapter.rank,
        targets=config.adapter.targets,
        item=item,
        weight=NF4 if config.adapter.quantize else item,
        chance=chance,
        epochs=config.epochs,
        updates=config.epochs * config.minibatches,
        repeats=off_policy or config.algorithm in REWARDS_FIRST,
        kl=config.kl,
        row_tokens=config.memory.row_tokens,
        answer_tokens=config.memory.answer_tokens,
        tile=config.memory.tile,
        one_memory=device.on_cpu,
    )


def _column(config: Config, found: Known, device: Device, rates: Rates, way: Way, frames: int) -> Column:
    each = found.per_frame(frames)
    asked = config.questions_per_film
    work = Work(
        frames, max(1, round(frames * each)), config.question_tokens, asked, config.group_size, config.max_tokens
    )
    shape = found.shape
    a_step = config.questions // asked
    together = min(a_step, max(1, int(way.row_tokens // work.inner.tokens)))
    if way.through and config.memory.keep == "auto":
        way = replace(way, keep=keep_for(shape, work, way, device.bytes, device.host, together))
    seconds = predict(shape, work, way, rates)
    step_s = a_step * (seconds.cached - seconds.optimizer) + seconds.optimizer
    looks = config.steps * a_step
    films = min(config.films or looks, looks)
    prefixes = films * work.inner.tokens * shape.kv * way.item if way.mode == "alora" else 0.0
    first = films * (seconds.decode + seconds.encode)
    if prefixes:
        held = min(1.0, _room_for_prefixes(config.memory) / prefixes)
        computed = films + (looks - films) * (1 - held)
        first += computed * predict(shape, work, replace(way, warm=False), rates).prefill
    return Column(
        work=work,
        way=way,
        seconds=seconds,
        room=room(shape, work, way, together),
        fits=fits(shape, work, way, device.bytes, device.host, together),
        scale=-(-(round(work.prefix) + config.max_tokens) // found.reach) if found.reach else 0,
        step_s=step_s,
        hours=(config.steps * step_s + first) / 3600,
        tier=films * PIXEL_BYTES * work.visual * shape.merge * 2 * 14**2,
        features=films * work.visual * shape.width * (1 + shape.levels) * way.item,
        prefixes=prefixes,
    )


def _room_for_prefixes(memory: Memory) -> float:
    """Bytes in which a run keeps keys and values of its prefixes."""
    return (memory.prefixes_ram + (memory.prefixes_disk if memory.prefixes else 0.0)) * 2**30


def _device(config: Config) -> Device:
    """The device that was asked for, else this computer's. Raises UserError for one that is not in the table."""
    name = config.device or _here()
    if name == "cpu":
        found = cpu(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, _memory()
        )
    elif name.lower() in DEVICES:
        found = DEVICES[name.lower()]
    else:
        near = suggest(name.lower(), (*DEVICES, "cpu"))
        meant = f"did you mean '{near}'? Else " if near else ""
        fix = f"{meant}one of {', '.join(DEVICES)}, cpu; another GPU: the nearest of them and --gb"
        raise UserError(f"no device '{name}'", where="--device", fix=fix)
    return found if config.gb is None else replace(found, bytes=config.gb * GB)


def _here() -> str:
    """This computer's GPU if the table has it, else cpu."""
    cards = "".join(machine()["gpus"]).lower().replace(" ", "")
    return next((name for name in DEVICES if name in cards), "cpu")


def _memory() -> float:
    """Bytes of this computer."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _probed(config: Config, shape: Shape, rates: Rates, item: float) -> Rates:
    """Rates of this computer. Raises UserError where it is not the device that is planned for."""
    import torch

    from longtake.cli.probe import Where, probe

    cuda = torch.cuda.is_available()
    wanted = "cpu" if (config.device or _here()) == "cpu" else "cuda"
    if wanted == "cuda" and not cuda:
        why = "torch sees no GPU here, and a probe measures this computer"
        raise UserError(f"cannot probe {config.device}", where="--probe", why=why, fix="leave --probe or --device out")
    return probe(shape, rates, Where(wanted, torch.bfloat16 if item < 4 else torch.float32))
