"""Critic-free reinforcement learning: GRPO and its family, with rule rewards or your own.

    for every step:
        questions   → G answers each, on one prefill a question      (engines.local)
        answers     → rewards                                        (rewards.mix)
        rewards     → advantages → a weight for every token          (maths.advantage, by the chosen algorithm)
        rows        → summed gradients; each prefix once             (train.step)
        one optimizer step, scaled by the algorithm's count

What an algorithm is stands in maths.algorithms; this loop and the step are blind to it.

N questions, G answers, R tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, begin, finish, read_jsonl
from longtake.train.settings import Dtype, Optim, Video


class Config(Settings):
    """Learn from rewards on sampled answers."""

    rows: Path = Field(description="questions; known answers for the accuracy reward")
    model: str = Field(description="hub id or folder of a checkpoint, best after sft")
    out: Path = Field(Path("out/grpo"), description="run folder; the trained model is in its model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    algorithm: str = Field(
        "longtake",
        description="longtake, grpo, dapo, dr_grpo, gspo, cispo, rloo, reinforce_pp or reinforce_pp_baseline",
    )
    reward: tuple[str, ...] = Field(
        ("accuracy", "format=0.1"), description="name or my.py:function, each with =weight if not 1"
    )
    steps: int = Field(200, ge=1, description="rollout steps")
    questions: int = Field(16, ge=1, description="questions a step")
    group_size: int = Field(8, ge=2, description="G, answers to each question")
    refill: int = Field(
        0, ge=0, description="more draws of questions a step, until enough groups differ in reward (DAPO)"
    )
    epochs: int = Field(1, ge=1, description="optimizer passes over a step's answers; above 1 the clip works")
    minibatches: int = Field(1, ge=1, description="optimizer steps in a pass")
    clip_low: float | None = Field(None, gt=0, description="lower clip bound (default: the algorithm's)")
    clip_high: float | None = Field(None, gt=0, description="upper clip bound (default: the algorithm's)")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    overlong: int = Field(
        0, ge=0, description="tokens before max_tokens in which length is punished softly (DAPO); 0 = off"
    )
    row_tokens: int = Field(16384, ge=1, description="tokens packed into one forward pass")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints")
    keep_rollouts: int = Field(10, ge=1, description="a step's answers are kept for the report every so many steps")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order, frame choice and sampling")
    video: Video = Field(Video(), description="which frames are looked at")
    optim: Optim = Field(Optim(lr=1e-6), description="AdamW")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        if self.overlong > self.max_tokens:
            raise ValueError(f"overlong {self.overlong} is more than max_tokens {self.max_tokens}: lower it")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "model", "reward", "accuracy", "length"} (means of the last tenth of the steps)."""
    from longtake.maths.advantage import token_weights
    from longtake.rewards.mix import Mix
    from longtake.train import policy
    from longtake.train.keep import keep
    from longtake.train.session import decode, open_session
    from longtake.train.step import Sums, count_bad, step_optimizer

    on_policy = config.epochs == config.minibatches == 1
    bounds = {name: bound for name in ("clip_low", "clip_high") if (bound := getattr(config, name)) is not None}
    algorithm = policy.choose(config.algorithm, bounds, on_policy=on_policy, refill=config.refill)
    reward, heats = Mix(policy.weights_of(config.reward)), (config.temperature,) * config.group_size
    video, optim = config.video, config.optim
    reads = (str(config.rows), config.model, *map(str, reward.files))
    if known := begin(log, "grpo", config, config.out, fresh=config.fresh, reads=reads, mendable=True):
        return known
    rows = policy.read_questions(config.rows, config.questions, reward, video, log)
    session = open_session(config.model, config.out, video, optim, log, train_vision=False, dtype=config.dtype)
    sampler = policy.Sampler(
        decode(session.films, rows, video, log),
        config.questions, config.refill, video, reward, heats, config.max_tokens, config.seed,
    )  # fmt: skip

    bad = 0
    for step in range(session.progress.step, config.steps):
        answered, taken = sampler.answers(session, log)
        with log.phase("update"):
            kept = policy.kept(answered, algorithm, config.questions)
            penalty_NG = policy.overlong(kept, config.max_tokens, config.overlong)
            sums, norm, rate = Sums(), math.nan, optim.rate(step, config.steps)
            for part, advantage_NG in policy.minibatches(
                kept, algorithm, penalty_NG, config.epochs, config.minibatches
            ):
                weights = token_weights(
                    advantage_NG, part.length_NG, algorithm.normaliser, max_tokens=config.max_tokens
                )
                sums += policy.backward_groups(
                    session, part, weights, algorithm.loss, config.row_tokens,
                    on_policy=on_policy, temperature=config.temperature,
                )  # fmt: skip
                norm = step_optimizer(
                    session.optimizer, session.params, count=weights.count, lr=rate,
                    max_norm=optim.max_grad_norm,
                )  # fmt: skip
                bad = count_bad(norm, bad)
        session.progress = replace(session.progress, step=step + 1, taken=taken)
        if step + 1 in (1, config.steps) or (step + 1) % config.keep_rollouts == 0:
            penalty_NG = policy.overlong(answered, config.max_tokens, config.overlong)
            shown = policy.advantages(answered, algorithm, penalty_NG).tolist()
            keep(config.out, step + 1, answered, shown, session.films)
        kept_share = {"groups_kept": len(kept.looks) / len(answered.looks), "grad_norm": norm, "lr": rate}
        log.step(step + 1, config.steps, policy.health(answered) | sums.means() | kept_share)
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
            session.checkpoint()

    return finish(
        log,
        {"steps": config.steps, "model": str(session.finish())}
        | policy.late(read_jsonl(config.out / "metrics.jsonl"), ("reward", "accuracy", "length")),
    )
