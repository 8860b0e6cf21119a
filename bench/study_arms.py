"""Settings of the study's arms: the demo's own of each method but for rows, start and steps, and GRPO's falling rate.

Reinforcement and preferences look at 64 frames of every film, so that a prompt costs the same in all of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from bench.study_cost import BATCH, GROUP, PPO_GROUP, PPO_QUESTIONS, QUESTIONS
from longtake.cli.demo_feedback import LORA
from longtake.cli.demo_stages import ANSWER, FULL, ROOMY, Plan
from longtake.data.pairs import sift_pairs
from longtake.eval import command as evaluation
from longtake.log import read_jsonl
from longtake.recipes import dpo, grpo, ppo, reward, sft
from longtake.train.settings import Optim

MOST = 64  # frames
CONTINUED = 5e-4  # learning rate of SFT on a model that had SFT


def base(plan: Plan) -> Path:
    """The stand-in for a pretrained model."""
    return plan.out / "base" / "model"


def tuned(plan: Plan) -> Path:
    """The demo's model after SFT."""
    return plan.out / "sft" / "model"


def from_base(
    plan: Plan, rows: Path, out: Path, steps: int, batch: int = BATCH, curriculum: Literal["none", "length"] = "none"
) -> sft.Config:
    """The demo's SFT without its gate. A step takes no more than a third of the rows: a curriculum has stages."""
    return sft.Config(
        rows=rows, model=str(base(plan)), out=out, seed=plan.seed, steps=steps, batch=fitting(3 * batch, rows) // 3,
        video=plan.video(8, 16, 32, 32, 64, 64), curriculum=curriculum,
        optim=Optim(lr=1.5e-3, schedule="linear", hold=0.25, betas=(0.9, 0.98), weight_decay=0.01),
        memory=ROOMY, adapter=FULL,
    )  # fmt: skip


def more_sft(plan: Plan, rows: Path, start: Path, out: Path, steps: int) -> sft.Config:
    """SFT of a model that had SFT."""
    return sft.Config(
        rows=rows, model=str(start), out=out, seed=plan.seed, steps=steps, batch=fitting(BATCH, rows),
        video=plan.video(MOST), memory=ROOMY, adapter=FULL,
        optim=Optim(lr=CONTINUED, warmup=5, schedule="linear", hold=0.25, betas=(0.9, 0.98), weight_decay=0.01),
    )  # fmt: skip


def reinforced(plan: Plan, rows: Path, start: Path, out: Path, steps: int) -> grpo.Config:
    """The demo's GRPO on these questions."""
    return grpo.Config(
        rows=rows, model=str(start), out=out, seed=plan.seed,
        steps=steps, questions=fitting(QUESTIONS, rows), group_size=GROUP, max_tokens=ANSWER,
        video=plan.video(MOST), memory=ROOMY, adapter=FULL,
        optim=Optim(lr=3e-4, warmup=0, schedule="linear", hold=0.25, betas=(0.9, 0.95)),  # falls, as in all arms
    )  # fmt: skip


def preferring(plan: Plan, rows: Path, start: Path, out: Path, steps: int) -> dpo.Config:
    """The demo's DPO on all of these pairs."""
    batch, count = fitting(BATCH, rows), len(sift_pairs(rows)[0])
    return dpo.Config(
        rows=rows, model=str(start), out=out, seed=plan.seed, epochs=epochs(steps, batch, count),
        batch=batch, held_out=0.0, video=plan.video(MOST), adapter=LORA, memory=ROOMY,
        optim=Optim(lr=1e-4, warmup=5, schedule="linear"),
    )  # fmt: skip


def scoring(
    plan: Plan, rows: Path, start: Path, out: Path, *, epochs: float, batch: int, held_out: float
) -> reward.Config:
    """The demo's reward model on these pairs."""
    return reward.Config(
        rows=rows, model=str(start), out=out, seed=plan.seed, epochs=epochs, batch=batch, held_out=held_out,
        video=plan.video(MOST), adapter=LORA, memory=ROOMY, optim=Optim(lr=7e-4, warmup=5, schedule="linear"),
    )  # fmt: skip


def rewarded(plan: Plan, reward_model: Path, start: Path, out: Path, steps: int) -> ppo.Config:
    """The demo's PPO."""
    rows = plan.rows("rl")
    return ppo.Config(
        rows=rows, model=str(start), reward_model=str(reward_model), out=out, seed=plan.seed, steps=steps,
        questions=fitting(PPO_QUESTIONS, rows), group_size=PPO_GROUP, max_tokens=ANSWER,
        video=plan.video(MOST), kl=ppo.KL(beta=0.25),
        optim=Optim(lr=5e-4, warmup=0, schedule="linear", hold=0.25), adapter=LORA, memory=ROOMY,
    )  # fmt: skip


def examined(plan: Plan, model: Path, out: Path, *frames: int) -> evaluation.Config:
    """The demo's evaluation at these numbers of frames, 64 if none are named."""
    return evaluation.Config(
        rows=plan.rows("test"), model=str(model), out=out, seed=plan.seed, max_tokens=ANSWER,
        video=plan.video(*(frames or (MOST,))),
    )  # fmt: skip


def fitting(size: int, rows: Path) -> int:
    """A step's size, no larger than the questions or pairs that a file of a small study holds."""
    return min(size, len({row["id"] for row in read_jsonl(rows)}))


def epochs(steps: int, batch: int, count: int) -> float:
    """So many that a run over `count` pairs makes `steps` steps: the recipes round up."""
    return (steps - 0.5) * batch / count
