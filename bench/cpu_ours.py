"""longtake's ways to make the step, by the code that its recipes run (engines.local, train.step, runtime.prefix).

    exact               the rollout's prefill is the training forward: its graph is kept, answers are scored on its keys
                        and values, one backward goes through the prefix
    exact_layers        the same, keeping layers' inputs alone: each layer is computed again in the backward
    no_prefix_gradient  answers learn on the prefix's keys and values, no gradient goes through the prefix
    alora               an adapter on answer tokens only; the prefix's keys and values are the base model's and kept for
                        the run: this is a step that finds them in memory

A step has one prefill, in its rollout. The update of the first two counts that prefill as its own, so that every update
that goes back through a prefix has gone forward through it; that of the last two finds keys and values, as in a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.cpu_scene import ANSWER_TOKENS, OBJECTIVE, Clock, Scene, Took
from longtake.engines.local import LocalEngine
from longtake.engines.loop import Written
from longtake.maths.pack import pack
from longtake.runtime.prefix import Keep
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import lead
from longtake.train.step import Passes, backward

CACHE_GIB = 4.0


def exact(scene: Scene) -> Took:
    return _step(scene, "graph")


def exact_layers(scene: Scene) -> Took:
    return _step(scene, "layers")


def no_prefix_gradient(scene: Scene) -> Took:
    return _step(scene, "nothing")


def alora(scene: Scene) -> Took:
    if scene.prefixes is None:  # an earlier step's work
        scene.prefixes = PrefixCache(CACHE_GIB)
        next(_engine(scene).rollout([scene.prompt], [scene.draws], 1, lambda prompts: "nothing"))
    return _step(scene, "nothing")


@dataclass(frozen=True, slots=True)
class Timed(LocalEngine):
    """Tells the two halves of a rollout apart."""

    clock: Clock = field(default_factory=Clock)

    def _written(self, *asked: Any) -> list[Written]:
        with self.clock("generate"):
            return LocalEngine._written(self, *asked)


def _engine(scene: Scene) -> Timed:
    return Timed(scene.model, scene.features, "bench", prefixes=scene.prefixes)


def _step(scene: Scene, keep: Keep) -> Took:
    """Rollout and update on one prefill."""
    through, clock, engine = 0.0 if keep == "nothing" else 1.0, Clock(), _engine(scene)
    with clock("rollout"):
        ((kept,),) = engine.rollout([scene.prompt], [scene.draws], scene.answer, lambda prompts: keep)
    (group,) = kept.groups
    ids: list[Sequence[int]] = [answer.ids for answer in group.answers]
    row = pack([group.prompt], [ids], [scene.weights(group)], lead=lead(scene.model))
    passes = Passes(keep, answer_tokens=ANSWER_TOKENS)
    with clock("update"):
        backward(scene.model, scene.features, row, OBJECTIVE, passes, kept.made, through)
    norm = scene.learn(clock)
    generate = engine.clock.seconds["generate"]
    prefill = clock.seconds.pop("rollout") - generate
    update = clock.total + (prefill if through else 0.0)
    return Took({"prefill": prefill, "generate": generate} | clock.seconds, update, norm)
