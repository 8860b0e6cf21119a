"""Rollout cards: the frames a model really saw, the question, and its answers with rewards and advantages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from longtake.report import words
from longtake.report.files import Rollout, Run, Sample
from longtake.report.read import Problems, read_lines
from longtake.report.strips import Strip, Strips, shown_frames

STEPS = 6  # cards are drawn from so many steps, evenly spread
MAX_TEXT = 6000  # characters of one answer that are shown
ROW = 16  # frames in a row of the filmstrip
LONG = 600  # thinking longer than this is folded
THINK = re.compile(r"(?s)\A(.*</think>)(.*)\Z")
TIME = re.compile(  # 1:02:03 or 2:03.5, "3.5 s", "<3.5 seconds>", and the demo's "s3": some time in second 3
    r"(?<![\w.:])(?:(?:(?P<h>\d+):)?(?P<m>\d{1,2}):(?P<s>\d\d(?:\.\d+)?)"
    r"|(?P<plain>\d+(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?|s(?P<within>\d{1,4}))(?![\w:])"
)


@dataclass(frozen=True, slots=True)
class Bit:
    """A piece of answer text; `frame` is the frame a time in it points to."""

    text: str
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a strip: its place there (percent), its time, is it in the evidence, does it repeat the last?"""

    number: int  # among the frames seen
    place: float
    time: str
    evidence: bool
    padded: bool


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of the film, percent of its length. Example: Span(15, 5, "1.20–1.60 s")."""

    start: float
    width: float
    title: str


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

    anchor: str
    step: str  # stage and step, for the filter
    group: Rollout
    truth: str  # text of the right option, or the answer
    right: int
    frames: tuple[Frame, ...]  # of the strip; empty if it cannot be told which they are
    columns: int  # frames in a row on a wide screen
    ticks: tuple[float, ...]  # percent of the film, one a frame seen
    spans: tuple[Span, ...]
    length: str  # of the film as far as it is known
    strip: Strip | None
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


def bits(text: str, shown: Mapping[int, float]) -> tuple[Bit, ...]:
    """The text in pieces, each time in it tied to the nearest of the frames shown (number -> seconds)."""
    out: list[Bit] = []
    done = 0
    for found in TIME.finditer(text) if shown else ():
        part = found.groupdict()
        if part["within"]:
            at = int(part["within"]) + 0.5
        else:
            at = (
                float(part["plain"] or 0)
                + 3600 * int(part["h"] or 0)
                + 60 * int(part["m"] or 0)
                + float(part["s"] or 0)
            )
        if at <= max(shown.values()) + 1:
            nearest = min(shown, key=lambda i: (abs(shown[i] - at), i))
            out += [Bit(text[done : found.start()]), Bit(found.group(), nearest)]
            done = found.end()
    return tuple(bit for bit in (*out, Bit(text[done:])) if bit.text)


def card(run: Run, group: Rollout, place: int, strips: Strips) -> Card:
    """Everything one card draws."""
    receipt = group.receipt
    seconds = receipt.seconds if receipt else ()
    end = max([*seconds, *(stop for _, stop in group.evidence), 0.0]) or 1.0
    half = max((abs(answer.advantage or 0.0) for answer in group.answers), default=0.0) or 1.0
    strip = strips.get(run, group)
    letter = group.answer.strip().upper()
    index = ord(letter) - ord("A") if len(letter) == 1 else -1
    return Card(
        anchor=f"{re.sub(r'[^a-z0-9]+', '-', run.name.lower()) or 'run'}-{group.step}-{place}",
        step=f"{run.label} · step {group.step}" if len(run.steps) > 1 else run.label,
        group=group,
        truth=group.options[index] if 0 <= index < len(group.options) else group.answer,
        right=sum(answer.correct is True for answer in group.answers),
        frames=(frames := tuple(_frames(group, shown_frames(strip, receipt), end)) if strip and receipt else ()),
        columns=min(len(frames), ROW) if len(frames) <= 4 * ROW else 2 * ROW,
        ticks=tuple(100 * at / end for at in seconds),
        spans=tuple(
            Span(100 * a / end, max(0.6, 100 * (b - a) / end), f"{words.clock(a, end)}–{words.clock(b, end)} s")
            for a, b in group.evidence
        ),
        length=words.clock(end, end) + (" s" if end < 60 else ""),
        strip=strip,
        answers=tuple(_answer(answer, {f.number: seconds[f.number] for f in frames}, half) for answer in group.answers),
        health=state(group),
    )


def _frames(group: Rollout, shown: Sequence[int], end: float) -> Iterator[Frame]:
    assert group.receipt is not None
    seconds, padded = group.receipt.seconds, group.receipt.padded
    for place, i in enumerate(shown):
        inside = any(a <= seconds[i] <= b for a, b in group.evidence)
        at = 100 * place / max(1, len(shown) - 1)
        yield Frame(i, at, words.clock(seconds[i], end), inside, i >= len(seconds) - padded)


def _answer(sample: Sample, shown: Mapping[int, float], half: float) -> AnswerCard:
    found = THINK.match(sample.text[:MAX_TEXT])
    think, final = found.groups() if found else (sample.text[:MAX_TEXT], "")
    bar = None if sample.advantage is None else 100 * sample.advantage / half
    left_out = max(0, len(sample.text) - MAX_TEXT)
    return AnswerCard(bits(think, shown), bits(final, shown), len(think) > LONG, left_out, sample, bar)
