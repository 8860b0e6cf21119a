"""What an engine sees and computes, against what the trainer does, on the same prompts and answers.

N prompts, G answers each, P prompt tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from longtake.engines.local import LocalEngine
from longtake.protocols import Model
from longtake.records import Draw, Group, Prompt
from longtake.train.outside import Outside
from longtake.train.step import Passes


class Beheld(Protocol):
    """An engine that says what it saw (engines.vllm)."""

    strange: int  # prompts of which it read other tokens than ours

    @property
    def places(self) -> bool:
        """Whether it has a rule of its own for positions; else they are 0, 1, 2, …"""

    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]: ...

    def load(self, model: Model, version: str) -> None: ...

    def positions(self, prompt: Prompt) -> Tensor:
        """int64 [3, P] that it gives the prompt's tokens."""

    def held(self, prompt: Prompt) -> Tensor:
        """Features [N, E] of the prompt's film, DeepStack levels side by side, as they reached it."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far engine and trainer are apart. Example: Parity(True, True, 0.0, 2e-6, 3e-7, 0.0, 8, 32, 900).equal."""

    ids_equal: bool
    positions_equal: bool | None  # None: the engine has no rule for them, they count up
    features_max_abs: float | None  # between ours and those that reached it; None where nothing is seen
    logprob_max_abs: float  # nats, of a sampled token
    logprob_mean_abs: float
    kl: float  # nats a token
    prompts: int
    answers: int
    tokens: int


def measure(
    engine: Beheld,
    local: LocalEngine,
    prompts: Sequence[Prompt],
    draws: Sequence[Sequence[Draw]],
    max_tokens: int,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> Parity:
    """Lets the engine answer, and the trainer's own model score what it said; all draws are of one temperature."""
    groups = engine.generate(prompts, draws, max_tokens)
    outside = Outside(engine, Passes(), cap=0.0, gate=math.inf)
    for done, group in enumerate(groups, 1):
        outside.settled(local, [group], draws[0][0].temperature)
        say(done, len(groups))
    seen = outside.seen
    tokens = sum(one.tokens for one in seen)
    return Parity(
        ids_equal=engine.strange == 0,
        positions_equal=_placed(engine, prompts) if engine.places else None,
        features_max_abs=_changed(engine, local, prompts),
        logprob_max_abs=max(one.gap for one in seen),
        logprob_mean_abs=sum(one.mean * one.tokens for one in seen) / tokens,
        kl=sum(one.kl * one.tokens for one in seen) / tokens,
        prompts=len(prompts),
        answers=sum(len(group.answers) for group in groups),
        tokens=tokens,
    )


def _placed(engine: Beheld, prompts: Sequence[Prompt]) -> bool:
    return all(torch.equal(engine.positions(prompt), prompt.position_3P) for prompt in prompts)


def _changed(engine: Beheld, local: LocalEngine, prompts: Sequence[Prompt]) -> float | None:
    """By how much features changed on their way to the engine."""
    most: dict[str, float] = {}
    for prompt in prompts:
        if prompt.features is not None and prompt.features not in most:
            ours_NE = torch.cat(list(local.features([prompt.features])[0].level_LNE), -1).cpu()
            most[prompt.features] = float((ours_NE - engine.held(prompt).to(ours_NE.dtype)).abs().max())
    return max(most.values(), default=None)
