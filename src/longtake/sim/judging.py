"""Rows to learn judging from: a film or none, its narrative or none, a question and answers that are right or wrong.

They make the demo's judge, the stand-in for a larger instruct model that can follow a judge's prompt: the network is
too small to be told in words. Right and wrong answers are written in the same styles and shares, so that only the
narrative and the film tell them apart; the better one comes first as often as second.

judge_row     which of two answers is better, or neither?
score_row     how good is an answer, 1 or 5?
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longtake.sim.rows import SLIPS, STYLES, Row, asked, chain
from longtake.sim.scenes import COLOURS, GIFTS, KINDS, LETTERS, SECONDS, SWAPS, Scene, keyed, scene, track

PROMPTS = {  # what `judge --prompts` reads
    "caption": "what happens ?",
    "clip": "{caption}",
    "narrative": "story {clips}",
    "pair": "which is better ? {first} was one {second} was two {narrative} {question}",
    "score": "score ? {answer} was one {narrative} {question}",
}
VERDICTS = ("A", "B", "tie")
RIGHT, WRONG = 5, 1  # scores
HAPPENS = {"spatial": SWAPS, "temporal": COLOURS, "goal": COLOURS, "plot": GIFTS}
REASONS, VERDICT = 0.5, 2.0  # weights: most words are reasons, few are the comparison
BATCH, TOGETHER = 32, 2  # rows a step; a pair is asked about in both orders
ALONE, ALONE_LATER = 0.4, 0.15  # share of steps without films; of rows without film afterwards
UNTOLD = 0.35  # of the rows with a film: without its narrative
TIES, SCORED = 0.3, 0.12  # of the pairs: both right or both wrong; of all: scored instead


def narrative(scene: Scene) -> str:
    """The captions of the film's clips, all of them right, as `judge` joins them."""
    return " ".join(f"s{second} {event}" for second, event in enumerate(scene.events))


def misread(scene: Scene, rng: np.random.Generator) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Events of which one or two are misread such that a wrong option follows; the conclusions; that option."""
    happens = (*HAPPENS[scene.kind], "none")
    while True:
        events = list(scene.events)
        for second in rng.choice(np.arange(1, SECONDS), rng.integers(1, 3), replace=False):
            events[second] = str(rng.choice(happens))
        conclusions, said = track(scene.kind, scene.question, events)
        if said in scene.options and said != scene.truth:
            return tuple(events), conclusions, said


def wrong_chain(scene: Scene, style: str, rng: np.random.Generator) -> str:
    """A chain of `rows.chain`'s styles that ends in a wrong answer.

    `full` misreads events, or reads them right and draws the conclusions of others; the careless styles guess wrong.
    """
    if style == "full":
        events, conclusions, said = misread(scene, rng)
        noted = events if rng.random() < 0.5 else scene.events
        notes = [f"s{s} {noted[s]} {conclusions[s]}" for s in range(1, SECONDS)]
        words = ["<think>", f"s0 {conclusions[0]}", *notes]
    else:
        said = str(rng.choice([option for option in scene.options if option != scene.truth]))
        right = chain(scene, style, rng, SLIPS)
        words = [right[: right.index("so ")].strip()]
    return " ".join([*words, f"so {said} </think> <answer> {said} </answer>"])


def written(scene: Scene, right: bool, rng: np.random.Generator) -> str:
    """An answer as the policy writes it, in a style drawn from its shares."""
    style = str(rng.choice(list(STYLES), p=list(STYLES.values())))
    return chain(scene, style, rng, SLIPS) if right else wrong_chain(scene, style, rng)


def judge_row(name: str, film: str | None, scene: Scene, answers: tuple[str, str], told: bool) -> Row:
    """Which answer is better: A, B or tie. `told`: with the narrative; with a film and without it there is none."""
    pair = PROMPTS["pair"].replace("{first}", answers[0]).replace("{second}", answers[1])
    right = [_said(text) == scene.truth for text in answers]
    better = "tie" if right[0] == right[1] else "A" if right[0] else "B"
    compared = " ".join(f"{place} {_holds(text, scene)}" for place, text in zip(("one", "two"), answers, strict=True))
    row = _row(
        name, film, _filled(pair, scene, told), _reply(scene, f"{compared} </think> <answer> {better} </answer>")
    )
    return row | {"options": list(VERDICTS), "answer": LETTERS[VERDICTS.index(better)], "kind": "judge"}


def score_row(name: str, film: str | None, scene: Scene, answer: str, told: bool) -> Row:
    """How good an answer is."""
    text = _filled(PROMPTS["score"].replace("{answer}", answer), scene, told)
    score = RIGHT if _said(answer) == scene.truth else WRONG
    reply = _reply(scene, f"one {_holds(answer, scene)} </think> <answer> {score} </answer>")
    return _row(name, film, text, reply) | {"answer": str(score), "kind": "score"}


def judge_rows(films: Sequence[tuple[str, Scene]], seed: int, split: int, steps: int) -> list[Row]:
    """Rows of the judge in the order of its curriculum: stories in words alone first, then mostly films.

    films: (path, scene) pairs; stories in words are drawn from (seed, split). A narrative beside a film is ignored by
    who has not learned to read one: the film says most of it. `sft --batch-by row` makes a step of one `batch`.
    """
    draw = keyed(seed, split)
    rows: list[Row] = []
    for step in range(steps):
        for item in range(BATCH // TOGETHER):
            if step < ALONE * steps or draw.random() < ALONE_LATER:
                film, told = None, True
                kind = str(draw.choice(KINDS, p=(0.17, 0.25, 0.16, 0.42)))
                story = scene(kind, keyed(seed, split, step, item))
            else:
                film, story = films[int(draw.integers(len(films)))]
                told = bool(draw.random() >= UNTOLD)
            rows += [row | {"batch": step} for row in _drawn(f"judge-{step}-{item}", film, story, told, draw)]
    return rows


def gate_row(name: str, film: str, scene: Scene, rng: np.random.Generator) -> Row:
    """A pair to look at held-out: exactly one is right, the narrative is told; no answer to learn from."""
    first = bool(rng.random() < 0.5)
    row = judge_row(name, film, scene, (written(scene, first, rng), written(scene, not first, rng)), told=True)
    return row | {"messages": row["messages"][:1]}


def _drawn(name: str, film: str | None, scene: Scene, told: bool, draw: np.random.Generator) -> list[Row]:
    """Two rows about a story: a pair in both orders, or two answers scored."""
    right = bool(draw.random() < 0.5)
    scored, tie = draw.random() < SCORED, draw.random() < TIES
    first, second = written(scene, right, draw), written(scene, right if tie else not right, draw)
    if scored:
        return [score_row(f"{name}-{n}", film, scene, text, told) for n, text in enumerate((first, second))]
    orders = (first, second), (second, first)
    return [judge_row(f"{name}-{n}", film, scene, order, told) for n, order in enumerate(orders)]


def _said(text: str) -> str:
    """What a chain answers."""
    return text.split()[-2]


def _holds(text: str, scene: Scene) -> str:
    """What a chain answers and whether it is so: compared word by word, a small network learns it in 150 steps, and
    without this intermediate result in none of 500.
    """
    return f"{_said(text)} {'yes' if _said(text) == scene.truth else 'no'}"


def _filled(template: str, scene: Scene, told: bool) -> str:
    story = PROMPTS["narrative"].replace("{clips}", narrative(scene)) if told else ""
    return " ".join(template.replace("{narrative}", story).replace("{question}", asked(scene)).split())


def _reply(scene: Scene, verdict: str) -> list[Row]:
    """What happened and what follows, as in every full chain; then what that says about the answers."""
    seen = [f"s{s} {scene.events[s]} {scene.conclusions[s]}" for s in range(1, SECONDS)]
    reasons = " ".join(["<think>", f"s0 {scene.conclusions[0]}", *seen, f"so {scene.truth}"])
    return [
        {"type": "text", "text": reasons, "weight": REASONS},
        {"type": "text", "text": verdict, "weight": VERDICT},
    ]


def _row(name: str, film: str | None, text: str, reply: list[Row]) -> Row:
    content: list[Row] = [] if film is None else [{"type": "video", "video": film}]
    ask = {"role": "user", "content": [*content, {"type": "text", "text": text}]}
    return {"id": name, "messages": [ask, {"role": "assistant", "content": reply}]}
