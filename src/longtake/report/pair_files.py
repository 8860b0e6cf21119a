"""Pairs of answers on disk, one frozen record a line: as a judge judged them, as a reward model scored them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, TypeVar

from longtake.records import Receipt
from longtake.report.files import Run
from longtake.report.read import Problems, read_lines

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Clip:
    """A part of a narrative. Example: Clip("A red cup …", 0.0, 2.7)."""

    caption: str
    start: float | None = None  # seconds
    stop: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One of the two answers."""

    text: str
    tokens: int | None = None
    finish: str = ""
    correct: bool | None = None  # None = not known
    score: float | None = None  # the judge's, 1 to 5


@dataclass(frozen=True, slots=True)
class Ruling:
    """What a judge said once, of both answers in one order, or of one answer."""

    order: str = ""  # "AB" | "BA"; of a score "0" | "1", the answer
    said: str = ""  # "A" | "B" | "tie", or the score; "" if it could not be read
    text: str = ""
    error: str = ""
    finish: str = ""


@dataclass(frozen=True, slots=True)
class Judged:
    """One line of judged.jsonl: two answers to a question and what judging them came to."""

    id: str
    outcome: str
    answers: tuple[Answer, ...] = ()
    question: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    kind: str = ""
    evidence: tuple[tuple[float, float], ...] = ()
    narrative: tuple[Clip, ...] | None = None
    verdicts: tuple[Ruling, ...] = ()
    better: Literal[0, 1] | None = None  # where it was kept
    right: bool | None = None  # is the better one the right one? None where not exactly one is known to be right
    receipt: Receipt | None = None
    strip: str | None = None

    @property
    def worth(self) -> float | None:
        """1 judged rightly, 0 wrongly, a half where neither was kept; None where that cannot be said."""
        marks = {answer.correct for answer in self.answers}
        if self.outcome in ("same", "failed") or marks != {True, False}:
            return None
        return 0.5 if self.right is None else float(self.right)


@dataclass(frozen=True, slots=True)
class Scored:
    """One line of scores.jsonl: a held-out pair (TRL's keys and more) with the reward model's two scores."""

    id: str
    model_chosen: float
    model_rejected: float
    prompt: Any = ""
    chosen: Any = ""
    rejected: Any = ""
    source: str = ""
    kind: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    evidence: tuple[tuple[float, float], ...] = ()
    correct: tuple[bool | None, bool | None] = (None, None)
    score_chosen: float | None = None
    score_rejected: float | None = None
    tokens_chosen: int | None = None
    tokens_rejected: int | None = None
    narrative: tuple[Clip, ...] | None = None
    verdicts: tuple[Ruling, ...] = ()
    receipt: Receipt | None = None
    strip: str | None = None

    @property
    def lead(self) -> float:
        return self.model_chosen - self.model_rejected

    @property
    def lengths(self) -> tuple[int, int]:
        """Tokens of both answers, or words where tokens were not written down."""
        if self.tokens_chosen is not None and self.tokens_rejected is not None:
            return self.tokens_chosen, self.tokens_rejected
        return len(said(self.chosen).split()), len(said(self.rejected).split())


def said(messages: Any) -> str:
    """The text of the last message, or the text itself. Example: [{"role": "assistant", "content": "B"}] -> "B"."""
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        messages = messages[-1].get("content", "")
        if isinstance(messages, list):
            parts = [part.get("text", "") for part in messages if isinstance(part, dict)]
            messages = "\n".join(str(part) for part in parts if part)
    return messages if isinstance(messages, str) else ""


def judged(run: Run, problems: Problems) -> list[Judged]:
    """What a judge run judged; [] if it has not written it."""
    return list(_lines(run, "judged.jsonl", Judged, problems))


def scored(run: Run, problems: Problems) -> list[Scored]:
    """What a reward run scored; [] if it has not written it."""
    rows = list(_lines(run, "scores.jsonl", Scored, problems))
    sound = [row for row in rows if isfinite(row.model_chosen) and isfinite(row.model_rejected)]
    if len(sound) < len(rows):
        problems.say(
            f"{run.name}/scores.jsonl: {len(rows) - len(sound)} pairs have a score that is no number.".lstrip("/")
        )
    return sound


def _lines(run: Run, name: str, kind: type[T], problems: Problems) -> Iterator[T]:
    path = run.folder / name
    return read_lines(path, kind, f"{run.name}/{name}".lstrip("/"), problems) if path.is_file() else iter(())
