"""The stages that `demo --full` adds: learning from AI feedback instead of known answers.

    referee       the stand-in for a larger instruct model that can follow a judge's prompt
    judge         the SFT model's own answers, compared in both orders with the films' narratives before the referee
    judge_plain   the same answers without narratives: what these are worth
    reward        a reward model from the judge's pairs
    dpo           the SFT model, learning from the pairs
    ppo           the SFT model, learning from the reward model

No stage here reads a right answer of the questions; accuracies are computed beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

from longtake.cli.demo_stages import ANSWER, FULL, ROOMY, Plan, evaluated, first
from longtake.log import Log, read_json
from longtake.recipes import dpo, judge, ppo, reward, sft
from longtake.sim import make
from longtake.train.adapter_settings import Adapter
from longtake.train.judge_settings import Context, Judge
from longtake.train.settings import Optim

REFEREE_STEPS, PPO_STEPS = 500, 40
EPOCHS = 4  # of the reward model
REPLY = 48  # tokens: a verdict with its reasons
LOOK = 16  # frames that the referee sees: a judge who saw all that the policy does would need no narrative
FEW, BATCH, HELD_OUT = 100, 32, 0.15  # of pairs: too few to learn from; a step; share of films
LORA = Adapter(kind="lora", rank=16, alpha=32.0)


def rows(plan: Plan, log: Log) -> None:
    """What the referee learns, and the words that it is asked in."""
    if not plan.rows("judge").exists():
        make.make_judge_rows(plan.out, plan.seed, plan.films(), plan.steps(REFEREE_STEPS))


def referee(plan: Plan, log: Log) -> None:
    """A judge from the base model, taught by the simulator's own right and wrong answers on other films."""
    sft.run(
        sft.Config(
            rows=plan.rows("judge"), model=str(plan.out / "base" / "model"), out=plan.out / "referee", seed=plan.seed,
            steps=plan.steps(REFEREE_STEPS), batch_by="row", shuffle=False, video=plan.video(LOOK), memory=ROOMY,
            optim=Optim(lr=3e-3, schedule="linear", hold=0.25, betas=(0.9, 0.98), weight_decay=0.01), adapter=FULL,
        ),
        log,
    )  # fmt: skip


def compare(name: str, kind: Literal["narrative", "none"]) -> Callable[[Plan, Log], None]:
    """The SFT model's answers."""

    def stage(plan: Plan, log: Log) -> None:
        judge.run(comparing(plan, plan.out / "sft" / "model", plan.out / name, kind), log)

    return stage


def comparing(plan: Plan, model: Path, out: Path, kind: Literal["narrative", "none"] = "narrative") -> judge.Config:
    """Four answers of `model` to every question of the RL films, neighbours compared."""
    narrative = Context(captioner=str(plan.out / "base" / "model"), clips=4, clip_frames=16, max_tokens=12)
    return judge.Config(
        rows=plan.rows("rl"), model=str(model), out=out, seed=plan.seed,
        answers=4, max_tokens=ANSWER, batch=50, video=plan.video(64), prompts=plan.out / "rows" / "prompts.yaml",
        context=narrative if kind == "narrative" else Context(kind="none"),
        judge=Judge(model=str(plan.out / "referee" / "model"), frames=LOOK, max_tokens=REPLY),
    )  # fmt: skip


def pairs(plan: Plan, judged: Path, log: Log) -> tuple[Path, int, float]:
    """(file of pairs, pairs a step, share of films held out); the simulator's pairs where the judge kept too few."""
    file, written = judged / "pairs.jsonl", read_json(judged / "summary.json")["written"]
    if written >= FEW:
        return file, BATCH, HELD_OUT
    log.note(f"the judge kept {written} pairs: the simulator's own right and wrong answers take their place")
    return log.first(lambda: make.make_pairs(plan.out, plan.seed, plan.films())), 2, 0.5


def score(plan: Plan, log: Log) -> None:
    """A reward model from the pairs that the judge kept."""
    file, batch, held_out = pairs(plan, plan.out / "judge", log)
    reward.run(
        reward.Config(
            rows=file, model=str(plan.out / "sft" / "model"), out=plan.out / "reward", seed=plan.seed,
            epochs=EPOCHS, batch=batch, held_out=held_out, video=plan.video(64), adapter=LORA, memory=ROOMY,
            optim=Optim(lr=7e-4, warmup=5, schedule="linear"),
        ),
        log,
    )  # fmt: skip


def prefer(plan: Plan, log: Log) -> None:
    """DPO on the same pairs."""
    file, batch, held_out = pairs(plan, plan.out / "judge", log)
    dpo.run(
        dpo.Config(
            rows=file, model=str(plan.out / "sft" / "model"), out=plan.out / "dpo", seed=plan.seed,
            epochs=3, batch=batch, held_out=held_out, video=plan.video(64), adapter=LORA, memory=ROOMY,
            optim=Optim(lr=1e-4, warmup=5, schedule="linear"),
        ),
        log,
    )  # fmt: skip


def reinforce(plan: Plan, log: Log) -> None:
    """PPO against the reward model, on the same questions as GRPO's."""
    ppo.run(
        ppo.Config(
            rows=plan.rows("rl"), model=str(plan.out / "sft" / "model"), out=plan.out / "ppo", seed=plan.seed,
            reward_model=str(plan.out / "reward" / "model"), steps=plan.steps(PPO_STEPS),
            questions=min(24, plan.films()["rl"]), group_size=4,
            max_tokens=ANSWER, video=plan.video(64), kl=ppo.KL(beta=0.25),
            optim=Optim(lr=5e-4, warmup=0, schedule="linear", hold=0.25),
            adapter=LORA, memory=ROOMY,
        ),
        log,
    )  # fmt: skip


STAGES: Mapping[str, Callable[[Plan, Log], None]] = {
    "judge_rows": first(rows), "referee": referee,
    "judge": compare("judge", "narrative"), "judge_plain": compare("judge_plain", "none"),
    "reward": score, "dpo": prefer, "ppo": reinforce,
    "eval_dpo": evaluated("dpo"), "eval_ppo": evaluated("ppo"),
}  # fmt: skip
