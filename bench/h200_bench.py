"""What bench.h200 measures on one device: every mode at a frame count, in how much memory it fits, the vision tower.

G answers, P prompt tokens.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.h200_net import TINY, Clock, Net, Scene, Size, network, scene
from bench.h200_numerics import CHECKS
from bench.h200_step import MODES, Took, generate, step
from bench.h200_tower import encode, tower

FRAMES = (64, 256, 512, 1024, 3600)
CAPS = (24, 48, 80)
SIZES = (16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 3600)
CAPPED = tuple(mode for mode in MODES if mode != "exact_attention")  # which is for where there is room
RUNS, SLOW = 3, 20.0  # a mode is run so often, until it took that many seconds
ANSWER_TOKENS = 2048  # in one forward and backward on a prefix
NO_ROOM = ("out of memory", "ALLOC_FAILED")
Row = dict[str, Any]
Found = Iterator[tuple[str, Row]]  # which list of the results, and what is added to it


@dataclass(frozen=True, slots=True)
class Item:
    """Something that is measured once. Example: Item("512/exact", 40.0, lambda: …)."""

    key: str
    seconds: float  # that it may take
    work: Callable[[], Found]


class Bench:
    """Example: for item in Bench(SEVEN, "cuda", results).items("512"): …"""

    def __init__(self, size: Size, device: str, results: dict[str, Any]) -> None:
        """`results`: what is known so far; the caller adds what is found to its lists."""
        self.size, self.device, self.results = size, device, results
        self.tiny = size is TINY
        self.dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.frames = (4, 8) if self.tiny else FRAMES
        self.sizes = (4, 8, 16) if self.tiny else SIZES
        self._net: Net | None = None

    @property
    def stages(self) -> list[str]:
        return ["numerics", *map(str, self.frames), *(f"cap{cap}" for cap in CAPS), "tower"]

    def items(self, stage: str) -> Iterator[Item]:
        """All of a stage; of a cap, the trial that follows from what is known when it is asked for."""
        if stage == "numerics":
            for name in CHECKS:
                yield Item(f"numerics/{name}", 90.0, lambda name=name: self.checked(name))
        elif stage == "tower":
            for frames in self.frames:
                yield Item(f"tower/{frames}", 20 + frames / 20, lambda frames=frames: self.encoded(frames))
        elif stage.startswith("cap"):
            for mode in CAPPED:
                yield from self.trials(int(stage.removeprefix("cap")), mode)
        else:
            frames = int(stage)
            yield Item(f"{frames}/generate", 120.0, lambda: self.generated(frames))
            for mode in MODES:
                yield Item(f"{frames}/{mode}", self.guess(frames), lambda mode=mode: self.timed(frames, mode))

    def guess(self, frames: int) -> float:
        """Seconds that a mode may take: the cost model's of exact_layers (performance.md), half as much again."""
        tokens = self.size.tokens(frames) / 1000
        once = 1.5 * (0.135 * tokens + 0.002 * tokens**2)
        return 10 + max(once, min(RUNS * once, SLOW + once))

    @property
    def net(self) -> Net:
        """Made when it is first needed, and warmed up."""
        if self._net is None:
            self._net = network(self.size, self.device, self.dtype)
            for mode in ("exact_layers", "encode_once"):
                step(scene(self._net, self.size, 4, 2, 4), mode, ANSWER_TOKENS)
        return self._net

    def about(self, here: Scene, frames: int) -> Row:
        """What all rows say."""
        gpus = self.results["machine"]["gpus"]
        said = {"family": self.size.family, "frames": frames, "prefix": len(here.prompt.ids)}
        said |= {"answer": len(here.answers[0]), "G": len(here.answers)}
        return said | {"device": gpus[0]["name"] if gpus else "cpu", "cap_gb": None, "update_s": None, "step_s": None}

    def checked(self, name: str) -> Found:
        return (("numerics", row) for row in CHECKS[name](self.size, self.device))

    def generated(self, frames: int) -> Found:
        """The rollout, in no mode."""
        self.fresh()
        here, clock = scene(self.net, self.size, frames), Clock(self.net.device)
        said: list[str] = []
        short = self.short_of_memory(lambda: said.extend(generate(here, clock)))
        row = {"mode": "generate"} | self.about(here, frames) | {"said": said}
        yield "rows", row | {"phases": clock.seconds, "peak_mb": self.peak(), "runs": int(not short)} | short

    def timed(self, frames: int, mode: str) -> Found:
        self.fresh()
        here = scene(self.net, self.size, frames)
        runs: list[Took] = []

        def measure() -> None:
            started = time.perf_counter()
            while len(runs) < RUNS and (not runs or time.perf_counter() - started < SLOW):
                runs.append(step(here, mode, ANSWER_TOKENS, SLOW))

        short = self.short_of_memory(measure)
        row = {"mode": mode} | self.about(here, frames) | {"phases": {}, "answer_tokens": ANSWER_TOKENS}
        row |= {"peak_mb": self.peak(), "runs": len(runs)} | short
        yield "rows", row | (self.whole(frames, mode, runs) if runs else {})

    def whole(self, frames: int, mode: str, runs: Sequence[Took]) -> Row:
        """A row's seconds: of the median run, and the rollout that was measured once for all modes."""
        took = sorted(runs, key=lambda one: update(one, mode))[len(runs) // 2]
        rollouts = [x for x in self.results["rows"] if x["item"] == f"{frames}/generate" and x["runs"]]
        phases, rollout = dict(took.phases), dict(rollouts[0]["phases"]) if rollouts else {}
        row: Row = {"update_s": update(took, mode), "norm": took.norm, "answers_run": took.answers}
        if mode != "encode_once":  # what is trained on is the rollout's own prefill
            rollout.pop("prefill", None)
        if mode == "alora":  # kept since an earlier step
            row["cold_prefill_s"] = phases.pop("prefill")
        row["phases"] = rollout | phases
        return row | {"step_s": sum(row["phases"].values()) if rollout else None}

    def trials(self, cap: int, mode: str) -> Iterator[Item]:
        """Which frame count is the largest that fits, and then its row."""
        while (frames := next_size(self.sizes, self.fits(cap, mode))) is not None:
            yield Item(f"cap{cap}/{mode}/{frames}", self.guess(frames), lambda: self.tried(cap, mode, frames))
            if frames not in self.fits(cap, mode):
                return  # it failed, and not for want of memory
        yield Item(f"cap{cap}/{mode}", 0.0, lambda: self.largest(cap, mode))

    def fits(self, cap: int, mode: str) -> dict[int, bool]:
        """Frame counts that were tried in this memory, fit in less, or do not fit in more."""
        found = {}
        for row in self.results["trials"]:
            if row["mode"] == mode and (row["cap_gb"] == cap or row["fits"] == (row["cap_gb"] < cap)):
                found[row["frames"]] = row["fits"]
        return found

    def tried(self, cap: int, mode: str, frames: int) -> Found:
        self.fresh()
        here, runs = scene(self.net, self.size, frames, group=2), list[Took]()
        self.limit(cap)
        try:
            short = self.short_of_memory(lambda: runs.append(step(here, mode, self.size.answer, 0.0)))
        finally:
            self.limit(None)
        row = {"mode": mode} | self.about(here, frames) | {"cap_gb": cap, "answer_tokens": self.size.answer}
        row |= {"peak_mb": self.peak(), "runs": len(runs), "fits": not short, "phases": {}} | short
        if runs:
            row |= {"update_s": update(runs[0], mode), "phases": runs[0].phases, "answers_run": runs[0].answers}
        yield "trials", row

    def largest(self, cap: int, mode: str) -> Found:
        """The row of a cap: the largest trial that fits; where a smaller cap has it, that one's; frames 0 for none."""
        best = max((frames for frames, fit in self.fits(cap, mode).items() if fit), default=0)
        rows = [x for x in self.results["trials"] if (x["mode"], x["frames"], x["fits"]) == (mode, best, True)]
        row = rows[-1] if rows else {"mode": mode, "family": self.size.family, "frames": 0}
        yield "rows", {name: x for name, x in row.items() if name != "item"} | {"cap_gb": cap}

    def encoded(self, frames: int) -> Found:
        self.fresh()
        net, clock = tower(self.size, self.device, self.dtype), Clock(torch.device(self.device))
        encode(net, self.size, 4, Clock(clock.device))
        encode(net, self.size, frames, clock)
        yield "tower", {"frames": frames, "encode_s": clock.seconds["encode"], "peak_mb": self.peak()}

    def limit(self, cap: int | None) -> None:
        """How much the device gives from now on: so many GiB, less one for the driver and its libraries."""
        if self.device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(1.0 if cap is None else min(1.0, (cap - 1) * 2**30 / total))

    def fresh(self) -> None:
        """What earlier work left is given back; the peak begins anew."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() / 1e6
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

    def short_of_memory(self, work: Callable[[], object]) -> Row:
        """Runs it; what is to be said if memory was short."""
        try:
            work()
            return {}
        except RuntimeError as error:  # torch.OutOfMemoryError among them; pinned memory has none of its own
            said = str(error)
            if not any(words in said for words in NO_ROOM):
                raise
        self.net.text.zero_grad(set_to_none=True)
        return {"out_of_memory": said[:200]}


def update(took: Took, mode: str) -> float:
    """Seconds from answers known to optimizer done: with one prefix forward, but where no gradient goes through it."""
    there = took.phases.get("prefill", 0.0) if mode in ("no_prefix_gradient", "alora") else 0.0
    return sum(took.phases.values()) - there


def next_size(sizes: Sequence[int], fits: dict[int, bool]) -> int | None:
    """What to try next for the largest of `sizes` (ascending) that fits; None when it is known."""
    low = max((place for place, size in enumerate(sizes) if fits.get(size)), default=-1)
    high = min((place for place, size in enumerate(sizes) if fits.get(size) is False), default=len(sizes))
    return None if high - low <= 1 else sizes[(low + high) // 2]
