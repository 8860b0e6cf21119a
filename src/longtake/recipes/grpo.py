"""Critic-free reinforcement learning: GRPO and its family, with rule rewards, reward models or your own.

    for every step:
        for every batch of questions that memory holds:
            questions   → prefill, kept; G answers each on it            (engines.local)
            answers     → rewards → centred advantages      (rewards.mix, rewards.model, maths.advantage)
            answers     → scored on the kept prefill, one backward       (train.step)
            the prefill is let go
        one optimizer step, scaled by the algorithm's count and deviation

That is the one-forward step: exact on-policy, where the gradient is linear in the advantage. With several passes over
the answers, or advantages that need all rewards first, rewards come first and prefills are computed again. What an
algorithm is stands in maths.algorithms; this loop and the step are blind to it.

N questions, G answers, R tokens.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, begin, finish, read_jsonl
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.engine_settings import Engine
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.ranks_settings import Ranks
from longtake.train.settings import Dtype, Optim, Video

if TYPE_CHECKING:
    from longtake.maths.algorithms import Algorithm
    from longtake.train.policy import Sampler
    from longtake.train.rollout import Rollout
    from longtake.train.session import Session
    from longtake.train.step import Objective, Sums


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
        ("accuracy", "format=0.1"), description="name, my.py:function or model:FOLDER, each with =weight if not 1"
    )
    steps: int = Field(200, ge=1, description="rollout steps")
    questions: int = Field(16, ge=1, description="questions a step")
    group_size: int = Field(8, ge=2, description="G, answers to each question")
    refill: int = Field(
        0, ge=0, description="more draws of questions a step, until enough groups differ in reward (DAPO)"
    )
    epochs: int = Field(1, ge=1, description="optimizer passes over a step's answers; above 1 the clip works")
    minibatches: int = Field(1, ge=1, description="optimizer steps in a pass")
    clip: tuple[float, float] | None = Field(
        None, description="lower and upper clip bound, as 0.2 0.28 (default: the algorithm's)"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    overlong: int = Field(
        0, ge=0, description="tokens before max_tokens in which length is punished softly (DAPO); 0 = off"
    )
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints")
    keep_rollouts: int = Field(10, ge=1, description="a step's answers are kept for the report every so many steps")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order, frame choice and sampling")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    optim: Optim = Field(Optim(lr=1e-5), description="AdamW")
    adapter: Adapter = Field(Adapter(), description="a LoRA on the decoder, or all weights")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")
    ranks: Ranks = Field(Ranks(), description="how ranks share the work, under torchrun")
    engine: Engine = Field(Engine(), description="what samples the answers")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        self.engine.trains(self.adapter.kind)
        if self.overlong > self.max_tokens:
            raise ValueError(f"overlong {self.overlong} is more than max_tokens {self.max_tokens}: lower it")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "model", "reward", "accuracy", "length"} (means of the last tenth of the steps)."""
    from longtake.rewards.mix import Mix
    from longtake.rewards.model import find, scorers
    from longtake.train import policy
    from longtake.train.engines import outside_of
    from longtake.train.footage import decode
    from longtake.train.keep import keep
    from longtake.train.session import open_session
    from longtake.train.step import Objective

    on_policy = config.epochs == config.minibatches == 1
    algorithm = policy.choose(config.algorithm, config.clip, on_policy=on_policy, refill=config.refill)
    reward, heats = Mix(policy.weights_of(config.reward)), (config.temperature,) * config.group_size
    config.engine.found()
    reads = (str(config.rows), config.model, *map(str, reward.files), *map(str, map(find, reward.models.values())))
    if known := begin(log, "grpo", config, config.out, fresh=config.fresh, reads=reads, mendable=True):
        return known
    rows = policy.read_questions(config.rows, config.questions, reward, config.video, log)
    session, memory = open_session(config, log), config.memory
    with log.phase("load"):
        limits = memory.row_tokens, memory.answer_tokens
        models = scorers(reward.models, session.model, session.films.features, *limits, session.prefixes)
    questions = decode(session.films, rows, config.video, log, answers=lambda _: config.max_tokens)
    objective = Objective(algorithm.loss, on_policy, config.temperature)
    learn = _one_forward if on_policy and algorithm.scale else _rewards_first

    with outside_of(config.engine, session, log) as outside:
        sampler = policy.Sampler(
            questions, config.questions, config.refill, config.video, reward, heats,
            config.max_tokens, memory.row_tokens, config.seed, models, outside,
        )  # fmt: skip
        for step in range(session.progress.step, config.steps):
            answered, kept, sums, norm = learn(config, session, sampler, algorithm, objective, log)
            session.progress = replace(session.progress, step=step + 1)
            if step + 1 in (1, config.steps) or (step + 1) % config.keep_rollouts == 0:
                shown = algorithm.advantage(policy.shaped(answered, config.max_tokens, config.overlong)).tolist()
                keep(config.out, step + 1, answered, shown, session.films)
            share = {"groups_kept": len(kept.looks) / len(answered.looks), "grad_norm": norm}
            share |= outside.numbers() if outside else {}
            rate = {"lr": config.optim.rate(step, config.steps)}
            log.step(step + 1, config.steps, policy.health(answered) | sums.means() | share | rate)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                session.checkpoint()

    return finish(
        log,
        {"steps": config.steps, "model": str(session.finish())}
        | policy.late(read_jsonl(config.out / "metrics.jsonl"), ("reward", "accuracy", "length")),
    )


def _one_forward(
    config: Config, session: Session, sampler: Sampler, algorithm: Algorithm, objective: Objective, log: Log
) -> tuple[Rollout, Rollout, Sums, float]:
    """A step on the rollout's own prefills, batch by batch: (all answers, those learned from, sums, gradient norm).

    Gradients are those of centred advantages; their scale and the count, which need the whole batch, come last.
    """
    from longtake.maths.advantage import token_weights
    from longtake.train import policy
    from longtake.train.rollout import NOTHING
    from longtake.train.step import Sums

    answered, kept, sums, count, norm = NOTHING, NOTHING, Sums(), 0.0, math.nan
    for new, prefills in sampler.answers(session, log, policy.keeper(session)):
        with log.phase("update"):
            part = policy.kept(new, algorithm, config.questions - len(kept.looks))
            if part.looks:
                advantage_NG = algorithm.centred(policy.shaped(part, config.max_tokens, config.overlong))
                weights = token_weights(
                    advantage_NG, part.length_NG, algorithm.normaliser, max_tokens=config.max_tokens
                )
                for group in part.groups[:1]:
                    session.check(group.prompt, [answer.ids for answer in group.answers], log)
                sums += policy.backward_kept(session, prefills, part, weights, objective)
                count += weights.count
        answered, kept = answered + new, kept + part
    if kept.looks and algorithm.scale is not None:
        with log.phase("update"):
            scale = algorithm.scale(policy.shaped(kept, config.max_tokens, config.overlong))
            norm = session.step(count / scale, config.optim, config.steps)
    return answered, kept, sums, norm


def _rewards_first(
    config: Config, session: Session, sampler: Sampler, algorithm: Algorithm, objective: Objective, log: Log
) -> tuple[Rollout, Rollout, Sums, float]:
    """A step that learns when all answers are there, in several passes over them if asked for; returns the same."""
    from longtake.maths.advantage import token_weights
    from longtake.train import policy
    from longtake.train.rollout import NOTHING
    from longtake.train.step import Sums

    answered, sums, norm = NOTHING, Sums(), math.nan
    for new, _ in sampler.answers(session, log):
        answered += new
    with log.phase("update"):
        kept = policy.kept(answered, algorithm, config.questions)
        reward_NG = policy.shaped(kept, config.max_tokens, config.overlong)
        for group in kept.groups[:1]:
            session.check(group.prompt, [answer.ids for answer in group.answers], log)
        for part, advantage_NG in policy.minibatches(kept, reward_NG, algorithm, config.epochs, config.minibatches):
            weights = token_weights(advantage_NG, part.length_NG, algorithm.normaliser, max_tokens=config.max_tokens)
            sums += policy.backward_groups(session, part, weights, objective, config.memory.row_tokens)
            norm = session.step(weights.count, config.optim, config.steps)
    return answered, kept, sums, norm
