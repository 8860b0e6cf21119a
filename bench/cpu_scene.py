"""One question about one film, as a mode of the CPU benchmark meets it, and a clock for the phases of a step.

P prompt tokens, R answer tokens, G answers.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from bench.cpu_world import World
from longtake.data.cache import FrameTier, Quarantine
from longtake.maths.algorithms import ALGORITHMS
from longtake.maths.loss import Loss
from longtake.models.adapters import add_adapter
from longtake.models.qwen3_vl import Qwen3VL
from longtake.records import Draw, Features, Group, Prompt
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model, tower_fingerprint
from longtake.runtime.prefixcache import PrefixCache
from longtake.train.keys import keyed
from longtake.train.step import Objective, adamw, step_optimizer

RATE, BETAS, NORM = 1e-6, (0.9, 0.95), 1.0
RANK, ALPHA = 16, 32.0
LOSS: Loss = ALGORITHMS["longtake"].loss
OBJECTIVE = Objective(LOSS, on_policy=True)
ANSWER_TOKENS = 512  # of answers in one forward and backward on a prefill: what keeps memory flat in G
NEVER = (-1,)  # no token ends an answer: all have exactly the length that is measured


@dataclass(slots=True)
class Clock:
    """Seconds by phase. Example: with clock("decode"): …."""

    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Took:
    """One step of a mode. Example: Took({"rollout": 0.4, "policy": 2.0, "optimizer": 0.1}, 2.1, 0.7)."""

    phases: dict[str, float]  # seconds; they add up to the step, but for the film's first touch
    update: float  # seconds from answers known to optimizer done
    norm: float  # of the gradient: modes that are the same in exact arithmetic must agree on it


@dataclass(slots=True)
class Scene:
    """A network that learns from one group of answers. Example: with scene.touched(folder, clock): exact(scene)."""

    world: World
    model: Qwen3VL
    frames: int
    group: int  # G
    answer: int  # R
    optimizer: torch.optim.Optimizer
    params: Sequence[nn.Parameter]
    films: Films | None = None
    prefixes: PrefixCache | None = None  # of an activated LoRA
    at: int = 0  # steps made

    @property
    def look(self) -> Look:
        return Look(self.world.question(self.frames), self.world.policy(self.frames))

    @property
    def prompt(self) -> Prompt:
        assert self.films is not None
        return self.films.prompt(self.look)

    def features(self, handles: Sequence[str]) -> list[Features]:
        """Encoded features of handles, from the store."""
        assert self.films is not None
        return self.films.features(handles)

    @property
    def draws(self) -> list[Draw]:
        return [Draw(1.0, keyed("bench", self.at, place)) for place in range(self.group)]

    def weights(self, group: Group) -> list[list[float]]:
        """[G][R] advantages as rewards would leave them: half of the answers good, half bad."""
        return [[1.0 if place % 2 else -1.0] * len(answer.ids) for place, answer in enumerate(group.answers)]

    @contextmanager
    def touched(self, folder: Path, clock: Clock) -> Iterator[None]:
        """The film as a run meets it for the first time: decoded into a new tier, encoded into a new store."""
        shutil.rmtree(folder, ignore_errors=True)
        store = FeatureStore(folder / "features", tower_fingerprint(self.model), self.model.net.dtype)
        films = Films(self.model, FrameTier(folder / "tier"), store, Quarantine(folder))
        look = self.look
        assert look.question.video is not None
        with clock("decode"):
            films.decode({look.question.video: [look.policy]}, 0, lambda done, total: None)
        with clock("encode"), torch.no_grad():
            films.encode([look], lambda done, total: None)
        self.films = films
        yield
        self.films = None
        self.at += 1
        shutil.rmtree(folder, ignore_errors=True)

    def learn(self, clock: Clock) -> float:
        """One AdamW step on the summed gradients; their norm."""
        with clock("optimizer"):
            count = float(self.group * self.answer)
            return step_optimizer(self.optimizer, self.params, count=count, lr=RATE, max_norm=NORM)


def opened(world: World, frames: int, group: int, answer: int, *, adapter: bool = False) -> Scene:
    """The network with its tower frozen and all else trained, or an activated LoRA alone."""
    model = load_model(world.model, "float32", "cpu")
    model.end_ids = NEVER
    model.tower.requires_grad_(False)
    if adapter:
        add_adapter(model, "alora", RANK, ALPHA)
    params = [p for p in model.net.parameters() if p.requires_grad]
    return Scene(world, model, frames, group, answer, adamw(params, RATE, BETAS, 0.0), params)
