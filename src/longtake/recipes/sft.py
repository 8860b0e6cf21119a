"""Supervised fine-tuning on written answers: chain-of-thought SFT, captions, anything with an assistant turn.

Rows with the same id and question are several answers to one prompt: they share its prefix, computed once. The loss is
the sum of -weight · log p over answer tokens, divided by the sum of weights of the step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, begin, finish
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.ranks_settings import Ranks
from longtake.train.settings import Dtype, Optim, Video


class Gate(Settings):
    """Stop as soon as held-out questions are answered well enough; go on to `steps` at most."""

    rows: Path | None = Field(None, description="held-out questions; none = no gate")
    accuracy: float = Field(0.8, ge=0, le=1, description="greedy accuracy that ends the run")
    frames: int = Field(64, ge=1, description="frames a film when asked")
    every: int = Field(100, ge=1, description="steps between looks")
    max_tokens: int = Field(256, ge=1, description="longest answer")

    @model_validator(mode="after")
    def _used(self) -> Gate:
        if self.rows is None and self.model_fields_set - {"rows"}:
            raise ValueError("a gate needs rows: name held-out questions, or leave its other settings out")
        return self


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
    shuffle: bool = Field(True, description="a new order every epoch; off: as written")
    curriculum: Literal["none", "length", "pass_rate"] = Field(
        "none", description="easy to hard in stages: by answer tokens, or by the rows' `pass_rate` (see difficulty)"
    )
    curriculum_cuts: tuple[float, ...] = Field(
        (0.654,), description="quantiles at which stages begin (0.654: VLM-RLAIF's 214k of 327k rows)"
    )
    train_vision: bool = Field(False, description="train the vision tower too: no feature is cached then")
    checkpoint_every: int = Field(50, ge=1, description="steps between checkpoints")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    optim: Optim = Field(Optim(lr=1e-4), description="AdamW; adapter.kind full wants a tenth of this rate")
    adapter: Adapter = Field(Adapter(), description="a LoRA on the decoder, or all weights")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")
    ranks: Ranks = Field(Ranks(), description="how ranks share the work, under torchrun")
    gate: Gate = Field(Gate(), description="when it is good enough")

    @model_validator(mode="after")
    def _used(self) -> Config:
        if self.batch_by == "row" and (self.shuffle or "batch" in self.model_fields_set):
            raise ValueError("batch_by row takes the rows as written: set no-shuffle, and no batch")
        given, cuts = self.model_fields_set, self.curriculum_cuts
        if self.curriculum == "none" and "curriculum_cuts" in given:
            raise ValueError(
                "curriculum_cuts has no effect without a curriculum: set curriculum to length or pass_rate"
            )
        if self.curriculum != "none" and (self.batch_by == "row" or not self.shuffle):
            raise ValueError("a curriculum orders the rows itself: leave no-shuffle and batch_by row out")
        if not cuts or list(cuts) != sorted({*cuts}) or not 0 < cuts[0] <= cuts[-1] < 1:
            raise ValueError("curriculum_cuts must rise from above 0 to below 1, as 0.3 0.7")
        if self.train_vision and self.video.features is not None:
            raise ValueError("train_vision makes features anew in every step: leave video.features out")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "reason", "model"}."""
    from longtake.runtime.films import Look
    from longtake.train import footage, supervised
    from longtake.train.session import open_session
    from longtake.train.walk import open_walk

    video, optim, gate = config.video, config.optim, config.gate
    reads = (config.rows, config.model, gate.rows or config.rows)
    if known := begin(log, "sft", config, config.out, fresh=config.fresh, reads=reads, mendable=True):
        return known
    examples = supervised.read_examples(config.rows, video, log, batched=config.batch_by == "row")
    held_out = supervised.held_out(gate.rows, video, log)
    session = open_session(config, log, train_vision=config.train_vision)
    questions = [example.question for example in examples]
    usable = {
        q.id
        for q in footage.decode(session.films, questions, video, log, answers=supervised.longest(session, examples))
    }
    examples = [example for example in examples if example.question.id in usable]
    window = video.window(gate.frames)
    held_out = footage.decode(
        session.films, held_out, video, log, lambda q: [video.merged(q.policy, window)], lambda _: gate.max_tokens
    )
    looks = [Look(question, video.merged(question.policy, window)) for question in held_out]
    walk = open_walk(examples, config, session.model.tokenizer, session.model.end_ids[0], log)

    while session.progress.step < config.steps and not session.progress.done:
        step = session.progress.step
        with log.phase("data"):
            batch = supervised.next_batch(session, walk, video)
            items = [supervised.item(session, look, example) for look, example in batch]
        footage.encode(session.films, [look for look, _ in batch], log)
        with log.phase("update"):
            session.check(items[0].prompt, items[0].ids, log)
            sums, count = supervised.backward_items(session, items, config.memory.row_tokens)
            norm = session.step(count, optim, config.steps)
        session.progress = replace(session.progress, step=step + 1, taken=session.progress.taken + len(batch))
        numbers = {
            "loss": sums.loss / count, "entropy": sums.means()["entropy"], "grad_norm": norm,
            "lr": optim.rate(step, config.steps), "tokens": float(sum(item.tokens for item in items)),
        }  # fmt: skip
        if config.curriculum != "none":
            numbers["stage"] = walk.stage(step)
        if held_out and ((step + 1) % gate.every == 0 or step + 1 == config.steps):
            numbers["accuracy"] = supervised.greedy_accuracy(session, looks, gate.max_tokens, log)
            supervised.end_at(session, numbers["accuracy"], gate.accuracy, config.steps, log)
        log.step(step + 1, config.steps, numbers)
        if (step + 1) % config.checkpoint_every == 0 or session.progress.done:
            session.checkpoint()
    return finish(
        log,
        {
            "steps": session.progress.step,
            "reason": session.progress.reason or "all steps made",
            "model": str(session.finish()),
        },
    )
