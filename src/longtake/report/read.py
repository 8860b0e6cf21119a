"""From files of a run folder to records; whatever cannot be read becomes a sentence, never an exception."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from longtake.errors import UserError
from longtake.report.files import SUMMARIES, Curve, EvalFile, Run, RunFile

T = TypeVar("T")


@dataclass(slots=True)
class Problems:
    """Sentences about what could not be read, in the order met."""

    said: list[str] = field(default_factory=list)

    def say(self, sentence: str) -> None:
        if sentence not in self.said:
            self.said.append(sentence)


def _why(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    return f"{place}: {first['msg']}" if place else first["msg"]


def read_json(path: Path, kind: type[T], named: str, problems: Problems) -> T | None:
    """The record in a JSON file; None if there is no such file, or none that can be read (then said)."""
    if not path.is_file():
        return None
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except ValidationError as error:
        problems.say(f"{named} could not be read: {_why(error)}.")
    except OSError as error:
        problems.say(f"{named} could not be read: {error.strerror}.")
    return None


def read_lines(path: Path, kind: type[T], named: str, problems: Problems) -> Iterator[T]:
    """Records of a JSONL file; lines that cannot be read are skipped, counted and said once a file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        problems.say(f"{named} could not be read: {error.strerror}.")
        return
    adapter, bad = TypeAdapter(kind), list[str]()
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            yield adapter.validate_json(line)
        except ValidationError as error:
            half = place == len(lines) and not line.endswith(b"\n")
            bad.append(f"line {place} is half written" if half else f"line {place}: {_why(error)}")
    if bad:
        problems.say(f"{named}: {len(bad)} of {len(lines)} lines skipped ({bad[0]}).")


@dataclass(frozen=True, slots=True)
class _Step:
    step: int
    seconds: dict[str, float] = field(default_factory=dict)


def _metrics(path: Path, named: str, problems: Problems) -> tuple[tuple[Curve, ...], tuple[Curve, ...]]:
    """Curves by metric and by phase. A step written twice (a run that was resumed) counts as last written."""
    adapter = TypeAdapter(_Step)
    numbers: dict[str, dict[int, float]] = {}
    phases: dict[str, dict[int, float]] = {}
    for row in read_lines(path, dict[str, Any], named, problems) if path.is_file() else ():
        try:
            at = adapter.validate_python(row)
        except ValidationError as error:
            problems.say(f"{named}: a line was skipped ({_why(error)}).")
            continue
        for name, value in row.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                numbers.setdefault(name, {})[at.step] = float(value)
        for name, value in at.seconds.items():
            phases.setdefault(name, {})[at.step] = value

    def curves(table: dict[str, dict[int, float]]) -> tuple[Curve, ...]:
        return tuple(Curve(name, tuple(sorted(values.items()))) for name, values in table.items())

    return curves(numbers), curves(phases)


def read_run(folder: Path, name: str, problems: Problems) -> Run | None:
    """The run in `folder`, None if its run.json cannot be read."""
    prefix = f"{name}/" if name else ""
    file = read_json(folder / "run.json", RunFile, prefix + "run.json", problems)
    if file is None:
        return None
    curves, phases = _metrics(folder / "metrics.jsonl", prefix + "metrics.jsonl", problems)
    steps = sorted(path for path in (folder / "rollouts").glob("*.jsonl") if path.stem.isdigit())
    evals = read_json(folder / "eval.json", EvalFile, prefix + "eval.json", problems)
    found = folder / "summary.json"
    kind = SUMMARIES.get(file.stage)
    summary = read_json(found, kind, prefix + found.name, problems) if kind else None
    return Run(name, folder, file, curves, phases, tuple(steps), evals, summary)


def read_folder(folder: Path, problems: Problems) -> tuple[Run, ...]:
    """Every run in `folder` and two levels below, in the order they were started.

    Raises UserError if there is none: the folder is not a run folder.
    """
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder), fix="name a run folder, e.g. out/demo")
    found = [path.parent for pattern in ("run.json", "*/run.json", "*/*/run.json") for path in folder.glob(pattern)]
    names = sorted("" if path == folder else path.relative_to(folder).as_posix() for path in found)
    runs = [run for name in names if (run := read_run(folder / name, name, problems))]
    if not runs:
        why = problems.said[0] if problems.said else "it holds no run.json, nor does a folder below it"
        raise UserError(
            "not a run folder", where=str(folder), why=why, fix="name a folder that a stage wrote, e.g. out/demo"
        )
    return tuple(sorted(runs, key=lambda run: (run.file.started, run.name)))
