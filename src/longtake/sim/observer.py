"""The ideal observer: what some frames of a story's film let anyone know, hence the ceiling of a model that sees them.

It reads every frame right, takes what falls between frames as not having happened, and never guesses.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from longtake.data.frames import choose
from longtake.records import Film, FramePolicy
from longtake.sim.scenes import FPS, SECONDS, SIZE, Scene, track

FILM = Film("", "", FPS * SECONDS, float(FPS), float(SECONDS), SIZE, SIZE, "h264")  # every story's


@lru_cache(maxsize=16)
def looked_at(policy: FramePolicy) -> frozenset[int]:
    """Frame numbers that a policy chooses, the same in every film."""
    return frozenset(choose(FILM, policy).indices)


def seen(scene: Scene, policy: FramePolicy) -> tuple[str, ...]:
    """[SECONDS] the event of each second, "none" where no frame of the policy shows it."""
    frames = looked_at(policy)
    return tuple(
        event if frames.intersection(scene.shown(second)) else "none" for second, event in enumerate(scene.events)
    )


def answer(scene: Scene, policy: FramePolicy) -> str:
    """What follows from the events seen, "" if nothing does: the ball was never shown, two rooms are left."""
    events = seen(scene, policy)
    return "" if events[0] != scene.events[0] else track(scene.kind, scene.question, events)[1]


def ceiling(scenes: Sequence[Scene], frames: int) -> float:
    """Share of the scenes that the observer answers right from so many frames a film."""
    policy = FramePolicy(frames=frames)
    return sum(answer(scene, policy) == scene.truth for scene in scenes) / len(scenes)
