"""Config blocks that several recipes share. No torch here: a recipe's --help imports this."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.records import FramePolicy, Question

Dtype = Literal["auto", "float32", "float64", "bfloat16", "float16"]  # auto: as saved


class Video(Settings):
    """Which frames are looked at. A row that names its own frames or window keeps them."""

    frames: tuple[int, ...] = Field((64,), description="frames a film, drawn per question where several are given")
    fps: float | None = Field(None, gt=0, description="frames a second instead of a number of frames")
    max_frames: int = Field(
        768, ge=1, description="cap for fps, the run's or a row's own; what it cuts is said in the receipt"
    )
    seconds: tuple[float, ...] | None = Field(None, description="look at these times instead")
    start: float = Field(0.0, ge=0, description="look from this second on")
    end: float | None = Field(None, gt=0, description="look up to this second (default: the film's end)")
    max_pixels: int | None = Field(None, ge=1, description="pixels a frame, beside the model's own limit")
    root: Path | None = Field(None, description="folder of the films, if not that of the rows file")
    workers: int = Field(2, ge=1, description="processes that decode")
    tier: Path | None = Field(None, description="folder of decoded frames, shared by runs (default: in the run folder)")
    features: Path | None = Field(
        None, description="folder of encoded features, shared by runs (default: none, they stay in memory)"
    )
    features_ram: float = Field(
        8.0, ge=0, description="GiB of features kept in each rank's memory; the others are encoded again"
    )
    features_disk: float = Field(200.0, gt=0, description="GiB of features kept on disk; the oldest give way")
    most_failed: float = Field(
        0.1, ge=0, le=1, description="share of films that may be quarantined before the run ends"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Video:
        given = self.model_fields_set
        if sum((self.fps is not None, self.seconds is not None, "frames" in given)) > 1:
            raise ValueError("frames, fps and seconds exclude each other: give one")
        if self.seconds is not None and {"start", "end"} & given:
            raise ValueError("seconds are the times themselves: leave start and end out")
        if self.features is None and "features_disk" in given:
            raise ValueError("features_disk has no effect without a folder: name it in features")
        if not self.frames or min(self.frames) < 1:
            raise ValueError("frames must be one or more numbers from 1 on")
        return self

    def policies(self, question: Question | None = None) -> tuple[FramePolicy, ...]:
        """Every policy that a question, or any question that names none itself, may be drawn with."""
        if self.fps is None and self.seconds is None:
            every = [self._window(frames=n) for n in sorted(set(self.frames))]
        else:
            every = [self._window()]
        own = question.policy if question else None
        return tuple(dict.fromkeys(self.merged(own, policy) for policy in every))

    def policy(self, question: Question, draw: int) -> FramePolicy:
        """The policy that `draw` (any number) picks for a question, in the shares that `frames` was written in."""
        if self.fps is not None or self.seconds is not None:
            return self.policies(question)[0]
        return self.merged(question.policy, self._window(frames=self.frames[draw % len(self.frames)]))

    def merged(self, own: FramePolicy | None, drawn: FramePolicy) -> FramePolicy:
        """`drawn` with what a row itself asks for."""
        return merged(own, drawn, self.max_frames)

    def window(self, frames: int) -> FramePolicy:
        """That many frames of the run's window."""
        return FramePolicy(frames=frames, start=self.start, end=self.end, max_pixels=self.max_pixels)

    def _window(self, frames: int | None = None) -> FramePolicy:
        """That many frames, or what fps or seconds say."""
        most = self.max_frames if self.fps is not None else None
        return FramePolicy(frames, self.fps, most, self.seconds, self.start, self.end, self.max_pixels)


def merged(own: FramePolicy | None, drawn: FramePolicy, most: int) -> FramePolicy:
    """A row's own policy goes before the run's; what it leaves open the run decides. `most` caps a row's own fps."""
    if own is None:
        return drawn
    pixels = own.max_pixels or drawn.max_pixels
    if own.seconds is not None:
        return replace(own, max_pixels=pixels)
    start, end = (own.start, own.end) if own.start or own.end is not None else (drawn.start, drawn.end)
    cap = own.max_frames or most
    if own.frames is not None or own.fps is not None:
        capped = cap if own.fps is not None else None
        return replace(own, max_frames=capped, start=start, end=end, max_pixels=pixels)
    drawn = replace(drawn, pick=own.pick, budget=own.budget)
    if drawn.frames is not None:
        frames = min(drawn.frames, own.max_frames or drawn.frames)
        return replace(drawn, frames=frames, start=start, end=end, max_pixels=pixels)
    capped = min(cap, drawn.max_frames) if drawn.max_frames else None
    return replace(drawn, max_frames=capped, start=start, end=end, max_pixels=pixels)


class Optim(Settings):
    """AdamW and its learning-rate schedule."""

    lr: float = Field(1e-5, gt=0, description="peak learning rate")
    warmup: int = Field(20, ge=0, description="steps of linear warm-up")
    schedule: Literal["constant", "cosine", "linear"] = Field("constant", description="after warm-up")
    hold: float = Field(0.0, ge=0, le=1, description="share of steps at the peak before the schedule falls")
    floor: float = Field(0.1, ge=0, le=1, description="last learning rate as a share of the peak")
    betas: tuple[float, float] = Field((0.9, 0.95), description="of AdamW")
    weight_decay: float = Field(0.0, ge=0, description="of AdamW")
    max_grad_norm: float = Field(1.0, gt=0, description="gradients are clipped to this norm")

    @model_validator(mode="after")
    def _falls(self) -> Optim:
        if self.schedule == "constant" and (idle := self.model_fields_set & {"hold", "floor"}):
            raise ValueError(f"{', '.join(sorted(idle))} has no effect on a constant schedule")
        return self

    def rate(self, step: int, steps: int) -> float:
        """Learning rate of `step` (from 0) of `steps`."""

        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        done = max(0.0, (step / max(1, steps) - self.hold) / max(1e-9, 1 - self.hold))
        fall = {"constant": 1.0, "cosine": 0.5 + 0.5 * math.cos(math.pi * done), "linear": 1 - done}[self.schedule]
        return self.lr * rise * (self.floor + (1 - self.floor) * fall)
