"""The pieces of supervised fine-tuning: the next batch, its targets, and a look at held-out questions.

G answers of one prompt, R answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from longtake.data.rows import sift_examples, sift_questions
from longtake.engines.local import LocalEngine
from longtake.errors import UserError
from longtake.log import Log
from longtake.maths.loss import cross_entropy
from longtake.records import Example, Question
from longtake.rewards.mix import Mix
from longtake.runtime.films import Look
from longtake.train import rows
from longtake.train.footage import encode
from longtake.train.keys import keyed
from longtake.train.reach import Answers, written
from longtake.train.rollout import rollout
from longtake.train.rows import Item
from longtake.train.session import Session, read_rows
from longtake.train.settings import Video
from longtake.train.step import Objective, Sums
from longtake.train.turns import tokens_of
from longtake.train.walk import Walk

OBJECTIVE = Objective(cross_entropy, on_policy=True)


def next_batch(session: Session, walk: Walk, video: Video) -> list[tuple[Look, Example]]:
    """The examples of the next step, each with its frames."""
    step, taken = session.progress.step, session.progress.taken
    return [
        (Look(e.question, video.policy(e.question, keyed(walk.seed, "frames", step, e.question.id))), e)
        for e in walk.take(step, taken)
    ]


def longest(session: Session, examples: Sequence[Example]) -> Answers:
    """Tokens of the longest answer to each question."""
    answers = ((example.question.id, spans) for example in examples for spans in example.targets)
    return written(session.model.tokenizer, session.model.end_ids[0], answers)


def _targets(session: Session, example: Example) -> list[tuple[tuple[int, ...], tuple[float, ...]]]:
    """(token ids, weights) of each answer."""
    return [tokens_of(session.model.tokenizer, session.model.end_ids[0], spans) for spans in example.targets]


def item(session: Session, look: Look, example: Example) -> Item:
    """Prompt and targets as tokens."""
    targets = _targets(session, example)
    return Item(session.films.prompt(look), tuple(ids for ids, _ in targets), tuple(weights for _, weights in targets))


def backward_items(session: Session, items: Sequence[Item], row_tokens: int) -> tuple[Sums, float]:
    """Adds the gradients of Σ -weight · log p, in rows of at most `row_tokens` prefix tokens; returns the
    sums and all weights' sum.

    Raises UserError if no token of the step has a weight.
    """
    count = math.fsum(weight for item in items for own in item.weights for weight in own)
    if count <= 0:
        ids = ", ".join(each.prompt.id for each in items[:3])
        raise UserError("a step has nothing to learn: the weights of its rows add up to 0", where=f"rows {ids} …")
    return rows.backward_items(session, items, OBJECTIVE, row_tokens), count


def read_examples(path: Path, video: Video, log: Log, *, batched: bool) -> list[Example]:
    """Rows to learn from; `batched`: each says in its key `batch` which step it belongs to. Raises UserError."""
    examples = read_rows(sift_examples, path, video, log)
    lacking = [example.question.id for example in examples if "batch" not in example.question.row]
    if batched and lacking:
        where = f"row {lacking[0]} of {path}"
        raise UserError("a row has no key `batch`", where=where, fix="add it, or use --batch-by count")
    return examples


def held_out(path: Path | None, video: Video, log: Log) -> list[Question]:
    """The questions of a gate, each with its right answer; none without a file. Raises UserError."""
    if path is None:
        return []
    questions = read_rows(sift_questions, path, video, log)
    Mix({"accuracy": 1.0}).check(questions)
    return questions


def greedy_accuracy(session: Session, looks: Sequence[Look], max_tokens: int, log: Log) -> float:
    """Share of held-out questions answered right by greedy decoding."""
    encode(session.films, looks, log)
    with log.phase("gate"):
        weights = f"step-{session.progress.step}"
        engine = LocalEngine(session.model, session.films.features, weights, ranks=session.ranks, at=log.at)
        return rollout(engine, session.films, looks, (0.0,), Mix({"accuracy": 1.0}), max_tokens, "gate").accuracy


def end_at(session: Session, accuracy: float, wanted: float, steps: int, log: Log) -> None:
    """Marks the run as done, with the reason, when the gate is reached or the cap is."""
    step = session.progress.step
    if accuracy >= wanted:
        reason = f"held-out greedy accuracy {accuracy:.3f} reached {wanted:g} at step {step}"
    elif step >= steps:
        reason = f"cap of {step} steps: held-out greedy accuracy {accuracy:.3f} is below {wanted:g}"
    else:
        return
    log.note(reason)
    session.progress = replace(session.progress, done=True, reason=reason)
