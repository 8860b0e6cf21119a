"""What a judge reads of a film beside seeing it: clips, captioned one by one, in order (VLM-RLAIF, arXiv 2402.03746).

A long film is understood in parts better than at once: each clip gets frames of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from longtake.records import Draw, FramePolicy, Question, Receipt
from longtake.runtime.films import Look
from longtake.train.asking import Ask, Ledger
from longtake.train.judge_prompts import Prompts, fill
from longtake.train.judge_settings import Context
from longtake.train.keys import keyed


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a film. Example: Clip("films/7.mp4", 0.0, 2.7, 20)."""

    film: str
    start: float  # seconds
    stop: float
    frames: int  # at most
    max_pixels: int | None = None  # a frame

    @property
    def policy(self) -> FramePolicy:
        """Which frames are captioned."""
        return FramePolicy(frames=self.frames, start=self.start, end=self.stop, max_pixels=self.max_pixels)

    @property
    def key(self) -> str:
        return f"{self.film} {self.start:g}-{self.stop:g} {self.max_pixels or ''}".strip()


@dataclass(frozen=True, slots=True)
class Caption:
    """What a clip was described as. Example: Caption(0.0, 2.7, "A red cup …", receipt)."""

    start: float  # seconds
    stop: float
    text: str
    receipt: Receipt | None  # of the frames that were captioned


Narrative = tuple[Caption, ...]


def clips_of(look: Look, duration: float, context: Context) -> tuple[Clip, ...]:
    """The parts of what a question may look at, `duration` seconds the whole film; none of a picture.

    Equal parts; by `clip_seconds` a last part shorter than half of it joins the one before.
    """
    film, policy = look.question.video, look.policy
    if film is None or policy.image:
        return ()
    start, end = policy.start, duration if policy.end is None else min(policy.end, duration)
    if context.clip_seconds is None:
        borders = [start + (end - start) * k / context.clips for k in range(context.clips)]
    else:
        count = max(1, math.floor((end - start) / context.clip_seconds + 0.5))
        borders = [start + context.clip_seconds * k for k in range(count)]
    borders = [round(second, 3) for second in (*borders, end)]
    return tuple(Clip(film, a, b, context.clip_frames, policy.max_pixels) for a, b in pairwise(borders))


def captioning(clips: Sequence[Clip], prompts: Prompts, seed: int) -> list[Ask]:
    """One ask for every clip, likeliest words."""
    asks = []
    for clip in dict.fromkeys(clips):
        text = fill(prompts.caption, **_times(clip.start, clip.stop))
        question = Question(clip.key, clip.film, text)
        asks.append(Ask(clip.key, Look(question, clip.policy), (Draw(0.0, keyed(seed, "caption", clip.key)),)))
    return asks


def narrative(clips: Sequence[Clip], captions: Ledger) -> Narrative | None:
    """The captions of these clips in order; None if one of them could not be made."""
    found = []
    for clip in clips:
        reply = captions.get(clip.key)
        if reply is None or reply.error:
            return None
        found.append(Caption(clip.start, clip.stop, reply.said[0].text.strip(), reply.receipt))
    return tuple(found)


def told(captions: Narrative, prompts: Prompts) -> str:
    """The narrative as a prompt holds it; "" where there is none."""
    lines = [fill(prompts.clip, caption=one.text, **_times(one.start, one.stop)) for one in captions]
    return fill(prompts.narrative, clips="\n".join(lines)) if lines else ""


def _times(start: float, stop: float) -> Mapping[str, str]:
    return {"start": f"{start:.1f}", "stop": f"{stop:.1f}"}
