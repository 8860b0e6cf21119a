"""Does GRPO learn as well on another engine's answers? The demo's chain on a network vLLM takes, into engines.json.

    python -m bench.engines --python .venv-vllm/bin/python --seeds 0 1      killed, it goes on where it was
    python -m bench.engines --page                                          docs/engines.md from the numbers there are

The network is the demo's, wide enough for vLLM's CPU kernels (heads of 32 numbers). Everything up to GRPO is made once
a seed; then GRPO runs twice with the demo's settings, from the same start on the same questions, and differs in the
engine alone. Both are evaluated by the local engine on the same held-out questions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

from bench import demo
from bench.learning import MOST, WAYS, curve, difference, judged
from longtake.cli import demo_stages
from longtake.cli.demo import FRAMES, GRPO_STEPS
from longtake.cli.demo_stages import FULL, ROOMY, Plan
from longtake.cli.environment import restart
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl, write_json_atomic
from longtake.log.folder import machine, versions
from longtake.models.qwen3_vl import Qwen3VL
from longtake.recipes import grpo
from longtake.sim import tiny
from longtake.train.engine_settings import Engine
from longtake.train.resume import save_model
from longtake.train.settings import Optim

RESULT = demo.RESULTS / "engines.json"
PAGE = demo.RESULTS.parents[1] / "docs" / "engines.md"
HEAD = """\
# GRPO on another engine's answers

The demo's GRPO, {steps} steps from one start, with answers sampled by the model itself or by vLLM in a process beside
it (`--engine.kind vllm`): weights go there before every step, features instead of pixels, log-probabilities come back
and are compared with the trainer's, and sequence-masked importance correction is on. Accuracy on 600 held-out questions
at 64 frames, in percent. Written by `python -m bench.engines`.
"""
WIDTH = 128  # four heads of 32: the least that vLLM's CPU attention takes
BEFORE = ("films", "decode", "base", "sft", "difficulty")


@dataclass(frozen=True, slots=True)
class Arm:
    """An engine under a name. Example: Arm("vllm", Engine(kind="vllm", python=Path(".venv-vllm/bin/python")))."""

    name: str
    engine: Engine
    apart: int = 0  # added to GRPO's seed


def prepare(plan: Plan, log: Log) -> None:
    """The demo's stages before GRPO, on the wider network; what is there is not made again."""
    words = tiny.tokenizer()
    if not (plan.out / "untrained" / "config.json").exists():
        net = tiny.network(words, plan.seed, width=WIDTH)
        save_model(plan.out / "untrained", Qwen3VL(net, words, tiny.PROCESSOR))
    for name in BEFORE:
        demo_stages.STAGES[name](plan, log)


def training(plan: Plan, arm: Arm, out: Path, steps: int) -> grpo.Config:
    """The demo's GRPO with this engine."""
    medium = read_json(plan.out / "difficulty" / "summary.json")["medium"]
    return grpo.Config(
        rows=plan.out / "difficulty" / "medium.jsonl", model=str(plan.out / "sft" / "model"), out=out,
        seed=plan.seed + arm.apart, steps=steps, questions=min(16, medium), group_size=8, max_tokens=demo_stages.ANSWER,
        video=plan.video(16, 32, 64, 64), optim=Optim(lr=3e-4, warmup=0, betas=(0.9, 0.95)), memory=ROOMY,
        adapter=FULL, engine=arm.engine,
    )  # fmt: skip


def study(arms: Sequence[Arm], seeds: Sequence[int], out: Path, steps: int, log: Log) -> dict[str, Any]:
    """Every run that is not there yet; returns what engines.json holds."""
    runs = []
    for seed in seeds:
        plan = Plan(out / str(seed) / "start", seed, 1.0, 2)
        prepare(plan, log)
        for arm in arms:
            folder = out / str(seed) / arm.name
            grpo.run(training(plan, arm, folder / "grpo", steps), log)
            evaluation.run(
                evaluation.Config(
                    rows=plan.rows("test"), model=str(folder / "grpo" / "model"), out=folder / "eval", seed=seed,
                    max_tokens=demo_stages.ANSWER, video=plan.video(MOST),
                ),
                log,
            )  # fmt: skip
            runs.append({"seed": seed, "engine": arm.name} | numbers(folder))
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "frames": list(FRAMES),
        "steps": steps,
        "runs": runs,
        "differences": [
            difference(out, arm.name, arms[0].name, some)
            for arm in arms[1:]
            for some in dict.fromkeys([*((seed,) for seed in seeds), tuple(seeds)])
        ],
    }


def numbers(folder: Path) -> dict[str, Any]:
    """One run: held-out accuracy, rewards, and how far engine and trainer were apart."""
    rows = read_jsonl(folder / "grpo" / "metrics.jsonl")
    apart = {name: [row[name] for row in rows if name in row] for name in ("engine_kl", "engine_gap", "engine_masked")}
    return {
        **judged(folder),
        "curve": curve(folder / "grpo"),
        "seconds_a_step": round(fmean(sum(row["seconds"].values()) for row in rows), 3),
        **{name: {"mean": fmean(own), "max": max(own)} for name, own in apart.items() if own},
    }


def page(found: dict[str, Any]) -> str:
    """The whole of docs/engines.md."""
    about, ran = found["machine"], found["versions"]
    lines = [
        HEAD.format(steps=found["steps"]),
        "| seed | engine | sampled | greedy | KL a token, nats | largest gap, nats |",
        "|---|---|---|---|---|---|",
    ]
    for run in found["runs"]:
        apart = [
            f"{run[name][kind]:.1e}" if name in run else ""
            for name, kind in (("engine_kl", "mean"), ("engine_gap", "max"))
        ]
        right = [f"{100 * run[way]:.1f}" for way in WAYS]
        lines.append(f"| {run['seed']} | {run['engine']} | " + " | ".join([*right, *apart]) + " |")
    lines += ["", "Differences in points over the same questions, with 95 % intervals of pairs:", ""]
    for one in found["differences"]:
        points = [
            f"{way} {100 * one[way]['difference']:+.1f} [{', '.join(f'{100 * x:+.1f}' for x in one[way]['interval'])}]"
            for way in WAYS
        ]
        seeds = " and ".join(map(str, one["seeds"]))
        lines.append(
            f"- {one['mode']} − {one['against']}, seed {seeds}: {', '.join(points)} (n = {one['sampled']['n']})"
        )
    lines += [
        "",
        f"{about['processors']} CPU cores, torch {ran['torch']}, transformers {ran['transformers']}, {found['date']}.",
    ]
    return "\n".join(lines) + "\n"


def main(words: Sequence[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.engines", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", type=Path, default=Path(".venv-vllm/bin/python"), help="of the one with vLLM")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=GRPO_STEPS)
    parser.add_argument("--out", type=Path, default=Path("out/engines"))
    parser.add_argument("--page", action="store_true", help="write the page and end")
    parser.add_argument("--prepare", action="store_true", help="only what comes before GRPO")
    chosen = parser.parse_args(words)
    if chosen.page:
        PAGE.write_text(page(read_json(RESULT)))
        return 0
    log = Log()
    try:
        restart(["-m", "bench.engines", *words])
        if chosen.prepare:
            for seed in chosen.seeds:
                prepare(Plan(chosen.out / str(seed) / "start", seed, 1.0, 2), log)
            return 0
        other = Engine(kind="vllm", python=chosen.python, context=4096, memory=2.0)
        arms = (Arm("local", Engine()), Arm("vllm", other))
        found = study(arms, chosen.seeds, chosen.out, chosen.steps, log)
    except UserError as error:
        log.ended(f"failed: {error.what}")
        sys.stderr.write(f"{error}\n")
        return 1
    write_json_atomic(RESULT, found)
    PAGE.write_text(page(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
