"""A training step on long films, ours and others', on this computer's processors: bench/results/cpu.json.

    python -m bench.cpu             every prefix and group size; others' modes on long films are slow
    python -m bench.cpu --quick     prefixes of 2k and 8k, at most 15 minutes

One small Qwen3-VL network, one film, one question; G answers of ANSWER tokens each; float32; all is trained but the
vision tower (alora: rank-16 adapters), with one AdamW step. Every mode runs in a process of its own (bench.cpu_worker)
under the same settings of threads and allocator; the modes of a setting make their steps in turn, so that whatever else
the machine does meets them all. A mode's first step warms it up and gives its peak memory; then RUNS are made and their
medians reported, or, where that first step took more than SLOW seconds, it alone. Modes that compute the same gradient
must agree on its norm.

A row: mode, family, frames, prefix (prompt tokens), answer (tokens), G; update_s (answers known to optimizer done,
always with one prefix forward, except in no_prefix_gradient and alora); step_s (rollout and update, the film's features
at hand); first_s (the same with decoding and encoding the film); phases (seconds of each); peak_mb; runs; spread
(fastest and slowest update); predicted (by longtake's cost model, probed here; null for a mode that it does not know).
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import IO, Any

import torch

import bench.cpu_torchvision  # noqa: F401  # before transformers meets torchvision
from bench.cpu_page import RESULT, missed, ratios
from bench.cpu_predict import predicted, probed
from bench.cpu_worker import MODES, SAME
from bench.cpu_world import TOKENS, Shape, build
from longtake.errors import UserError
from longtake.log import Log, write_json_atomic
from longtake.log.folder import machine, versions

FOLDER = Path("out/bench/cpu")
ANSWER = 64
RUNS, SLOW = 3, 20.0
AGREE = 1e-3  # relative difference of two modes' gradient norms in float32
TOUCH = ("decode", "encode")  # phases of a film's first touch
PACKAGES = ("trl", "prefix-grouper", "datasets", "accelerate", "torchvision", "peft")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured together. Example: Setting(128, 8, ("exact", "per_answer"))."""

    frames: int
    group: int
    modes: tuple[str, ...]
    runs: int = RUNS  # after the first, of modes that are not slow

    @property
    def prefix(self) -> int:
        return TOKENS * self.frames


SHARING = ("exact", "exact_layers", "no_prefix_gradient", "alora", "prefix_grouper")  # one prefix for all answers
MEMORY = ("exact", "exact_layers", "prefix_grouper")
BUT_TRL = tuple(mode for mode in MODES if mode != "trl")
QUICK = (
    Setting(128, 8, MODES),
    Setting(512, 8, BUT_TRL),
    *(Setting(512, group, MEMORY, runs=0) for group in (2, 16)),
)
FULL = (
    *(Setting(frames, 8, MODES) for frames in (16, 32, 64, 128, 512)),
    Setting(2048, 8, SHARING),
    *(Setting(frames, group, BUT_TRL, runs=1) for frames in (128, 512) for group in (2, 4, 16)),
)


class Worker:
    """One mode's process. Example: worker = Worker(folder, "exact", setting, 64); worker.listen(); worker.step()."""

    def __init__(self, folder: Path, mode: str, setting: Setting, answer: int) -> None:
        start = ["-m", "longtake.cli.environment", "-m", "bench.cpu_worker"]
        sizes = [str(size) for size in (setting.frames, setting.group, answer)]
        self.mode, self.heard = mode, folder / f"{mode}.log"
        with self.heard.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *start, str(folder), mode, *sizes],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def listen(self) -> dict[str, Any]:
        """The next line: the first says that the network is loaded. Raises UserError if the process has ended."""
        line = _open(self.process.stdout).readline()
        if not line:
            self.end()
            why = f"exit code {self.process.returncode}: {' '.join(self.heard.read_text().splitlines()[-1:])}"
            raise UserError(f"mode {self.mode} cannot be measured", where=str(self.heard), why=why)
        return dict(json.loads(line))

    def step(self) -> dict[str, Any]:
        """Numbers of one more step."""
        said = _open(self.process.stdin)
        with suppress(BrokenPipeError):  # listen() says why it has ended
            said.write("step\n")
            said.flush()
        return self.listen()

    def end(self) -> None:
        """Nobody wants another step: gives its memory back."""
        if self.process.returncode is None:
            self.process.communicate()


def _open(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def measure(folder: Path, setting: Setting, log: Log, answer: int = ANSWER) -> list[dict[str, Any]]:
    """Rows of a setting. Raises UserError for a mode that fails or computes another gradient."""
    workers: list[Worker] = []
    found: dict[str, list[dict[str, Any]]] = {}
    try:
        for mode in setting.modes:
            workers.append(Worker(folder, mode, setting, answer))
        for worker in workers:
            worker.listen()
        again = []
        for worker in workers:
            first = worker.step()
            found[worker.mode] = [first]
            log.say(_told(worker.mode, setting, first))
            if setting.runs and _seconds(first) <= SLOW:
                again.append(worker)
            else:
                worker.end()
        _agree({mode: steps[0]["norm"] for mode, steps in found.items() if mode in SAME})
        for _ in range(setting.runs):
            for worker in again:
                found[worker.mode].append(worker.step())
    finally:
        for worker in workers:
            worker.end()
    return [row(mode, setting, answer, found[mode]) for mode in setting.modes]


def row(mode: str, setting: Setting, answer: int, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians of a mode's steps; the first one warmed it up, unless it is all there is."""
    measured = steps[1:] or steps
    phases = {name: median(step["phases"][name] for step in measured) for name in measured[0]["phases"]}
    updates = [step["update_s"] for step in measured]
    touch = sum(phases.get(name, 0.0) for name in TOUCH)
    step_s = median(_seconds(step) for step in measured)
    return {
        "mode": mode,
        "family": "qwen3_vl",
        "frames": setting.frames,
        "prefix": setting.prefix,
        "answer": answer,
        "G": setting.group,
        "update_s": median(updates),
        "step_s": step_s,
        "first_s": step_s + touch,
        "phases": phases,
        "peak_mb": steps[0]["peak_mb"],
        "runs": len(measured),
        "spread": [min(updates), max(updates)],
    }


def _seconds(step: Mapping[str, Any]) -> float:
    """Of a whole step on a film whose features are there."""
    return float(sum(seconds for name, seconds in step["phases"].items() if name not in TOUCH))


def _agree(norm: Mapping[str, float]) -> None:
    """The same answers and the same weights must give the same gradient."""
    if not norm:
        return
    first = next(iter(norm))
    for mode, value in norm.items():
        if abs(value - norm[first]) > AGREE * norm[first]:
            why = f"its norm is {value:.6g}, that of {first} {norm[first]:.6g}"
            raise UserError(f"mode {mode} computes another gradient", why=why)


def _told(mode: str, setting: Setting, step: Mapping[str, Any]) -> str:
    where = f"prefix {setting.prefix}, G {setting.group}"
    return f"{where}, {mode}: update {step['update_s']:.2f} s, step {_seconds(step):.2f} s, {step['peak_mb']:.0f} MB"


def run(folder: Path, settings: Sequence[Setting], shape: Shape, log: Log, answer: int = ANSWER) -> dict[str, Any]:
    """The whole result: {machine, versions, date, rows} and what the network was. Raises UserError."""
    world = build(folder, shape, tuple(sorted({setting.frames for setting in settings})))
    here = machine()
    size, rates = probed(world, here)
    rows = [row for setting in settings for row in measure(folder, setting, log, answer)]
    return {
        "machine": here | {"threads": torch.get_num_threads()},
        "versions": versions() | {name: _version(name) for name in PACKAGES},
        "date": datetime.now(UTC).date().isoformat(),
        "network": asdict(shape),
        "rows": [_rounded(one | {"predicted": predicted(one, size, rates)}) for one in rows],
    }


def _rounded(value: Any) -> Any:
    """Four digits of every measured number."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def main(words: Sequence[str]) -> int:
    """Exit code."""
    log, start = Log(), time.time()
    quick = list(words) == ["--quick"]
    if words and not quick:
        sys.stderr.write("python -m bench.cpu [--quick]\n")
        return 2
    try:
        found = run(FOLDER, QUICK if quick else FULL, Shape(), log)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_json_atomic(RESULT, found)
    for name, value in ratios(found["rows"]).items():
        log.say(f"{name}: {value:.3g}")
    errors = missed(found["rows"])
    log.say(f"predicted steps miss by {median(errors):.0%} in the median, {errors[-1]:.0%} at most")
    log.say(f"{len(found['rows'])} rows in {RESULT.name}, {(time.time() - start) / 60:.0f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
