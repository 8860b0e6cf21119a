"""What longtake's cost model, probed on this machine, says of the CPU benchmark's rows: `plan` beside measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bench.cpu_peers import BATCH_TOKENS
from bench.cpu_scene import ANSWER_TOKENS, RANK
from bench.cpu_world import TOKENS, VISUAL, World
from longtake.cli.probe import probe
from longtake.log import read_json
from longtake.maths.cost import Rates, Way, Work, predict
from longtake.maths.devices import cpu
from longtake.maths.shapes import Shape, shape_of

FLOAT32 = Way(item=4.0, weight=4.0, answer_tokens=ANSWER_TOKENS)
ROWS = replace(FLOAT32, row_tokens=BATCH_TOKENS)
WAYS: Mapping[str, Way] = {
    "exact": replace(FLOAT32, keep="graph"),
    "exact_layers": replace(FLOAT32, keep="layers"),
    "no_prefix_gradient": replace(FLOAT32, mode="none", keep="nothing"),
    "alora": replace(FLOAT32, mode="alora", keep="nothing", adapter="alora", rank=RANK),
    "per_answer": replace(ROWS, mode="per_answer"),
    "per_answer_3pass": replace(ROWS, mode="per_answer_3pass"),
    "encode_once": replace(ROWS, mode="encode_once"),
    "prefix_grouper": replace(FLOAT32, mode="prefix_grouper"),
}
PREFILLS = ("exact", "exact_layers")  # whose update is told with a prefill


def probed(world: World, machine: Mapping[str, Any], seconds: float = 30.0) -> tuple[Shape, Rates]:
    """The network's shape, and what this machine does with it."""
    shape = shape_of(read_json(world.model / "config.json"))
    device = cpu(machine["processors"], machine["memory_gib"] * 2**30)
    return shape, probe(shape, device.rates(FLOAT32.item), seconds=seconds)


def predicted(row: Mapping[str, Any], shape: Shape, rates: Rates) -> dict[str, float] | None:
    """update_s and step_s of a row; None for a mode that the model does not know."""
    way = WAYS.get(row["mode"])
    if way is None:
        return None
    visual = VISUAL * row["frames"]
    work = Work(row["frames"], visual, TOKENS * row["frames"] - visual, group=row["G"], answer=row["answer"])
    found = predict(shape, work, way, rates)
    return {"update_s": found.update + (found.prefill if row["mode"] in PREFILLS else 0.0), "step_s": found.cached}
