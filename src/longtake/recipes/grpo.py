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

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from longtake.config import Settings
from longtake.log import Log, RunFolder, read_json, read_jsonl, write_json_atomic
from longtake.train.settings import Optim, Video

if TYPE_CHECKING:
    from longtake.maths.algorithms import Algorithm
    from longtake.records import Question
    from longtake.rewards.mix import Mix
    from longtake.train.rollout import Rollout
    from longtake.train.session import Session


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
    dtype: str = Field("auto", description="auto (as saved), float32 or bfloat16")
    seed: int = Field(0, description="of data order, frame choice and sampling")
    video: Video = Field(Video(), description="which frames are looked at")
    optim: Optim = Field(Optim(lr=1e-6), description="AdamW")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "model", "reward", "accuracy", "length"} (means of the last tenth of the steps)."""
    from longtake.data.rows import sift_questions
    from longtake.rewards.mix import Mix
    from longtake.train.session import decode, open_session, read_rows

    algorithm, reward = _algorithm(config), Mix(weights(config.reward))
    folder = RunFolder.open(config.out, "grpo", config.model_dump(mode="json"), fresh=config.fresh)
    log.open(folder)
    if folder.was_done:
        folder.set_status("done")
        return dict(read_json(config.out / "summary.json"))
    session = open_session(
        config.model, config.out, config.video, config.optim, log, train_vision=False, dtype=config.dtype
    )
    questions = decode(session.films, read_rows(sift_questions, config.rows, config.video, log), config.video, log)

    while session.progress.step < config.steps:
        answered, taken = _answers(config, session, questions, reward, log)
        numbers = _update(config, session, algorithm, answered, log)
        session.progress = replace(
            session.progress, step=session.progress.step + 1, taken=session.progress.taken + taken
        )
        _keep(config, session, answered, algorithm)
        log.step(session.progress.step, config.steps, _health(answered) | numbers)
        if session.progress.step % config.checkpoint_every == 0 or session.progress.step == config.steps:
            session.checkpoint()
    rows = read_jsonl(config.out / "metrics.jsonl")
    last = rows[-max(1, len(rows) // 10) :]
    summary = {"steps": config.steps, "model": str(session.finish())}
    summary |= {name: sum(row[name] or 0.0 for row in last) / len(last) for name in ("reward", "accuracy", "length")}
    write_json_atomic(config.out / "summary.json", summary)
    folder.set_status("done")
    return summary


def _answers(config: Config, session: Session, questions: list[Question], reward: Mix, log: Log) -> tuple[Rollout, int]:
    """Scored answers to the step's questions, and how many places of the walk they took.

    With `refill`, groups whose rewards are all equal give way to further questions (DAPO, arXiv:2503.14476 §3.2).
    """
    from longtake.engines.local import LocalEngine
    from longtake.runtime.films import Look
    from longtake.train.keys import batch, keyed
    from longtake.train.rollout import rollout
    from longtake.train.session import encode

    step, start = session.progress.step, session.progress.taken
    engine = LocalEngine(session.model, session.films.features, f"grpo-{step}", config.row_tokens)
    gathered: Rollout | None = None
    for draw in range(1 + config.refill):
        picked = [
            questions[i] for i in batch(config.seed, len(questions), start + draw * config.questions, config.questions)
        ]
        looks = [Look(q, config.video.policy(q, keyed(config.seed, "frames", step, q.id))) for q in picked]
        encode(session.films, looks, log)
        with log.phase("rollout"):
            heat = [config.temperature] * config.group_size
            new = rollout(
                engine, session.films, looks, heat, reward, config.max_tokens, config.seed, "grpo", step, draw
            )
        gathered = new if gathered is None else _differing(gathered) + new
        if len(_differing(gathered).looks) >= config.questions:
            break
    assert gathered is not None
    return gathered, (draw + 1) * config.questions


def _differing(answered: Rollout) -> Rollout:
    from longtake.maths.advantage import equal_groups

    return answered.chosen([not equal for equal in equal_groups(answered.reward_NG).tolist()])


def _update(config: Config, session: Session, algorithm: Algorithm, answered: Rollout, log: Log) -> dict[str, float]:
    """The optimizer steps on one rollout: advantages over all of it, then mini-batches of whole groups."""
    from longtake.maths.advantage import overlong_penalty, token_weights
    from longtake.train.step import Sums

    kept = _differing(answered) if algorithm.drop_equal else answered
    if not kept.looks:
        return {"groups_kept": 0.0}
    with log.phase("update"):
        reward_NG = kept.reward_NG
        if config.overlong:
            reward_NG = reward_NG + overlong_penalty(
                kept.length_NG, max_tokens=config.max_tokens, margin=config.overlong
            )
        advantage_NG = algorithm.advantage(reward_NG)
        sums, norms = Sums(), []
        size = -(-len(kept.looks) // config.minibatches)
        for _ in range(config.epochs):
            for start in range(0, len(kept.looks), size):
                part = kept.chosen([start <= place < start + size for place in range(len(kept.looks))])
                weights = token_weights(
                    advantage_NG[start : start + size],
                    part.length_NG,
                    algorithm.normaliser,
                    max_tokens=config.max_tokens,
                )
                more, norm = _minibatch(config, session, algorithm, part, weights.weight_NG.tolist(), weights.count)
                sums += more
                norms.append(norm)
    tokens = max(1.0, sums.tokens)
    numbers = {"entropy": sums.entropy / tokens, "clipped": sums.clipped / tokens, "kl": sums.kl / tokens}
    return numbers | {"grad_norm": norms[-1], "groups_kept": len(kept.looks) / len(answered.looks)}


def _minibatch(
    config: Config, session: Session, algorithm: Algorithm, part: Rollout, weight_NG: list[list[float]], count: float
) -> tuple[Any, float]:
    """One optimizer step: rows of whole groups under the token budget, gradients summed, scaled once."""
    from longtake.maths.pack import pack
    from longtake.train.step import Sums, backward, chunks, step_optimizer

    items = [
        (
            group.prompt,
            [a.ids for a in group.answers],
            [[w] * len(a.ids) for w, a in zip(own, group.answers, strict=True)],
            [a.logprob for a in group.answers],
        )
        for group, own in zip(part.groups, weight_NG, strict=True)
    ]
    on_policy = config.epochs == config.minibatches == 1
    sums = Sums()
    for run in chunks(items, lambda item: len(item[0].ids) + sum(map(len, item[1])), config.row_tokens):
        row = pack(*(list(column) for column in zip(*run, strict=True)))
        sums += backward(session.model, session.films.features, row, algorithm.loss, on_policy)
    rate = config.optim.rate(session.progress.step, config.steps)
    norm = step_optimizer(session.optimizer, session.params, count=count, lr=rate, max_norm=config.optim.max_grad_norm)
    return sums, norm


def weights(names: tuple[str, ...]) -> dict[str, float]:
    """("accuracy", "format=0.1") → {"accuracy": 1.0, "format": 0.1}.

    Raises UserError for a weight that is no number.
    """
    from longtake.errors import UserError

    found = {}
    for text in names:
        name, _, weight = text.partition("=")
        try:
            found[name] = float(weight or 1.0)
        except ValueError:
            raise UserError(
                f"the weight of reward {name} is '{weight}'", where="--reward", fix=f"write {name}=0.5"
            ) from None
    return found


def _health(answered: Rollout) -> dict[str, float]:
    """What to watch of a step's answers, dropped groups included."""
    reward_NG = answered.reward_NG
    right_N = [[score.correct for score in own] for own in answered.scores]
    ends = [answer.finish == "stop" for group in answered.groups for answer in group.answers]
    return {
        "reward": float(reward_NG.mean()), "reward_std": float(reward_NG.std(1, correction=0).mean()),
        "accuracy": answered.accuracy, "format": answered.formed,
        "length": float(answered.length_NG.float().mean()), "finished": sum(ends) / len(ends),
        "groups_all_right": sum(map(all, right_N)) / len(right_N),
        "groups_all_wrong": sum(not any(own) for own in right_N) / len(right_N),
    }  # fmt: skip


def _keep(config: Config, session: Session, answered: Rollout, algorithm: Algorithm) -> None:
    """Rollouts of the first, every `keep_rollouts`-th and the last step go to disk, for the report."""
    from longtake.train.keep import keep

    step = session.progress.step
    if step in (1, config.steps) or step % config.keep_rollouts == 0:
        keep(config.out, step, answered, algorithm.advantage(answered.reward_NG).tolist(), session.films)


def _algorithm(config: Config) -> Algorithm:
    """The named algorithm with the clip bounds that were set.

    Raises UserError for an unknown name or a bound it has no use for.
    """
    from functools import partial

    from longtake.config import suggest
    from longtake.errors import UserError
    from longtake.maths.algorithms import ALGORITHMS

    if config.algorithm not in ALGORITHMS:
        near = suggest(config.algorithm, ALGORITHMS)
        fix = f"did you mean '{near}'?" if near else f"one of {', '.join(ALGORITHMS)}"
        raise UserError(f"unknown algorithm '{config.algorithm}'", where="--algorithm", fix=fix)
    algorithm = ALGORITHMS[config.algorithm]
    bounds = {name: value for name in ("clip_low", "clip_high") if (value := getattr(config, name)) is not None}
    if bounds and not (isinstance(algorithm.loss, partial) and "clip_low" in algorithm.loss.keywords):
        raise UserError(
            f"{config.algorithm} has no clip", where=f"--{next(iter(bounds)).replace('_', '-')}", fix="leave it out"
        )
    if bounds and config.epochs == config.minibatches == 1:
        why = "with one pass over fresh answers the ratio is 1 and nothing is clipped"
        raise UserError(
            "clip bounds would have no effect", why=why, fix="set --epochs or --minibatches above 1, or leave them out"
        )
    return replace(algorithm, loss=partial(algorithm.loss, **bounds)) if bounds else algorithm
