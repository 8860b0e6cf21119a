"""The demo's stages, each a recipe with the settings that were measured to work on two cores, and its summary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from longtake.cli.demo import BASE_STEPS, FILMS, FRAMES, GRPO_STEPS, SFT_STEPS
from longtake.data.cache import FrameTier, Quarantine
from longtake.eval import command as evaluation
from longtake.log import Log, read_json
from longtake.models.qwen3_vl import Qwen3VL
from longtake.recipes import difficulty, grpo, sft
from longtake.records import FramePolicy
from longtake.sim import make, tiny
from longtake.train.adapter_settings import Adapter
from longtake.train.footage import counted
from longtake.train.memory import Memory
from longtake.train.resume import save_model
from longtake.train.settings import Optim, Video

FULL = Adapter(kind="full")  # of a network of this size
ROOMY = Memory(keep="graph", answer_tokens=16384)  # half a million parameters leave room for all of a step
ANSWER = 40  # tokens: a whole chain has 31


@dataclass(frozen=True, slots=True)
class Plan:
    """What the stages share. Example: Plan(Path("out/demo"), 0, 1.0, 2)."""

    out: Path
    seed: int
    scale: float
    workers: int

    def films(self) -> dict[str, int]:
        return {split: max(8, round(self.scale * count / 4) * 4) for split, count in FILMS.items()}

    def steps(self, most: int) -> int:
        return max(2, round(self.scale * most))

    def rows(self, name: str) -> Path:
        return self.out / "rows" / f"{name}.jsonl"

    def video(self, *frames: int) -> Video:
        shared = {"tier": self.out / "tier", "features": self.out / "features", "workers": self.workers}
        return Video(frames=frames, **shared)


def render(plan: Plan, log: Log) -> None:
    """Films and rows."""
    with log.phase("films"), counted(log, "films", sum(plan.films().values())) as progress:
        make.make_films(plan.out, plan.seed, plan.films(), plan.workers, progress)
    if not plan.rows("base").exists():
        make.make_rows(plan.out, plan.seed, plan.films(), plan.steps(BASE_STEPS))


def start(plan: Plan, log: Log) -> None:
    """The untrained network, and every film decoded once for all that will be looked at."""
    words = tiny.tokenizer()
    if not (plan.out / "untrained" / "config.json").exists():
        save_model(plan.out / "untrained", Qwen3VL(tiny.network(words, plan.seed), words, tiny.PROCESSOR))
    from longtake.runtime.load import load_model

    model = load_model(plan.out / "untrained")
    every = [FramePolicy(frames=n) for n in (*FRAMES, 1)]
    wants = {make.film_path(plan.out, split, n): every for split, count in plan.films().items() for n in range(count)}
    with log.phase("decode"), counted(log, "films decoded", len(wants)) as progress:
        FrameTier(plan.out / "tier").fill(wants, model.fit, plan.workers, Quarantine(plan.out), progress)


def base(plan: Plan, log: Log) -> None:
    """The stand-in for a pretrained model: it learns to see and to follow a story, from the simulator's labels."""
    sft.run(
        sft.Config(
            rows=plan.rows("base"), model=str(plan.out / "untrained"), out=plan.out / "base", seed=plan.seed,
            steps=plan.steps(BASE_STEPS), batch_by="row", shuffle=False, train_vision=True, checkpoint_every=100,
            video=Video(frames=FRAMES, tier=plan.out / "tier", workers=plan.workers),  # no features: the tower changes
            optim=Optim(lr=3e-3, warmup=20, schedule="cosine", floor=0.1, betas=(0.9, 0.98), weight_decay=0.01),
            memory=ROOMY, adapter=FULL,
        ),
        log,
    )  # fmt: skip


def tune(plan: Plan, log: Log) -> None:
    """CoT-SFT on careful and careless chains until held-out greedy accuracy is 0.85."""
    sft.run(
        sft.Config(
            rows=plan.rows("sft"), model=str(plan.out / "base" / "model"), out=plan.out / "sft", seed=plan.seed,
            steps=plan.steps(SFT_STEPS), batch=min(32, plan.films()["sft"]), video=plan.video(8, 16, 32, 32, 64, 64),
            optim=Optim(lr=1.5e-3, schedule="linear", hold=0.25, betas=(0.9, 0.98), weight_decay=0.01),
            memory=ROOMY, adapter=FULL,
            gate=sft.Gate(rows=plan.rows("gate"), accuracy=0.85, frames=64, every=50, max_tokens=ANSWER),
        ),
        log,
    )  # fmt: skip


def sort(plan: Plan, log: Log) -> None:
    """Questions of medium difficulty for RL."""
    difficulty.run(sorting(plan, plan.out / "sft" / "model", plan.out / "difficulty"), log)


def sorting(plan: Plan, model: Path, out: Path) -> difficulty.Config:
    """Ten answers of `model` to every question of the RL films."""
    return difficulty.Config(
        rows=plan.rows("rl"), model=str(model), out=out, seed=plan.seed,
        answers=10, max_tokens=ANSWER, batch=50, video=plan.video(64),
    )  # fmt: skip


def reinforce(plan: Plan, log: Log) -> None:
    """GRPO on the medium questions, at 16, 32 and 64 frames."""
    rows, medium = (
        plan.out / "difficulty" / "medium.jsonl",
        read_json(plan.out / "difficulty" / "summary.json")["medium"],
    )
    if not medium:  # of a demo on a small scale, which learns nothing
        rows, medium = plan.rows("rl"), plan.films()["rl"]
        log.note("no question is of medium difficulty: GRPO asks them all")
    grpo.run(
        grpo.Config(
            rows=rows, model=str(plan.out / "sft" / "model"), out=plan.out / "grpo", seed=plan.seed,
            steps=plan.steps(GRPO_STEPS), questions=min(16, medium), group_size=8, max_tokens=ANSWER,
            video=plan.video(16, 32, 64, 64), optim=Optim(lr=3e-4, warmup=0, betas=(0.9, 0.95)),
            memory=ROOMY, adapter=FULL,
        ),
        log,
    )  # fmt: skip


def evaluated(name: str) -> Callable[[Plan, Log], None]:
    """Evaluation of one stage's model; the last one also blind."""

    def evaluate(plan: Plan, log: Log) -> None:
        config = evaluation.Config(
            rows=plan.rows("test"), model=str(plan.out / name / "model"), out=plan.out / "eval" / name, seed=plan.seed,
            max_tokens=ANSWER, controls=("no_video", "shuffled", "one_frame") if name == "grpo" else (),
            video=plan.video(*FRAMES),
        )  # fmt: skip
        evaluation.run(config, log)

    return evaluate


def first(stage: Callable[[Plan, Log], None]) -> Callable[[Plan, Log], None]:
    """A stage that makes files once, whatever the number of ranks."""
    return lambda plan, log: log.first(lambda: stage(plan, log))


STAGES: Mapping[str, Callable[[Plan, Log], None]] = {
    "films": first(render), "decode": first(start), "base": base, "sft": tune, "difficulty": sort, "grpo": reinforce,
    "eval_base": evaluated("base"), "eval_sft": evaluated("sft"), "eval_grpo": evaluated("grpo"),
}  # fmt: skip
