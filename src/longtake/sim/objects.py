"""Extra rows to learn from, object-centric as VLM-RLAIF's (arXiv 2402.03746): short questions on one event or object.

They ask what is seen in a film at one place or of one thing, and are answered in a word, without reasoning.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from longtake.sim.rows import Row
from longtake.sim.scenes import COLOURS, SECONDS, THINGS, Scene

EACH = 2  # questions a film


def questions(scene: Scene) -> Iterator[tuple[str, str]]:
    """Every question on a part of the story, with its answer."""
    for second in range(1, SECONDS):
        yield f"what happens in s{second} ?", scene.events[second]
    if scene.kind == "spatial":
        for second in range(SECONDS):
            yield f"where is the ball in s{second} ?", scene.conclusions[second]
    if scene.kind == "temporal":
        for colour in COLOURS:
            yield f"how many {colour} flashes were there ?", str(scene.events.count(colour))
    if scene.kind == "goal":
        for colour in COLOURS:
            yield f"was the guard in the {colour} room ?", "yes" if colour in scene.events else "no"
    if scene.kind == "plot":
        for second in range(1, SECONDS):
            giver, _, given = scene.events[second].partition(">")
            for thing in THINGS:
                if given.endswith(f":{thing}"):
                    yield f"who gave the {thing} in s{second} ?", giver


def object_rows(name: str, film: str, scene: Scene, rng: np.random.Generator) -> list[Row]:
    """A few of a film's questions, the first on an event and the others on an object."""
    asked = list(questions(scene))
    events, objects = asked[: SECONDS - 1], asked[SECONDS - 1 :]
    picked = [events[rng.integers(len(events))]]
    picked += [objects[place] for place in rng.choice(len(objects), EACH - 1, replace=False)]
    return [_row(f"{name}-{n}", film, *pair) for n, pair in enumerate(picked)]


def _row(name: str, film: str, question: str, answer: str) -> Row:
    content = [{"type": "video", "video": film}, {"type": "text", "text": question}]
    return {
        "id": name,
        "messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}],
        "kind": "object",
    }
