"""What do fewer visual tokens cost? Accuracy against tokens of a film, by kind of reduction, into reductions.json.

    python -m bench.reductions --seeds 0      killed, it goes on where it was
    python -m bench.reductions --page         docs/reductions.md and its figure from the numbers there are

The network is `bench.reductions_net`'s and learns by the demo's chain: films, base, SFT. Then it answers the held-out
questions under every reduction, first as it is, then after an SFT under some of those with as many tokens.
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

from bench import demo, reductions_page
from longtake.cli import demo_stages
from longtake.cli.demo import BASE_STEPS, FRAMES
from longtake.cli.demo_stages import FULL, ROOMY, Plan
from longtake.cli.environment import restart
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl, write_json_atomic
from longtake.log.files import write_jsonl
from longtake.log.folder import machine, versions
from longtake.maths.stats import paired_difference, share
from longtake.recipes import sft
from longtake.train.context_settings import Context
from longtake.train.resume import save_model
from longtake.train.settings import Optim, Video

RESULT = demo.RESULTS / "reductions.json"
WAYS = ("sampled", "greedy")
BASE_SHARE = 0.7  # of the demo's steps of the base stage
SHORT = 0.45  # of them are on clips of at most 3 seconds
STEPS = 250  # of SFT, for every model
MIXED = (8, 16, 32, 32, 64, 64)  # frames of the demo's SFT
LEARNED = "pool:1"  # of the base stage


@dataclass(frozen=True, slots=True)
class Arm:
    """A model after SFT. Example: Arm("merge:0.25", (64,))."""

    reduce: str
    frames: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.reduce}@{','.join(map(str, dict.fromkeys(self.frames)))}"


START = Arm(LEARNED, MIXED)
ARMS = (Arm(LEARNED, (16,)), Arm("merge:0.25", (64,)), Arm("time:4", (64,)), Arm("pool:2", (64,)))
ASKED = (  # the reduction, and of how many frames
    (LEARNED, (8, 16, 32, 64)),
    (LEARNED, (24, 48)),  # numbers that were in no training
    ("pool:2", (16, 32, 64)),
    *((f"time:{n}", (64,)) for n in (2, 4, 8)),
    *((f"merge:{share}", (64,)) for share in (0.75, 0.5, 0.25, 0.125)),
    *((spec, (64,)) for spec in ("slowfast:4,pool:1", "merge:0.5,pool:2", "merge:0.25,pool:2")),
)


class Fewer(Plan):
    """The demo's, without the films of RL."""

    def films(self) -> dict[str, int]:
        return Plan.films(self) | {"rl": 8}

    def steps(self, most: int) -> int:
        return round(BASE_SHARE * most)


def prepare(plan: Plan, log: Log) -> None:
    """Films and base model; what is there is not made again."""
    from bench.reductions_net import make_films, stand_in

    with log.phase("films"):
        make_films(plan.out, plan.seed, plan.films(), plan.workers)
    if not (plan.out / "untrained" / "config.json").exists():
        save_model(plan.out / "untrained", stand_in(plan.seed))
    for name in ("films", "decode", "base"):
        demo_stages.STAGES[name](plan, log)
    again(plan, log)


def again(plan: Plan, log: Log) -> None:
    """A second round of the base stage's longer clips, for the network is slower to see than the demo's."""
    rows = plan.rows("again")
    if not rows.exists():
        late = [row for row in read_jsonl(plan.rows("base")) if row["batch"] >= SHORT * plan.steps(BASE_STEPS)]
        write_jsonl(rows, late)
    sft.run(
        sft.Config(
            rows=rows, model=str(plan.out / "base" / "model"), out=plan.out / "again", seed=plan.seed,
            steps=len({row["batch"] for row in read_jsonl(rows)}), batch_by="row", shuffle=False, train_vision=True,
            checkpoint_every=100, video=Video(frames=FRAMES, tier=plan.out / "tier", workers=plan.workers),
            optim=Optim(lr=2e-3, warmup=20, schedule="cosine", floor=0.05, betas=(0.9, 0.98), weight_decay=0.01),
            memory=ROOMY, adapter=FULL,
        ),
        log,
    )  # fmt: skip


def tune(plan: Plan, arm: Arm, log: Log) -> Path:
    """The demo's SFT under a reduction, always as many steps. Returns the model's folder."""
    out = plan.out / "sft" / arm.name
    sft.run(
        sft.Config(
            rows=plan.rows("sft"), model=str(plan.out / "again" / "model"), out=out, seed=plan.seed,
            steps=STEPS, batch=min(32, plan.films()["sft"]), video=plan.video(*arm.frames),
            context=Context(reduce=arm.reduce), memory=ROOMY, adapter=FULL,
            optim=Optim(lr=1.5e-3, schedule="linear", hold=0.25, betas=(0.9, 0.98), weight_decay=0.01),
        ),
        log,
    )  # fmt: skip
    return out / "model"


def ask(plan: Plan, arm: Arm, reduce: str, frames: Sequence[int], log: Log) -> list[dict[str, Any]]:
    """The held-out questions under a reduction: an entry for every number of frames."""
    out = plan.out / "eval" / arm.name / f"{reduce}@{','.join(map(str, frames))}"
    evaluation.run(
        evaluation.Config(
            rows=plan.rows("test"), model=str(plan.out / "sft" / arm.name / "model"), out=out, seed=plan.seed,
            max_tokens=demo_stages.ANSWER, video=plan.video(*frames), context=Context(reduce=reduce),
        ),
        log,
    )  # fmt: skip
    return [{"trained": arm.name, "reduce": reduce, "frames": n} | numbers(out, n) for n in frames]


def numbers(out: Path, frames: int) -> dict[str, Any]:
    """One setting: tokens of a film, accuracy with 95 % intervals."""
    rows = {way: read_jsonl(out / "outcomes" / f"{frames}-{way}-none.jsonl") for way in WAYS}
    found = {way: share(sum(row["correct"] for row in own), len(own)) for way, own in rows.items()}
    return {
        "tokens": fmean(row["receipt"]["tokens"] for row in rows["greedy"]),
        "n": len(rows["greedy"]),
        "right": {way: [int(row["correct"]) for row in own] for way, own in rows.items()},
        **{way: {"value": e.value, "interval": [e.low, e.high]} for way, e in found.items()},
    }


def study(seeds: Sequence[int], out: Path, log: Log) -> dict[str, Any]:
    """Every run that is not there yet; returns what reductions.json holds."""
    from bench.reductions_net import stand_in

    runs: list[dict[str, Any]] = []
    for seed in seeds:
        plan = Fewer(out / str(seed), seed, 1.0, 2)
        prepare(plan, log)
        tune(plan, START, log)
        found = [one for reduce, frames in ASKED for one in ask(plan, START, reduce, frames, log)]
        for arm in ARMS:
            tune(plan, arm, log)
            found += ask(plan, arm, arm.reduce, arm.frames, log)
        runs.append({"seed": seed, "settings": found, "differences": differences(found)})
    for run in runs:
        for one in run["settings"]:
            del one["right"]
    return {
        "machine": machine(),
        "versions": versions(),
        "date": datetime.now(UTC).date().isoformat(),
        "steps": {
            "base": sum(len(read_jsonl(plan.out / name / "metrics.jsonl")) for name in ("base", "again")),
            "sft": STEPS,
        },
        "start": START.name,
        "parameters": sum(x.numel() for x in stand_in(0).net.parameters()),
        "chance": fmean(1 / len(row["options"]) for row in read_jsonl(plan.rows("test"))),
        "runs": runs,
    }


def differences(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every reduction of 64 frames against fewer frames with as many tokens, on the same questions: 95 % intervals."""
    made = []
    for plain in found:
        for one in found:
            alike = one["tokens"] == plain["tokens"] and (one["trained"] == START.name) == (
                plain["trained"] == START.name
            )
            if plain["reduce"] == LEARNED and one["reduce"] != LEARNED and one["frames"] == max(MIXED) and alike:
                entry = {"trained": one["trained"], "reduce": one["reduce"], "tokens": one["tokens"]}
                entry |= {"against": plain["frames"]}
                for way in WAYS:
                    estimate = paired_difference(plain["right"][way], one["right"][way])
                    entry[way] = {"difference": estimate.value, "interval": [estimate.low, estimate.high]}
                made.append(entry)
    return made


def main(words: Sequence[str]) -> int:
    """Exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.reductions", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("out/reductions"), help="where the runs go")
    parser.add_argument("--page", action="store_true", help="write the page and end")
    chosen = parser.parse_args(words)
    log = Log()
    try:
        if not chosen.page:
            restart(["-m", "bench.reductions", *words])
            write_json_atomic(RESULT, study(chosen.seeds, chosen.out, log))
        reductions_page.write(read_json(RESULT))
    except UserError as error:
        log.ended(f"failed: {error.what}")
        sys.stderr.write(f"{error}\n")
        return 1
    finally:
        log.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
