"""The simulator's rows: questions with careful and careless reasoning, clip captions, stories in words.

question_row      film + question (+ one reasoning chain in a given style): RL, evaluation, CoT-SFT
annotated_row     the same by a careful annotator who sees some frames only: leaves RL something to find out
caption_row       a short clip of a film: what happens in each second? (makes the stand-in base model)
story_row         no film: events are told, conclusions are learned (makes the stand-in base model)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from longtake.records import FramePolicy
from longtake.sim.observer import seen
from longtake.sim.scenes import KINDS, LETTERS, SECONDS, Scene, keyed, scene, track

STYLES = {"guess": 0.3, "skim": 0.2, "full": 0.5}  # share of an imperfect annotator's careless and careful chains
SLIPS = 0.05  # share of events it misreads
STORIES, STORIES_LATER = 32, 10  # a step: what is no longer rehearsed is forgotten
STORY_WEIGHT = 0.5  # so that stories and clips weigh about the same in a step

Row = dict[str, Any]


def asked(scene: Scene) -> str:
    """The question as the model reads it."""
    choices = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, scene.options, strict=False))
    return f"{scene.question} {choices}"


def chain(scene: Scene, style: str, rng: np.random.Generator | None = None, slips: float = 0.0) -> str:
    """A reasoning chain and the answer. `full` notes every second and what follows from it, `skim` looks at odd
    seconds and notes no conclusion, `guess` looks at nothing. With `slips`, events are misread as another event of the
    same film; conclusions and answer stay true.
    """
    said = list(scene.events)
    if rng is not None and slips:
        said = [
            str(rng.choice(scene.events[1:])) if second and rng.random() < slips else event
            for second, event in enumerate(said)
        ]
    words = {
        "full": [
            f"s{s} {said[s]} {scene.conclusions[s]}" if s else f"s0 {scene.conclusions[0]}" for s in range(SECONDS)
        ],
        "skim": [f"s{s} {said[s]}" for s in range(1, SECONDS, 2)],
        "guess": [],
    }[style]
    return " ".join(["<think>", *words, conclusion(scene)])


def conclusion(scene: Scene) -> str:
    """The end of every chain.

    The answer is an option's words: looking its letter up is a skill too many for this size.
    """
    return f"so {scene.truth} </think> <answer> {scene.truth} </answer>"


def question_row(name: str, film: str, scene: Scene, *, answer: str | None = None, weight: float = 1.0) -> Row:
    """A canonical row; with `answer` its assistant turn (SFT), without it none (RL, evaluation)."""
    content = [{"type": "video", "video": film}, {"type": "text", "text": asked(scene)}]
    messages: list[Row] = [{"role": "user", "content": content}]
    if answer is not None:
        messages.append({"role": "assistant", "content": answer})
    row: Row = {"id": name, "messages": messages, "options": list(scene.options), "answer": scene.letter}
    row |= {"kind": scene.kind, "hops": scene.hops, "evidence": [[round(a, 3), round(b, 3)] for a, b in scene.evidence]}
    return row if weight == 1.0 else row | {"weight": weight}


def sft_rows(name: str, film: str, scene: Scene, rng: np.random.Generator) -> list[Row]:
    """One chain of every style, each weighted by its share: the mixture without its sampling noise, on one prefix."""
    return [
        question_row(name, film, scene, answer=chain(scene, style, rng, SLIPS), weight=share)
        for style, share in STYLES.items()
    ]


def annotated_row(name: str, film: str, scene: Scene, policy: FramePolicy) -> Row | None:
    """The full chain of an annotator who reads the frames of `policy` right and takes the rest as not having happened.

    None where its answer is wrong: chains are checked against the known answer. What a model learns from such chains
    is to overlook what the annotator did, and no more of them cures it; a reward for right answers does.
    """
    events = seen(scene, policy)
    conclusions, answer = track(scene.kind, scene.question, events)
    if answer != scene.truth:
        return None
    return question_row(name, film, scene, answer=chain(replace(scene, events=events, conclusions=conclusions), "full"))


def caption_row(name: str, film: str, scene: Scene, start: int, stop: int, rate: float) -> Row:
    """What happens in seconds start … stop-1, looked at with `rate` frames a second."""
    video = {"type": "video", "video": film, "video_start": float(start), "video_end": float(stop), "fps": rate}
    said = " ".join(f"s{s} {scene.events[s]}" for s in range(start, stop))
    ask = {"role": "user", "content": [video, {"type": "text", "text": "what happens ?"}]}
    return {"id": name, "messages": [ask, {"role": "assistant", "content": said}], "kind": "caption"}


def story_row(name: str, scene: Scene) -> Row:
    """The full chain without a film: events are read (weight 0), what follows from them is learned."""
    parts = [
        {"type": "text", "text": "<think> s0", "weight": 0.0},
        {"type": "text", "text": scene.conclusions[0], "weight": 0.0},
    ]
    for second in range(1, SECONDS):
        parts.append({"type": "text", "text": f"s{second} {scene.events[second]}", "weight": 0.0})
        parts.append({"type": "text", "text": scene.conclusions[second]})
    parts.append({"type": "text", "text": conclusion(scene)})
    ask = {"role": "user", "content": [{"type": "text", "text": asked(scene)}]}
    return {"id": name, "messages": [ask, {"role": "assistant", "content": parts}], "kind": "story"}


def clip(scene: Scene, width: int, rng: np.random.Generator) -> tuple[int, int]:
    """A window of `width` seconds.

    Stories of kind plot are mostly empty: four in five of their windows hold an event.
    """
    start = int(rng.integers(0, SECONDS - width + 1))
    busy = [s for s, event in enumerate(scene.events) if event != "none" and s]
    if scene.kind == "plot" and busy and rng.random() < 0.8:
        event = int(rng.choice(busy))
        start = int(rng.integers(max(0, event - width + 1), min(event, SECONDS - width) + 1))
    return start, start + width


def base_rows(
    films: Sequence[tuple[str, Scene]], seed: int, split: int, steps: int, rng: np.random.Generator
) -> list[Row]:
    """Rows of the stand-in base model in the order of its curriculum: clips of 1 s, then 1-3 s, then 2-8 s.

    films: (path, scene) pairs to cut clips from. Stories are drawn from (seed, split), most in the first half. Short
    clips come in larger batches: `sft --batch-by row` makes a step of the rows with one value of `batch`.
    """
    by_kind = {kind: [film for film in films if film[1].kind == kind] for kind in KINDS}
    rows: list[Row] = []
    for step in range(steps):
        done = step / steps
        width = 1 if done < 0.15 else int(rng.integers(1, 4)) if done < 0.45 else int(rng.integers(2, SECONDS + 1))
        rate = float(rng.choice((4, 8)))
        for item in range(min(80, max(24, 128 // width))):
            of_kind = by_kind[str(rng.choice(KINDS, p=(0.2, 0.2, 0.2, 0.4)))]
            film, story = of_kind[rng.integers(len(of_kind))]
            rows.append(
                caption_row(f"clip-{step}-{item}", film, story, *clip(story, width, rng), rate) | {"batch": step}
            )
        for item in range(STORIES if done < 0.45 else STORIES_LATER):
            kind = str(rng.choice(KINDS, p=(0.22, 0.22, 0.2, 0.36)))
            told = scene(kind, keyed(seed, split, step, item))
            rows.append(story_row(f"story-{step}-{item}", told) | {"weight": STORY_WEIGHT, "batch": step})
    return rows
