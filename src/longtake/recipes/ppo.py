"""PPO against a reward model (VLM-RLAIF, arXiv:2402.03746), on one base model with four adapters.

    for every step:
        questions → G answers each on one prefix                              (policy: engines.local)
        answers   → one score each                                            (reward: rewards.model)
        answers   → log-probabilities, values                                 (reference, value: train.ppo)
        scores, KL → rewards of tokens → advantages and returns, by GAE       (maths.ppo)
        for every pass over the answers, for every mini-batch:
            clipped ratio × advantages, clipped values against returns, one optimizer step

The value model begins as the reward model. A film's prefix is computed once for all its answers by each adapter that
acts on it; with adapter.kind alora it is the base model's, computed once for all four and for the whole run.

N questions, G answers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

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
    from longtake.maths.ppo import KLWeight
    from longtake.train.ppo import Credit, Experience
    from longtake.train.session import Session
    from longtake.train.step import Objective, ScalarObjective, Sums


class KL(Settings):
    """The pull back to the model that the run starts from."""

    beta: float = Field(0.05, ge=0, description="weight of the KL in the reward; where adaptive, at the start")
    kind: Literal["k1", "k1-positive", "k3"] = Field("k1", description="estimate of it; k1-positive is VLM-RLAIF's")
    target: float | None = Field(
        None, gt=0, description="nats an answer that the weight is steered to (default: fixed)"
    )
    horizon: float = Field(10_000.0, gt=0, description="answers over which it is steered")

    @model_validator(mode="after")
    def _used(self) -> KL:
        if self.target is None and "horizon" in self.model_fields_set:
            raise ValueError("horizon has no effect on a fixed weight: give a target")
        if self.target is not None and not self.beta:
            raise ValueError("a weight of 0 cannot be steered: give beta")
        return self


class Reward(Settings):
    """What is added to the reward model's score, in its own units; nothing by default."""

    unfinished: float = Field(0.0, ge=0, description="taken from the score of an answer that was cut off")
    length: float = Field(
        0.0, ge=0, description="taken from the score of an answer of max_tokens; of shorter ones less"
    )
    scale: float = Field(1.0, gt=0, description="of score, penalties and KL together; VLM-RLAIF's code has 10")
    whiten: bool = Field(False, description="tokens' rewards are divided by their deviation in the step")


class Value(Settings):
    """How credit is given to tokens, and how the value model learns."""

    discount: float = Field(1.0, gt=0, le=1, description="gamma of GAE")
    lam: float = Field(0.95, ge=0, le=1, description="lambda of GAE; 1: the whole return")
    clip: float = Field(0.2, gt=0, description="most that a value moves from what it was when sampled")
    weight: float = Field(0.1, gt=0, description="of the value loss in the gradient")
    whiten: bool = Field(True, description="advantages have mean 0 and deviation 1 over the tokens of a step")


class Config(Settings):
    """Learn from a reward model, with a value model that started from it."""

    rows: Path = Field(description="questions")
    model: str = Field(description="hub id or folder of a checkpoint, best after sft; also the reference")
    reward_model: str = Field(description="model/ of a `longtake reward` run on the same base")
    out: Path = Field(Path("out/ppo"), description="run folder; the trained model is in its model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    steps: int = Field(200, ge=1, description="rollout steps")
    questions: int = Field(32, ge=1, description="questions a step")
    group_size: int = Field(4, ge=1, description="G, answers to each question")
    epochs: int = Field(2, ge=1, description="passes over a step's answers")
    minibatches: int = Field(2, ge=1, description="optimizer steps in a pass")
    clip: tuple[float, float] = Field((0.2, 0.2), description="lower and upper clip bound of the ratio")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    kl: KL = Field(KL(), description="the pull back to the start")
    reward: Reward = Field(Reward(), description="penalties and scale")
    value: Value = Field(Value(), description="credit and value model")
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints")
    keep_rollouts: int = Field(10, ge=1, description="a step's answers are kept for the report every so many steps")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order, frame choice and sampling")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    optim: Optim = Field(Optim(lr=1e-5), description="AdamW")
    adapter: Adapter = Field(Adapter(), description="LoRA or activated LoRA; the reward model's kind")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")
    ranks: Ranks = Field(Ranks(), description="how ranks share the work, under torchrun")
    engine: Engine = Field(Engine(), description="what samples the answers")

    @model_validator(mode="after")
    def _fits(self) -> Config:
        self.engine.trains(self.adapter.kind)
        if self.adapter.kind == "full":
            raise ValueError("ppo trains adapters: policy, value and reward model share one base; kind lora or alora")
        if min(self.clip) <= 0:
            raise ValueError(f"clip bounds must be above 0, not {self.clip[0]:g} and {self.clip[1]:g}")
        if self.minibatches > self.questions:
            raise ValueError(f"{self.questions} questions do not make {self.minibatches} mini-batches")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "model", "score", "accuracy", "length", "kl_ref"}, means of the last tenth of steps."""
    from longtake.rewards.mix import Mix
    from longtake.rewards.model import RewardModel, find
    from longtake.train import footage, policy, ppo
    from longtake.train.engines import outside_of
    from longtake.train.keep import keep
    from longtake.train.oom import explained
    from longtake.train.rollout import NOTHING
    from longtake.train.session import open_session

    config.engine.found()
    reads = (config.rows, config.model, find(config.reward_model))
    if known := begin(log, "ppo", config, config.out, fresh=config.fresh, reads=reads, mendable=True):
        return known
    watched = Mix({"format": 1.0})
    rows = policy.read_questions(config.rows, config.questions, watched, config.video, log)
    session = open_session(
        config, log, dress=lambda model, found: ppo.dress(model, found, config.model, config.reward_model)
    )
    scores = RewardModel.beside(
        session.model,
        config.reward_model,
        config.memory.row_tokens,
        config.memory.answer_tokens,
        prefixes=session.prefixes,
    ).scores
    questions = footage.decode(session.films, rows, config.video, log, answers=lambda _: config.max_tokens)
    credit, weight = credit_of(config), kl_weight(config, session.progress.beta)

    with outside_of(config.engine, session, log) as outside:
        sampler = policy.Sampler(
            questions, config.questions, 0, config.video, watched, (config.temperature,) * config.group_size,
            config.max_tokens, config.memory.row_tokens, config.seed, outside=outside,
        )  # fmt: skip
        for step in range(session.progress.step, config.steps):
            answered = sum((new for new, _ in sampler.answers(session, log)), NOTHING)
            with log.phase("reward"), explained("answers", partial(ppo.facts, session, answered)):
                answered = ppo.rewarded(answered, scores(answered.groups, session.films.features, session.ranks))
            with log.phase("score"):
                seen = ppo.experience(
                    session, answered, weight.beta, credit, config.temperature, config.memory.row_tokens
                )
            with log.phase("update"):
                learned, values, norm = learn(config, session, seen, log)
            weight = weight.after(seen.kl, len(answered.groups) * config.group_size)
            session.progress = replace(session.progress, step=step + 1, beta=weight.beta)
            if step + 1 in (1, config.steps) or (step + 1) % config.keep_rollouts == 0:
                keep(config.out, step + 1, answered, seen.advantages, session.films)
            numbers = policy.health(answered) | seen.numbers | learned.means() | (outside.numbers() if outside else {})
            numbers |= {"value_loss": values, "grad_norm": norm, "lr": config.optim.rate(step, config.steps)}
            log.step(step + 1, config.steps, numbers)
            if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.steps:
                session.checkpoint()

    late = policy.late(read_jsonl(config.out / "metrics.jsonl"), ("score", "accuracy", "length", "kl_ref"))
    return finish(log, {"steps": config.steps, "model": str(session.finish())} | late)


def learn(config: Config, session: Session, seen: Experience, log: Log) -> tuple[Sums, float, float]:
    """All passes over a step's answers: (policy's sums, mean error of the values, last gradient norm)."""
    from longtake.train.rows import backward_items
    from longtake.train.step import Sums

    ratio, value = objectives(config)
    size, tokens = -(-len(seen.policy) // config.minibatches), config.memory.row_tokens
    sums, errors, norm = Sums(), Sums(), math.nan
    session.check(seen.policy[0].prompt, seen.policy[0].ids, log)
    for _ in range(config.epochs):
        for start in range(0, len(seen.policy), size):
            policy, values = seen.policy[start : start + size], seen.value[start : start + size]
            sums += backward_items(session, policy, ratio, tokens)
            with session.model.adapter.using("value"):
                errors += backward_items(session, values, value, tokens)
            count = sum(len(ids) for item in policy for ids in item.ids)
            norm = session.step(count, config.optim, config.steps)
    return sums, errors.watched["error"] / errors.tokens, norm


def objectives(config: Config) -> tuple[Objective, ScalarObjective]:
    """Of the policy and of the value model."""
    from longtake.maths.loss import clipped_surrogate
    from longtake.maths.ppo import value_loss
    from longtake.train.step import Objective, ScalarObjective

    low, high = config.clip
    ratio = partial(clipped_surrogate, clip_low=low, clip_high=high)
    values = partial(value_loss, clip=config.value.clip)
    return Objective(ratio, on_policy=False, temperature=config.temperature), ScalarObjective(
        "value", values, weight=config.value.weight
    )


def credit_of(config: Config) -> Credit:
    """What scores become, by the config's three blocks."""
    from longtake.maths.ppo import Shaping
    from longtake.train.ppo import Credit

    own, value = config.reward, config.value
    shaping = Shaping(config.kl.kind, own.unfinished, own.length, config.max_tokens, own.scale)
    return Credit(value.discount, value.lam, value.whiten, own.whiten, shaping)


def kl_weight(config: Config, known: float | None) -> KLWeight:
    """Fixed, or steered to a target; `known` where a run goes on."""
    from longtake.maths.ppo import AdaptiveKL, FixedKL

    beta = config.kl.beta if known is None else known
    return FixedKL(beta) if config.kl.target is None else AdaptiveKL(beta, config.kl.target, config.kl.horizon)
