"""What a run tells while it runs: numbers of every step on disk, seconds by phase, progress for who is watching.

On a terminal one line with the time left; in a pipe one JSON line a step; with `--json` that goes to stderr, so that
stdout holds the final JSON object alone.
Of several ranks the first owns the run folder and speaks; the others take all calls (see log.seat).
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from longtake.log.files import append_jsonl, plain, read_jsonl, write_jsonl
from longtake.log.folder import RUNNING, RunFolder, flat
from longtake.log.seat import Nowhere, Seat

TELLING = ("reward", "accuracy", "loss", "format", "length", "grad_norm", "lr")  # numbers for the line, best first
ON_LINE = 4
SAVE_EVERY = 5.0  # seconds between writes of run.json


class Counter:
    """Counts work that is no training step: films decoded, questions answered."""

    def __init__(self, log: Log, name: str, total: int) -> None:
        self._log, self.name, self.total, self.done = log, name, total, 0

    def advance(self, n: int = 1) -> None:
        """n more are done."""
        self.done += n
        self._log.show(self.name, self.done, self.total, "")


class Log(Seat):
    """One for a command. Example:

    log = Log()
    log.open(folder)
    with log.phase("rollout"):
        ...
    log.step(3, 200, {"reward": 0.6})
    """

    def __init__(
        self, *, json_output: bool = False, stream: TextIO | None = None, rank: int = 0, ranks: int = 1
    ) -> None:
        super().__init__(rank, ranks)
        spoken = stream or (sys.stderr if json_output else sys.stdout)
        self.stream = spoken if self.leads else Nowhere()
        self.json_output = json_output
        self.terminal = self.stream.isatty()
        self.folder: RunFolder | None = None
        self._opened: list[RunFolder] = []  # all that ever were: a demo and its stages end together
        self.seconds: dict[
            str, float
        ] = {}  # wall seconds by phase since the folder was opened, earlier sittings included
        self._before: dict[str, float] = {}  # the same at the last step
        self._shares: dict[str, tuple[float, float]] = {}  # part and whole since the last step
        self._counts: dict[str, Callable[[], Mapping[str, int]]] = {}
        self._stack: list[tuple[str, float]] = []  # open phases and when their clock last started
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._saved = self._spoke = time.monotonic()

    def open(self, folder: RunFolder) -> None:
        """Steps, notes and seconds go to this folder from now on (until another is opened)."""
        self._save()
        self.clear()
        self.folder = folder
        self._opened.append(folder)
        self._shares, self._counts = {}, {}
        self.seconds = folder.seconds
        self._before = dict(self.seconds)
        self._saved = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count wall seconds as `name`. A phase inside another stops the outer clock: phases add up to the wall."""
        now = time.perf_counter()
        if self._stack:
            self._count(now)
        self._stack.append((name, now))
        self.write(f"phase {name}")
        self._move(name, self.place[1])
        try:
            yield
        finally:
            now = time.perf_counter()
            self._count(now)
            self._stack.pop()
            if self._stack:
                self._stack[-1] = (self._stack[-1][0], now)
        self._move(*(self._stack[-1][0], self.place[1]) if self._stack else (f"after phase {name}", ""))

    def _count(self, now: float) -> None:
        name, since = self._stack[-1]
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        self._stack[-1] = (name, now)

    def share(self, name: str, part: float, whole: float) -> None:
        """So much of a whole, e.g. what a cache had of what was asked for; the next step's row says which share."""
        had, asked = self._shares.get(name, (0.0, 0.0))
        self._shares[name] = had + part, asked + whole

    def count(self, name: str, counts: Callable[[], Mapping[str, int]]) -> None:
        """What a cache counted so far; goes into run.json whenever the seconds do, earlier sittings added."""
        self._counts[name] = counts

    def step(self, step: int, total: int, numbers: Mapping[str, float]) -> None:
        """Write the numbers of a step with the phase seconds since the step before, and show them.

        nan and infinity are written as null.
        """
        assert not {"step", "seconds"} & numbers.keys(), "these two keys are the log's own"
        shares = {name: part / whole for name, (part, whole) in self._shares.items() if whole}
        numbers, self._shares = {**numbers, **shares}, {}
        spent = {name: round(value - self._before.get(name, 0.0), 4) for name, value in self.seconds.items()}
        row = {"step": step, **numbers, "seconds": {name: value for name, value in spent.items() if value}}
        self._before = dict(self.seconds)
        self.write(f"step {step} of {total}")
        if self.folder:
            append_jsonl(self.folder.path / "metrics.jsonl", row)
            if time.monotonic() - self._saved > SAVE_EVERY:
                self._save()
        if self.terminal:
            told = [name for name in TELLING if name in numbers][:ON_LINE] or list(numbers)[:ON_LINE]
            self.show("step", step, total, "  ".join(f"{name} {numbers[name]:.3g}" for name in told))
        else:
            self._line({**row, "total": total})

    def cut_after(self, step: int) -> int:
        """Drop metrics of later steps, which were made after the checkpoint from which the run goes on: how many."""
        path = self.folder.path / "metrics.jsonl" if self.folder else None
        rows = read_jsonl(path) if path and path.exists() else []
        kept = [row for row in rows if row["step"] <= step]
        if path and len(kept) < len(rows):
            write_jsonl(path, kept)
        return len(rows) - len(kept)

    def note(self, text: str) -> None:
        """A sentence worth keeping: shown, and kept in run.json for the report."""
        if self.folder:
            self.folder.add_note(text)
        self.aside(text)

    def aside(self, text: str) -> None:
        """A sentence that matters now: shown, and kept nowhere but in this rank's text."""
        self.write(text)
        if self.terminal:
            self._console().print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            self._line({"note": text})

    def say(self, text: str) -> None:
        """What a person asked for (an answer, a list of checks): plain text on stdout, nothing with --json."""
        self.clear()
        if not self.json_output:
            print(text, file=self.stream, flush=True)

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[Counter]:
        """Progress of counted work: `with log.progress("films", 40) as films: films.advance()`."""
        counter = Counter(self, name, total)
        try:
            yield counter
        finally:
            if not self.terminal:
                self._line({"progress": name, "done": counter.done, "total": total})
            elif self._bar is not None and name in self._tasks:
                self._bar.remove_task(self._tasks.pop(name))

    def show(self, name: str, done: int, total: int, text: str) -> None:
        """Move a progress line on a terminal; in a pipe say it every SAVE_EVERY seconds."""
        self.moves += 1
        if not self.terminal:
            if time.monotonic() - self._spoke > SAVE_EVERY:
                self._line({"progress": name, "done": done, "total": total})
            return
        if self._bar is None:
            texts = TextColumn("{task.description}"), TextColumn("{task.fields[text]}")
            columns = texts[0], BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn(), texts[1]
            console = Console(file=self.stream)
            self._bar = Progress(
                *columns, console=console, transient=True, refresh_per_second=4, speed_estimate_period=300
            )
            self._bar.start()
        if name not in self._tasks:
            # what an earlier sitting did counts as done, but not as speed
            self._tasks[name] = self._bar.add_task(name, total=total, completed=max(done - 1, 0), text=text)
        self._bar.update(self._tasks[name], completed=done, total=total, text=text)

    def clear(self) -> None:
        """Take the progress lines away."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = None
        self._tasks = {}

    def close(self) -> None:
        """Take the progress lines away and write the seconds. The command line calls it however a stage ends."""
        self.clear()
        self._save()

    def ended(self, status: str) -> None:
        """Tell every run folder that is still running how the run ended."""
        for folder in self._opened:
            if folder.status == RUNNING:
                folder.set_status(status)
        self.close()

    def summary(self, numbers: Mapping[str, object]) -> None:
        """The result of a stage: one `name  value` line each for people, one JSON line in a pipe."""
        if not self.terminal:
            return self._line({"summary": numbers})
        flattened = flat(numbers)
        width = max(map(len, flattened), default=0)
        for name, value in flattened.items():
            print(f"{name:<{width}}  {f'{value:.4g}' if isinstance(value, float) else value}", file=self.stream)

    def _save(self) -> None:
        if self.folder:
            self.folder.set_seconds(self.seconds)
            self.folder.set_counts({name: counts() for name, counts in self._counts.items()})
            self.folder.save()
            self._saved = time.monotonic()

    def _console(self) -> Console:
        return self._bar.console if self._bar is not None else Console(file=self.stream)

    def _line(self, row: Mapping[str, object]) -> None:
        self._spoke = time.monotonic()
        print(json.dumps(plain(row), ensure_ascii=False), file=self.stream, flush=True)
