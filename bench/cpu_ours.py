"""longtake's ways to make the step, by the code that its recipes run (engines.local, train.step, runtime.prefix).

    exact               the rollout's prefill is the training forward: its graph is kept, answers are scored on its keys
                        and values, one backward goes through the prefix
    exact_layers        the same, keeping layers' inputs alone: each layer is computed again in the backward
    no_prefix_gradient  answers learn on the prefix's keys and values, no gradient goes through the prefix
    alora               an adapter on answer tokens only; the prefix's keys and values are the base model's and kept for
                        the run: this is a step that finds them there

The step is made as a run makes it, and then the update alone, on the same answers: it computes the prefix itself in the
first two modes, and finds its keys and values in the last two, as they do in a run.
"""

from __future__ import annotations

from bench.cpu_scene import ANSWER_TOKENS, OBJECTIVE, Clock, Scene, Took
from longtake.engines.local import Kept, LocalEngine
from longtake.maths.pack import pack
from longtake.records import PrefixRow
from longtake.runtime.prefix import Keep
from longtake.runtime.rows import bare, compute, lead
from longtake.train.step import Passes, backward


def exact(scene: Scene) -> Took:
    return _on_prefill(scene, "graph")


def exact_layers(scene: Scene) -> Took:
    return _on_prefill(scene, "layers")


def no_prefix_gradient(scene: Scene) -> Took:
    return _on_prefill(scene, "nothing")


def alora(scene: Scene) -> Took:
    """On keys and values that an earlier step left behind."""
    model, features, clock = scene.model, scene.features, Clock()
    engine = LocalEngine(model, features, "bench")
    with clock("prefill"):
        made = compute(model, bare(model, [scene.prompt]), features, "nothing")
    with clock("rollout"):
        ((kept,),) = engine.rollout([scene.prompt], [scene.draws], scene.answer, lambda prompts: "nothing")
    generate = clock.seconds.pop("rollout") - clock.seconds.pop("prefill")
    row = _packed(scene, kept)
    with clock("update"):
        backward(model, features, row, OBJECTIVE, Passes("nothing", answer_tokens=ANSWER_TOKENS), made, 0.0)
    norm = scene.learn(clock)
    return Took({"generate": generate} | clock.seconds, clock.total, norm)


def _on_prefill(scene: Scene, keep: Keep) -> Took:
    """Rollout and update on one prefill; then the update on a prefill of its own."""
    model, features = scene.model, scene.features
    engine, step, alone = LocalEngine(model, features, "bench"), Clock(), Clock()
    passes, through = Passes(keep, answer_tokens=ANSWER_TOKENS), 0.0 if keep == "nothing" else 1.0
    with step("rollout"):
        ((kept,),) = engine.rollout([scene.prompt], [scene.draws], scene.answer, lambda prompts: keep)
    row = _packed(scene, kept)
    with step("update"):
        backward(model, features, row, OBJECTIVE, passes, kept.made, through)
    norm = scene.learn(step)
    del kept
    with alone("prefill"):
        made = compute(model, bare(model, [scene.prompt]), features, keep)
    with alone("update"):
        backward(model, features, row, OBJECTIVE, passes, made, through)
    scene.learn(alone)
    prefill = alone.seconds.pop("prefill")
    update = alone.total + (prefill if through else 0.0)
    generate = step.seconds.pop("rollout") - prefill
    return Took({"prefill": prefill, "generate": generate} | step.seconds, update, norm)


def _packed(scene: Scene, kept: Kept) -> PrefixRow:
    """The group and its advantages as a row to learn from."""
    (group,) = kept.groups
    ids = [answer.ids for answer in group.answers]
    return pack([group.prompt], [ids], [scene.weights(group)], lead=lead(scene.model))
