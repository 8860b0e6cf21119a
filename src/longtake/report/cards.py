"""Rollout cards: the frames a model really saw, the question, and its answers with rewards and advantages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from longtake.report.files import Rollout, Run, Sample
from longtake.report.film import Bit, Film, anchored, film
from longtake.report.read import Problems, read_lines
from longtake.report.strips import Strips

STEPS = 6  # cards are drawn from so many steps, evenly spread
MAX_TEXT = 6000  # characters of one answer that are shown
LONG = 600  # thinking longer than this is folded
THINK = re.compile(r"(?s)\A(.*</think>)(.*)\Z")


@dataclass(frozen=True, slots=True)
class AnswerCard:
    """One answer: thinking and verdict apart, advantage as a bar from the middle (percent of half the width)."""

    think: tuple[Bit, ...]
    final: tuple[Bit, ...]
    folded: bool  # thinking is long
    cut: int  # characters left out
    sample: Sample
    bar: float | None  # -100 … 100


@dataclass(frozen=True, slots=True)
class Card:
    """One group, ready to draw."""

    step: str  # stage and step, for the filter
    group: Rollout
    truth: str  # text of the right option, or the answer
    right: int
    film: Film
    answers: tuple[AnswerCard, ...]
    health: str  # "right" | "mixed" | "wrong" | "" where some answers could not be checked


def chosen(run: Run, most: int, problems: Problems) -> tuple[Rollout, ...]:
    """About `most` groups for cards, from steps evenly spread, the first and the last among them."""
    last = len(run.steps) - 1
    places = sorted({round(i * last / (STEPS - 1)) for i in range(STEPS)}) if run.steps else []
    picked: list[Rollout] = []
    for path in (run.steps[place] for place in places):
        named = f"{run.name}/rollouts/{path.name}".lstrip("/")
        picked += pick(list(read_lines(path, Rollout, named, problems)), -(-most // len(places)))
    return tuple(picked)


def state(group: Rollout) -> str:
    """Are a group's answers all right, all wrong or mixed? "" where some could not be checked."""
    marks = {answer.correct for answer in group.answers}
    return "" if None in marks else "mixed" if len(marks) > 1 else "right" if True in marks else "wrong"


def pick(groups: Sequence[Rollout], most: int) -> list[Rollout]:
    """Groups worth a look, as different as possible: mixed before all wrong before all right, kinds in turn."""
    order = ("mixed", "wrong", "right", "")
    seen: dict[tuple[str, str], int] = {}
    ranked = []
    for group in sorted((g for g in groups if g.answers), key=lambda g: (g.strip is None, g.id)):
        key = (state(group), group.kind)
        seen[key] = seen.get(key, 0) + 1
        ranked.append((seen[key], order.index(key[0]), group.kind, group.id, group))
    return [row[-1] for row in sorted(ranked, key=lambda row: row[:-1])[:most]]


def card(run: Run, group: Rollout, place: int, strips: Strips) -> Card:
    """Everything one card draws."""
    half = max((abs(answer.advantage or 0.0) for answer in group.answers), default=0.0) or 1.0
    anchor = anchored(run, group.step, place)
    seen = film(run, anchor, group.receipt, group.strip, group.evidence, strips)
    return Card(
        step=f"{run.label} · step {group.step}" if len(run.steps) > 1 else run.label,
        group=group,
        truth=truth(group.options, group.answer),
        right=sum(answer.correct is True for answer in group.answers),
        film=seen,
        answers=tuple(_answer(answer, seen, half) for answer in group.answers),
        health=state(group),
    )


def truth(options: Sequence[str], answer: str) -> str:
    """The text of the right option, or the answer itself. Example: truth(("left", "right"), "B") -> "right"."""
    letter = answer.strip().upper()
    index = ord(letter) - ord("A") if len(letter) == 1 else -1
    return options[index] if 0 <= index < len(options) else answer


def spoken(text: str) -> tuple[str, str, int]:
    """(thinking, verdict, characters left out) of an answer."""
    found = THINK.match(text[:MAX_TEXT])
    think, final = found.groups() if found else (text[:MAX_TEXT], "")
    return think, final, max(0, len(text) - MAX_TEXT)


def _answer(sample: Sample, seen: Film, half: float) -> AnswerCard:
    think, final, left_out = spoken(sample.text)
    bar = None if sample.advantage is None else 100 * sample.advantage / half
    return AnswerCard(seen.bits(think), seen.bits(final), len(think) > LONG, left_out, sample, bar)
