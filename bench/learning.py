"""Does the cheap gradient learn as well? GRPO from the same start in every mode, into bench/results/learning.json.

    python -m bench.learning out/demo-a out/demo-b      from finished demos; killed, it goes on where it was
    python -m bench.learning                            docs/learning.md and its figure anew from the numbers there are

A run has the settings of the demo's own GRPO (longtake.cli.demo_stages) but for its mode; under one seed all modes are
asked the same questions with the same frames and draw their answers with the same random numbers. Adapters need a
rate of their own: the one of RATES with the highest training reward at the end of half a run from the first demo.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from bench import demo, learning_page, learning_plot
from longtake.cli.demo import FRAMES, GRPO_STEPS
from longtake.cli.demo_stages import ANSWER, ROOMY, Plan
from longtake.cli.environment import restart
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl, write_json_atomic
from longtake.log.folder import machine, versions
from longtake.maths.stats import paired_difference, share
from longtake.recipes import grpo
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.settings import Optim

RESULT = demo.RESULTS / "learning.json"
RATE = 3e-4  # of the demo, for all weights
RATES = (1e-4, 3e-4, 1e-3, 3e-3)  # tried for adapters
RANK = 32
MOST = max(FRAMES)  # frames of the evaluation
WAYS = ("sampled", "greedy")


@dataclass(frozen=True, slots=True)
class Mode:
    """What is trained, and how often the gradient goes through the prefix. Example: Mode("none", "full", "none")."""

    name: str
    kind: Literal["full", "lora", "alora"]
    gradient: PrefixGradient
    apart: int = 0  # added to GRPO's seed


MODES = (
    Mode("exact", "full", "exact"),
    Mode("repeat", "full", "exact", apart=1000),
    Mode("none", "full", "none"),
    Mode("quarter", "full", 0.25),
    Mode("lora", "lora", "exact"),
    Mode("alora", "alora", "exact"),
)
COMPARED = (
    ("none", "exact"), ("quarter", "exact"), ("lora", "exact"), ("alora", "exact"), ("alora", "lora"),
    ("repeat", "exact"),
)  # fmt: skip


def training(plan: Plan, mode: Mode, rate: float, steps: int, out: Path) -> grpo.Config:
    """The demo's GRPO in this mode."""
    medium = read_json(plan.out / "difficulty" / "summary.json")["medium"]
    adapter = Adapter(kind="full") if mode.kind == "full" else Adapter(kind=mode.kind, rank=RANK)
    back = mode.kind != "alora" and mode.gradient != "none"  # else nothing is kept for a backward through the prefix
    return grpo.Config(
        rows=plan.out / "difficulty" / "medium.jsonl", model=str(plan.out / "sft" / "model"), out=out,
        seed=plan.seed + mode.apart, steps=steps, questions=min(16, medium), group_size=8, max_tokens=ANSWER,
        video=plan.video(16, 32, 64, 64), optim=Optim(lr=rate, warmup=0, betas=(0.9, 0.95)),
        adapter=adapter, prefix_gradient=mode.gradient,
        memory=ROOMY if back else Memory(answer_tokens=ROOMY.answer_tokens),
    )  # fmt: skip


def judging(plan: Plan, model: Path, out: Path) -> evaluation.Config:
    """The demo's evaluation at its largest number of frames."""
    return evaluation.Config(
        rows=plan.rows("test"), model=str(model), out=out, seed=plan.seed, max_tokens=ANSWER, video=plan.video(MOST)
    )


def study(plans: Sequence[Plan], out: Path, log: Log, steps: int = GRPO_STEPS) -> dict[str, Any]:
    """Every run that is not there yet, one after another; returns what learning.json holds."""
    tuned = tune(plans[0], out, log, steps // 2)
    for plan in plans:
        evaluation.run(judging(plan, plan.out / "sft" / "model", out / str(plan.seed) / "start" / "eval"), log)
        for mode in MODES:
            folder = out / str(plan.seed) / mode.name
            grpo.run(training(plan, mode, rate_of(mode, tuned), steps, folder / "grpo"), log)
            evaluation.run(judging(plan, folder / "grpo" / "model", folder / "eval"), log)
    return gather([plan.seed for plan in plans], out, tuned)


def tune(plan: Plan, out: Path, log: Log, steps: int) -> dict[str, Any]:
    """{"seed", "steps", "tried": {kind: [{"lr", "reward"}, …]}}: mean training reward of the last SMOOTH steps."""
    tried: dict[str, list[dict[str, float]]] = {}
    for mode in MODES:
        if mode.kind == "full":
            continue
        for rate in RATES:
            folder = out / "tuning" / f"{mode.name}-{rate:g}"
            grpo.run(training(plan, mode, rate, steps, folder), log)
            reward = fmean(curve(folder)[-learning_plot.SMOOTH :])
            tried.setdefault(mode.kind, []).append({"lr": rate, "reward": round(reward, 4)})
    return {"seed": plan.seed, "steps": steps, "tried": tried}


def rate_of(mode: Mode, tuned: dict[str, Any]) -> float:
    """The demo's rate for all weights, for an adapter the best that was tried."""
    if mode.kind == "full":
        return RATE
    return float(max(tuned["tried"][mode.kind], key=lambda one: one["reward"])["lr"])


def gather(seeds: Sequence[int], out: Path, tuned: dict[str, Any]) -> dict[str, Any]:
    """Numbers of finished runs: {"machine", "versions", "date", "tuned", "starts", "runs", "differences", …}."""
    rates = {mode.name: rate_of(mode, tuned) for mode in MODES}
    receipt = _outcomes(out / str(seeds[0]) / "start", "sampled")[0]["receipt"]
    return {
        "machine": machine(),
        "versions": versions() | {"peft": metadata.version("peft")},
        "date": datetime.now(UTC).date().isoformat(),
        "frames": MOST,
        "visual_tokens": receipt["tokens"],
        "rank": RANK,
        "tuned": tuned,
        "starts": [{"seed": seed} | judged(out / str(seed) / "start") for seed in seeds],
        "runs": [
            {"seed": seed, "mode": mode.name, "lr": rates[mode.name]} | learned(out / str(seed) / mode.name)
            for seed in seeds
            for mode in MODES
        ],
        "differences": [
            difference(out, mode, other, some)
            for mode, other in COMPARED
            for some in dict.fromkeys([*((seed,) for seed in seeds), tuple(seeds)])
        ],
    }


def learned(folder: Path) -> dict[str, Any]:
    """One run: reward of every step, norm of the first gradient, held-out accuracy, median wall seconds of phases."""
    steps = read_jsonl(folder / "grpo" / "metrics.jsonl")
    spent = [row["seconds"] for row in steps]
    return {
        "curve": curve(folder / "grpo"),
        "first_norm": round(steps[0]["grad_norm"], 4),
        **judged(folder),
        "update_s": round(median(row.get("update", 0.0) for row in spent), 4),
        "rollout_s": round(median(row["rollout"] for row in spent), 4),
    }


def curve(folder: Path) -> list[float]:
    """Mean reward of all answers of every step."""
    return [round(row["reward"], 4) for row in read_jsonl(folder / "metrics.jsonl")]


def judged(folder: Path) -> dict[str, Any]:
    """Accuracy on the held-out questions, sampled and greedy, with 95 % intervals; tokens of a sampled answer."""
    rows = {way: _outcomes(folder, way) for way in WAYS}
    found = {way: share(sum(row["correct"] for row in own), len(own)) for way, own in rows.items()}
    return {
        **{way: estimate.value for way, estimate in found.items()},
        "interval": {way: [estimate.low, estimate.high] for way, estimate in found.items()},
        "n": len(rows["sampled"]),
        "length": fmean(row["tokens"] for row in rows["sampled"]),
    }


def difference(out: Path, mode: str, other: str, seeds: Sequence[int]) -> dict[str, Any]:
    """`mode` - `other` in accuracy over the same questions of these seeds, with 95 % intervals of pairs."""
    found: dict[str, Any] = {"mode": mode, "against": other, "seeds": list(seeds)}
    for way in WAYS:
        sides = [
            [(seed, row["id"], row["correct"]) for seed in seeds for row in _outcomes(out / str(seed) / name, way)]
            for name in (other, mode)
        ]
        assert [one[:2] for one in sides[0]] == [one[:2] for one in sides[1]], "the same questions in the same order"
        before, after = ([float(right) for _, _, right in side] for side in sides)
        estimate = paired_difference(before, after)
        found[way] = {"difference": estimate.value, "interval": [estimate.low, estimate.high], "n": estimate.n}
    return found


def _outcomes(folder: Path, way: str) -> list[dict[str, Any]]:
    return read_jsonl(folder / "eval" / "outcomes" / f"{MOST}-{way}-none.jsonl")


def plans_of(folders: Sequence[Path], workers: int) -> list[Plan]:
    """Finished demos to start from. Raises UserError for one that is not, and for a seed that comes twice."""
    demo.gather(folders)
    return [Plan(folder, read_json(folder / "run.json")["config"]["seed"], 1.0, workers) for folder in folders]


def main(words: Sequence[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.learning", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("demos", nargs="*", type=Path, help="folders of finished demos, one a seed")
    parser.add_argument("--out", type=Path, default=Path("out/learning"), help="where the runs go")
    parser.add_argument("--workers", type=int, default=2, help="processes that decode")
    chosen = parser.parse_args(words)
    log = Log()
    try:
        if chosen.demos:
            restart(["-m", "bench.learning", *words])
            write_json_atomic(RESULT, study(plans_of(chosen.demos, chosen.workers), chosen.out, log))
        learning_page.write(read_json(RESULT))
    except UserError as error:
        log.ended(f"failed: {error.what}")
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
