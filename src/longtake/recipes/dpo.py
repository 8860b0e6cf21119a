"""Direct preference optimisation on pairs of answers, of humans or of `judge`: DPO, IPO or SimPO.

    once:
        every pair   → log-probabilities under the weights the run starts from     (train.preference)
    for every step:
        pairs        → rows of [prompt | chosen | rejected], the prompt computed once
        both answers → loss of the pair, one backward                              (maths.loss, train.rows)
        one optimizer step

The two answers of a pair share their prefix, forward and backward; the reference is never held beside the policy.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, begin, finish
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.ranks_settings import Ranks
from longtake.train.settings import Dtype, Optim, Video

if TYPE_CHECKING:
    from longtake.train.preference import Pairs, Reference
    from longtake.train.session import Session
    from longtake.train.step import Objective


class Config(Settings):
    """Learn which of two answers is better, without a reward model."""

    rows: Path = Field(description="pairs: `judge`'s pairs.jsonl, TRL's preference rows, or a known dataset format")
    model: str = Field(description="hub id or folder of a checkpoint, best after sft; also the reference")
    out: Path = Field(Path("out/dpo"), description="run folder; the trained model is in its model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    loss: Literal["dpo", "ipo", "simpo"] = Field("dpo", description="of a pair")
    beta: float = Field(0.1, gt=0, description="weight of the log-ratio; of ipo: the strength of the pull to the model")
    gamma: float | None = Field(None, ge=0, description="by how much simpo's chosen answer should lead (default 0.5)")
    smoothing: float | None = Field(
        None, ge=0, lt=0.5, description="share of pairs that dpo takes to be the wrong way round (default 0)"
    )
    epochs: float = Field(1.0, gt=0, description="passes over the pairs")
    batch: int = Field(16, ge=1, description="pairs a step")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of films whose pairs are only looked at")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints, and looks at the held-out pairs")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order, frame choice and the split")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    optim: Optim = Field(Optim(lr=5e-6), description="AdamW")
    adapter: Adapter = Field(Adapter(), description="a LoRA on the decoder, or all weights")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")
    ranks: Ranks = Field(Ranks(), description="how ranks share the work, under torchrun")

    @model_validator(mode="after")
    def _used(self) -> Config:
        if self.gamma is not None and self.loss != "simpo":
            raise ValueError(f"gamma has no effect on {self.loss}: leave it out")
        if self.smoothing is not None and self.loss != "dpo":
            raise ValueError(f"smoothing has no effect on {self.loss}: leave it out")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "pairs", "held_out", "accuracy", "margin", "model"}; the two of the held-out pairs."""
    from longtake.train import preference
    from longtake.train.rows import backward_items
    from longtake.train.session import open_session

    reads = (config.rows, config.model)
    if known := begin(log, "dpo", config, config.out, fresh=config.fresh, reads=reads, mendable=True):
        return known
    found = preference.read(config.rows, config.video, log)
    session, tokens = open_session(config, log), config.memory.row_tokens
    pairs = preference.parted(
        session, found, config.video, log,
        share=config.held_out, seed=config.seed, size=config.batch, row_tokens=tokens,
    )  # fmt: skip
    steps, objective = math.ceil(config.epochs * len(pairs.learned) / config.batch), objective_of(config)
    asks = config.loss != "simpo"
    reference = pairs.reference(session, config.out / "reference.jsonl", log) if asks else None

    for step in range(session.progress.step, steps):
        items = pairs.items(session, pairs.next(session), log, reference)
        with log.phase("update"):
            session.check(items[0].prompt, items[0].ids, log)
            sums = backward_items(session, items, objective, tokens)
            norm = session.step(sums.tokens, config.optim, steps)
        session.progress = replace(session.progress, step=step + 1, taken=session.progress.taken + config.batch)
        numbers = {"loss": sums.loss / sums.tokens, **preference.told(sums), "grad_norm": norm}
        numbers |= {"lr": config.optim.rate(step, steps), "tokens": sums.watched["tokens"]}
        numbers["entropy"] = sums.entropy / sums.watched["tokens"]
        last = step + 1 == steps or (step + 1) % config.checkpoint_every == 0
        if last and pairs.held:
            numbers |= {f"held_{name}": x for name, x in look_at(session, pairs, config, reference, log).items()}
        log.step(step + 1, steps, numbers)
        if last:
            session.checkpoint()
    told_of = look_at(session, pairs, config, reference, log) if pairs.held else {"accuracy": None, "margin": None}
    counts = {"steps": steps, "pairs": len(pairs.learned), "held_out": len(pairs.held), "loss": config.loss}
    return finish(log, counts | told_of | {"model": str(session.finish())})


def objective_of(config: Config) -> Objective:
    """The loss with its numbers bound; it needs both answers of a pair at once."""
    from longtake.maths import loss
    from longtake.train.step import Objective

    bound = {
        "dpo": partial(loss.dpo, beta=config.beta, smoothing=config.smoothing or 0.0),
        "ipo": partial(loss.ipo, beta=config.beta),
        "simpo": partial(loss.simpo, beta=config.beta, margin=0.5 if config.gamma is None else config.gamma),
    }
    return Objective(bound[config.loss], on_policy=False, together=2)


def look_at(session: Session, pairs: Pairs, config: Config, reference: Reference | None, log: Log) -> dict[str, float]:
    """Of held-out pairs: the share whose chosen answer has the larger implicit reward (ties half), its mean lead."""
    from longtake.train.preference import ids_of

    margins = []
    with log.phase("held_out"):
        for start in range(0, len(pairs.held), pairs.size):
            part = pairs.held[start : start + pairs.size]
            for pair, own in zip(part, pairs.logprobs(session, part, log), strict=True):
                known = reference[pair.id] if reference is not None else (0.0, 0.0)
                lengths = [1 if config.loss == "dpo" else len(ids) for ids in ids_of(session, pair)]
                chosen, rejected = ((p - ref) / n for p, ref, n in zip(own, known, lengths, strict=True))
                margins.append(config.beta * (chosen - rejected))
    right = sum((margin > 0) + 0.5 * (margin == 0) for margin in margins) / len(margins)
    return {"accuracy": right, "margin": sum(margins) / len(margins)}
