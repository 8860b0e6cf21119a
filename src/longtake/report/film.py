"""What a model saw of a film, ready to draw: the frames of a strip with their times, and marks on its axis."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from longtake.records import Receipt
from longtake.report import words
from longtake.report.files import Run
from longtake.report.strips import Strip, Strips, shown_frames

ROW = 16  # frames in a row of the filmstrip
TIME = re.compile(  # 1:02:03 or 2:03.5, "3.5 s", "<3.5 seconds>", and the demo's "s3": some time in second 3
    r"(?<![\w.:])(?:(?:(?P<h>\d+):)?(?P<m>\d{1,2}):(?P<s>\d\d(?:\.\d+)?)"
    r"|(?P<plain>\d+(?:\.\d+)?) ?s(?:ec(?:ond)?s?)?|s(?P<within>\d{1,4}))(?![\w:])"
)


@dataclass(frozen=True, slots=True)
class Bit:
    """A piece of text; `frame` is the frame a time in it points to."""

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
class Film:
    """The film of a card."""

    anchor: str
    receipt: Receipt | None
    strip: Strip | None
    frames: tuple[Frame, ...]  # of the strip; empty if it cannot be told which they are
    columns: int  # frames in a row on a wide screen
    ticks: tuple[float, ...]  # percent of the film, one a frame seen
    spans: tuple[Span, ...]
    length: str  # of the film as far as it is known

    def bits(self, text: str) -> tuple[Bit, ...]:
        """The text in pieces, times in it tied to the frames shown."""
        seconds = self.receipt.seconds if self.receipt else ()
        return bits(text, {frame.number: seconds[frame.number] for frame in self.frames})


def anchored(run: Run, *parts: object) -> str:
    """An id for the page. Example: anchored(run, 25, 3) -> "grpo-25-3"."""
    name = re.sub(r"[^a-z0-9]+", "-", run.name.lower()) or "run"
    return "-".join(map(str, (name, *parts)))


def film(
    run: Run,
    anchor: str,
    receipt: Receipt | None,
    strip: str | None,
    evidence: Sequence[tuple[float, float]],
    strips: Strips,
) -> Film:
    """What `receipt` says was seen, with the strip (a path in the run folder) as far as the page holds it."""
    seconds = receipt.seconds if receipt else ()
    end = max([*seconds, *(stop for _, stop in evidence), 0.0]) or 1.0
    held = strips.get(run, strip)
    frames = tuple(_frames(receipt, shown_frames(held, receipt), evidence, end)) if held and receipt else ()
    return Film(
        anchor,
        receipt,
        held,
        frames,
        columns=min(len(frames), ROW) if len(frames) <= 4 * ROW else 2 * ROW,
        ticks=tuple(100 * at / end for at in seconds),
        spans=tuple(
            Span(100 * a / end, max(0.6, 100 * (b - a) / end), f"{words.clock(a, end)}–{words.clock(b, end)} s")
            for a, b in evidence
        ),
        length=words.clock(end, end) + (" s" if end < 60 else ""),
    )


def _frames(
    receipt: Receipt, shown: Sequence[int], evidence: Sequence[tuple[float, float]], end: float
) -> Iterator[Frame]:
    seconds = receipt.seconds
    for place, i in enumerate(shown):
        inside = any(a <= seconds[i] <= b for a, b in evidence)
        at = 100 * place / max(1, len(shown) - 1)
        yield Frame(i, at, words.clock(seconds[i], end), inside, i >= len(seconds) - receipt.padded)


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
