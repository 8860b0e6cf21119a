"""The numbers of a GPU: bench/results/h200.json. See bench/h200.sh, which sets the environment.

    bench/h200.sh --tiny            everything with a toy network: seconds, to see that all of it runs
    bench/h200.sh numerics          kernels and gradients against plain twins
    bench/h200.sh 512               every mode at 512 frames (64 256 512 1024 3600)
    bench/h200.sh cap24             the largest frame count of every mode in 24 GB (cap24 cap48 cap80)
    bench/h200.sh tower             the vision tower alone
    bench/h200.sh                   all of that, in this order

A call stops before what may take longer than is left of its --seconds (540), and goes on there when it is called again:
what the results file (--out), or else bench/results/h200.json, holds of such a machine is not measured anew. What fails
is written down and tried again by the next call.

A row: mode, family, frames, prefix (prompt tokens), answer (tokens), G; update_s (answers known to optimizer done,
always with one prefix forward, except in no_prefix_gradient and alora); step_s (with the rollout; features are there);
phases (seconds of the step); peak_mb of the update; runs (the median is reported; one where it took over 20 s); norm of
the gradient; device; cap_gb (null: all of it). update_s is null where memory was short. LoRA of rank 32 on all linear
layers, bfloat16, 70 tokens a frame. The rollout is measured once a frame count, as mode `generate`; encode_once begins
no other answer after 20 s: answers_run of G were run, and the time of the others is theirs.

cap_gb: a trial learns from 2 answers, one at a time (so G does not matter), without a rollout (step_s is null); frames
are of a list of sizes; 1 GiB of the cap is left to the driver.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench.h200_bench import Bench, Row
from bench.h200_net import SEVEN, TINY

RESULT = Path(__file__).parent / "results" / "h200.json"
LISTS = ("rows", "numerics", "tower", "trials")
PACKAGES = ("torch", "transformers", "peft", "triton")


def opened(path: Path, device: str, known: Path) -> dict[str, Any]:
    """What the file holds; else what `known` holds, if that was measured on such a machine; else new results.

    Raises ValueError for a file of another machine.
    """
    here = new(device)
    for file in (path, known):
        if file.exists():
            found = dict(json.loads(file.read_text())) | {"failures": []}
            if found["machine"]["gpus"] == here["machine"]["gpus"]:
                return found
            if file == path:
                raise ValueError(f"{file} is of another machine: {found['machine']['gpus']}")
    return here


def new(device: str) -> dict[str, Any]:
    """Results of this machine without any."""
    about: Row = {"system": platform.system(), "processors": os.cpu_count(), "gpus": []}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        about |= {"gpus": [{"name": gpu.name, "gib": round(gpu.total_memory / 2**30, 1)}], "cuda": torch.version.cuda}
    versions = {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}
    made: dict[str, Any] = {"machine": about, "versions": versions, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    return made | {name: [] for name in (*LISTS, "failures")}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def write(path: Path, results: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(part, path)


def run(bench: Bench, stages: Sequence[str], path: Path, seconds: float) -> str:
    """Measures what is missing; returns the first item there was no time for, "" if there was for all."""
    results, started, begun = bench.results, time.monotonic(), False
    done = {row["item"] for name in LISTS for row in results[name]}
    for stage in stages:
        for item in bench.items(stage):
            if item.key in done:
                continue
            if begun and time.monotonic() - started + item.seconds > seconds:
                return item.key
            begun = True
            at = time.monotonic()
            try:
                for name, row in list(item.work()):
                    results[name].append({"item": item.key} | row)
            except Exception:  # the rest shall not suffer: a GPU is lent by the minute
                results["failures"].append({"item": item.key, "error": traceback.format_exc()})
            write(path, results)
            told = "FAILED" if results["failures"] and results["failures"][-1]["item"] == item.key else "done"
            sys.stdout.write(f"{item.key}: {told} in {time.monotonic() - at:.1f} s\n")
    return ""


def main(words: Sequence[str] | None = None) -> int:
    """0: all is measured; 3: call again; 1: something failed."""
    parser = argparse.ArgumentParser(prog="bench/h200.sh", usage="bench/h200.sh [--tiny] [--out FILE] [stage ...]")
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--seconds", type=float, default=540.0)
    said = parser.parse_args(words)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu" and not said.tiny:
        parser.error("no GPU here: --tiny runs the same with a toy network")
    if said.tiny and said.out == RESULT:
        parser.error("--tiny measures nothing: name another file with --out")
    try:
        results = opened(said.out, device, said.out if said.tiny else RESULT)
    except ValueError as error:
        parser.error(str(error))
    bench = Bench(TINY if said.tiny else SEVEN, device, results)
    if unknown := sorted(set(said.stages) - set(bench.stages)):
        parser.error(f"no stage {unknown[0]}: {' '.join(bench.stages)}")
    left = run(bench, said.stages or bench.stages, said.out, said.seconds)
    if left:
        sys.stdout.write(f"time is up before {left}: call again\n")
    for failure in bench.results["failures"]:
        sys.stdout.write(f"{failure['item']}: {failure['error']}\n")
    return 1 if bench.results["failures"] else 3 if left else 0


if __name__ == "__main__":
    sys.exit(main())
