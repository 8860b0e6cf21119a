"""Supervised fine-tuning on written answers: chain-of-thought SFT, captions, anything with an assistant turn.

Rows with the same id and question are several answers to one prompt: they share its prefix, computed once. The loss is
the sum of -weight · log p over answer tokens, divided by the sum of weights of the step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log, RunFolder, read_json, write_json_atomic
from longtake.train.settings import Optim, Video

if TYPE_CHECKING:
    from longtake.records import Example, Question
    from longtake.train.session import Session


class Gate(Settings):
    """Stop as soon as held-out questions are answered well enough; go on to `steps` at most."""

    rows: Path | None = Field(None, description="held-out questions; none = no gate")
    accuracy: float = Field(0.8, ge=0, le=1, description="greedy accuracy that ends the run")
    frames: int = Field(64, ge=1, description="frames a film when asked")
    every: int = Field(100, ge=1, description="steps between looks")
    max_tokens: int = Field(256, ge=1, description="longest answer")


class Config(Settings):
    """Learn from the assistant turns of rows."""

    rows: Path = Field(description="JSONL of chat rows with an assistant turn, or a known dataset format")
    model: str = Field(description="hub id or folder of a checkpoint")
    out: Path = Field(Path("out/sft"), description="run folder; the trained model is in its model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    steps: int = Field(500, ge=1, description="optimizer steps, at most")
    batch: int = Field(32, ge=1, description="questions a step")
    batch_by: Literal["count", "row"] = Field(
        "count", description="row: a step is the rows with one value of their key `batch`"
    )
    shuffle: bool = Field(True, description="a new order every epoch; off: as written (a curriculum)")
    train_vision: bool = Field(False, description="train the vision tower too: no feature is cached then")
    row_tokens: int = Field(16384, ge=1, description="tokens packed into one forward pass")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    dtype: str = Field("auto", description="auto (as saved), float32 or bfloat16")
    seed: int = Field(0, description="of data order and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")
    optim: Optim = Field(Optim(), description="AdamW")
    gate: Gate = Field(Gate(), description="when it is good enough")

    @model_validator(mode="after")
    def _used(self) -> Config:
        if self.batch_by == "row" and (self.shuffle or "batch" in self.model_fields_set):
            raise ValueError("batch_by row takes the rows as written: set no-shuffle, and no batch")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "reason", "model", "accuracy" (of the gate, if there is one)}."""
    from longtake.data.rows import sift_examples
    from longtake.train.session import decode, open_session, read_rows

    folder = RunFolder.open(config.out, "sft", config.model_dump(mode="json"), fresh=config.fresh)
    log.open(folder)
    if folder.was_done:
        folder.set_status("done")
        return dict(read_json(config.out / "summary.json"))
    examples = read_rows(sift_examples, config.rows, config.video, log)
    session = open_session(
        config.model, config.out, config.video, config.optim, log, train_vision=config.train_vision, dtype=config.dtype
    )
    usable = {question.id for question in decode(session.films, [e.question for e in examples], config.video, log)}
    examples = [example for example in examples if example.question.id in usable]
    if config.batch_by == "row" and any("batch" not in example.question.row for example in examples):
        raise UserError(
            "a row has no key `batch`", where=str(config.rows), fix="add it to every row, or use --batch-by count"
        )
    held_out = _held_out(config, session, log)

    while session.progress.step < config.steps and not session.progress.done:
        numbers = _step(config, session, examples, log)
        accuracy = _look(config, session, held_out, log)
        log.step(session.progress.step, config.steps, numbers | accuracy)
        if session.progress.step % config.checkpoint_every == 0 or session.progress.done:
            session.checkpoint()
    summary = {
        "steps": session.progress.step,
        "reason": session.progress.reason or "all steps made",
        "model": str(session.finish()),
    }
    write_json_atomic(config.out / "summary.json", summary)
    folder.set_status("done")
    return summary


def _step(config: Config, session: Session, examples: list[Example], log: Log) -> dict[str, float]:
    """One optimizer step on the next questions of the walk."""
    from longtake.maths.loss import cross_entropy
    from longtake.maths.pack import pack
    from longtake.train.session import encode
    from longtake.train.step import Sums, backward, chunks, step_optimizer

    progress = session.progress
    with log.phase("data"):
        batch = _batch(config, session, examples)
    encode(session.films, [look for look, _ in batch], log)
    sums, count = Sums(), 0.0
    with log.phase("update"):
        made = [(session.films.prompt(look), *_targets(session, example)) for look, example in batch]
        for run in chunks(made, lambda item: len(item[0].ids) + sum(map(len, item[1])), config.row_tokens):
            prompts, answers, weights = (list(column) for column in zip(*run, strict=True))
            row = pack(prompts, answers, weights)
            sums += backward(session.model, session.films.features, row, cross_entropy, on_policy=True)
            count += float(row.weight_R.sum())
        rate = config.optim.rate(progress.step, config.steps)
        norm = step_optimizer(
            session.optimizer, session.params, count=count, lr=rate, max_norm=config.optim.max_grad_norm
        )
    session.progress = replace(progress, step=progress.step + 1, taken=progress.taken + len(batch))
    numbers = {"loss": sums.loss / count, "entropy": sums.entropy / sums.tokens, "grad_norm": norm, "lr": rate}
    return numbers | {"tokens": float(sum(len(prompt.ids) + sum(map(len, own)) for prompt, own, _ in made))}


def _batch(config: Config, session: Session, examples: list[Example]) -> list[tuple[Any, Example]]:
    """The next questions, each with the frames it is looked at with in this step."""
    from longtake.runtime.films import Look
    from longtake.train.keys import batch, keyed

    progress = session.progress
    taken: list[tuple[Any, Example]] = []
    for place in batch(config.seed, len(examples), progress.taken, len(examples), config.shuffle):
        question = examples[place].question
        if config.batch_by == "count":
            full = len(taken) == config.batch
        else:
            full = bool(taken) and question.row["batch"] != taken[0][0].question.row["batch"]
        if full:
            break
        policy = config.video.policy(question, keyed(config.seed, "frames", progress.step, question.id))
        taken.append((Look(question, policy), examples[place]))
    return taken


def _targets(session: Session, example: Example) -> tuple[list[list[int]], list[list[float]]]:
    """Token ids [G][R] of the answers, end token included, and the weight of each token."""
    end = session.model.end_ids[0]
    ids, weights = [], []
    for spans in example.targets:
        pieces = [
            (session.model.tokenizer(span.text, add_special_tokens=False)["input_ids"], span.weight) for span in spans
        ]
        ids.append([token for piece, _ in pieces for token in piece] + [end])
        weights.append([weight for piece, weight in pieces for _ in piece] + [spans[-1].weight])
    return ids, weights


def _held_out(config: Config, session: Session, log: Log) -> list[Question]:
    """The gate's questions, decoded; none without a gate."""
    from longtake.data.rows import sift_questions
    from longtake.records import FramePolicy
    from longtake.train.session import decode, read_rows

    if config.gate.rows is None:
        return []
    asked = FramePolicy(frames=config.gate.frames, max_pixels=config.video.max_pixels)
    return decode(
        session.films, read_rows(sift_questions, config.gate.rows, config.video, log), config.video, log, [asked]
    )


def _look(config: Config, session: Session, questions: list[Question], log: Log) -> dict[str, float]:
    """Greedy accuracy on the gate's questions when it is time; ends the run when it is reached."""
    from longtake.engines.local import LocalEngine
    from longtake.records import FramePolicy
    from longtake.rewards.mix import Mix
    from longtake.runtime.films import Look
    from longtake.train.rollout import rollout
    from longtake.train.session import encode

    step = session.progress.step
    if not questions or (step % config.gate.every and step < config.steps):
        return {}
    asked = FramePolicy(frames=config.gate.frames, max_pixels=config.video.max_pixels)
    looks = [Look(question, asked) for question in questions]
    encode(session.films, looks, log)
    with log.phase("gate"):
        engine = LocalEngine(session.model, session.films.features, f"sft-{step}")
        seen = rollout(
            engine, session.films, looks, [0.0], Mix({"accuracy": 1.0}), config.gate.max_tokens, config.seed, "gate"
        )
    accuracy = seen.accuracy
    if accuracy >= config.gate.accuracy:
        reason = f"held-out greedy accuracy {accuracy:.3f} reached {config.gate.accuracy:g} at step {step}"
    elif step == config.steps:
        reason = f"cap of {step} steps: held-out greedy accuracy {accuracy:.3f} is below {config.gate.accuracy:g}"
    else:
        return {"accuracy": accuracy}
    log.note(reason)
    session.progress = replace(session.progress, done=True, reason=reason)
    return {"accuracy": accuracy}
