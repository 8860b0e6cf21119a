"""A pair of answers on one shared prefix against a row for each answer: bench/results/pairs.json.

    python -m bench.pairs

The update of DPO and that of a reward model, prefix forward and backward included, by the code that the recipes run
(train.step.backward); float32, the network and film of bench.cpu_world. The two ways take turns; medians of RUNS. They
compute the same gradient, so its norms must agree. Others' kernels for shared pairs (flash-pref) need CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from bench.cpu_scene import NEVER, Clock, Scene, opened
from bench.cpu_world import TOKENS, Shape, build
from longtake.log import Log, write_json_atomic
from longtake.log.folder import machine, versions
from longtake.maths.loss import dpo
from longtake.maths.pack import pack
from longtake.maths.reward import bradley_terry_of_tokens
from longtake.models.heads import add_head
from longtake.records import Features, PrefixRow, Prompt
from longtake.train.step import Goal, Objective, Passes, ScalarObjective, backward

RESULT = Path("bench/results/pairs.json")
FOLDER = Path("out/bench/pairs")
SIZES = ((512, 256), (2048, 64), (2048, 256), (8192, 256))  # tokens of the prefix and of an answer
RUNS, AGREE = 7, 1e-3
SECOND = "again:"  # before a handle: the same film in a row of its own


def rows(prompt: Prompt, answer: int, loss: str) -> dict[str, PrefixRow]:
    """The pair as one group of two answers, and as two groups of one."""
    random = torch.Generator().manual_seed(0)
    ids = [tuple(torch.randint(90, 120, (answer,), generator=random).tolist()) for _ in range(2)]
    weight = [1.0] * answer if loss == "dpo" else [0.0] * (answer - 1) + [1.0]
    old = [[-3.0] * answer, [-3.1] * answer]
    alone = replace(prompt, features=f"{SECOND}{prompt.features}")
    return {
        "shared": pack([prompt], [ids], [[weight, weight]], [old]),
        "two rows": pack([prompt, alone], [[ids[0]], [ids[1]]], [[weight], [weight]], [[old[0]], [old[1]]]),
    }


def goal(loss: str) -> Goal:
    """What is minimised."""
    if loss == "dpo":
        return Objective(partial(dpo, beta=0.1), on_policy=False, together=2)
    return ScalarObjective("default", partial(bradley_terry_of_tokens, centring=0.01), together=2)


def timed(
    scene: Scene, row: PrefixRow, loss: str, features: Callable[[list[str]], list[Features]]
) -> tuple[float, float]:
    """(seconds of the update, norm of its gradient)."""
    start = perf_counter()
    backward(scene.model, features, row, goal(loss), Passes("graph", answer_tokens=len(row.answer_R)))
    seconds = perf_counter() - start
    norm = float(torch.nn.utils.get_total_norm([p.grad for p in scene.params if p.grad is not None]))
    scene.optimizer.zero_grad(set_to_none=True)
    return seconds, norm


def measure(prefix: int, answer: int, log: Log) -> list[dict[str, Any]]:
    """A line for each loss. Raises ValueError if the two ways do not compute the same."""
    world = build(FOLDER, Shape(), (prefix // TOKENS,))
    scene = opened(world, prefix // TOKENS, 2, answer)
    scene.model.end_ids = NEVER
    add_head(scene.model)
    found = []
    with scene.touched(FOLDER / "touched", Clock()), log.progress(f"{prefix} and {answer}", 2 * (RUNS + 1)) as done:

        def features(handles: list[str]) -> list[Features]:
            return scene.features([handle.removeprefix(SECOND) for handle in handles])

        for loss in ("dpo", "reward"):
            ways = rows(scene.prompt, answer, loss)
            took: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(RUNS + 1):
                norms = []
                for name, row in ways.items():
                    seconds, norm = timed(scene, row, loss, features)
                    took[name].append(seconds)
                    norms.append(norm)
                if abs(norms[0] - norms[1]) > AGREE * norms[1]:
                    raise ValueError(f"{loss} at {prefix}: gradient norms {norms} differ")
                done.advance()
            shared, two = (median(own[1:]) for own in took.values())
            line = {"loss": loss, "prefix": prefix, "answer": answer, "shared_s": shared, "two_rows_s": two}
            found.append(line | {"ratio": shared / two, "norm": norms[1], "runs": RUNS})
            log.say(f"{loss} at {prefix} + {answer}: {shared:.2f} s shared, {two:.2f} in two rows: {shared / two:.2f}")
    return found


def main() -> None:
    log = Log()
    lines = [line for prefix, answer in SIZES for line in measure(prefix, answer, log)]
    write_json_atomic(
        RESULT,
        {"machine": machine(), "versions": versions(), "date": datetime.now(UTC).date().isoformat(), "rows": lines},
    )
    log.close()


if __name__ == "__main__":
    main()
