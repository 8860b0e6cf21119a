"""Filmstrips as data URIs: each picture once in the page, up to a budget of bytes."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path

from longtake.records import Receipt
from longtake.report.files import Run
from longtake.report.read import Problems


@dataclass(frozen=True, slots=True)
class Strip:
    """A filmstrip in the page: `name` is the CSS class that has it as background; size in pixels."""

    name: str
    uri: str
    width: int
    height: int


class Strips:
    """The strips that the page holds; what is missing or does not fit is said."""

    def __init__(self, budget: int, problems: Problems) -> None:
        self.budget, self.problems = budget, problems
        self.held: dict[Path, Strip] = {}
        self.left_out = 0

    def get(self, run: Run, strip: str | None) -> Strip | None:
        """The strip at a path in the run folder; None if there is no path, it cannot be read (said), or the budget is
        spent (counted)."""
        if not strip:
            return None
        path = run.folder / strip
        if path in self.held:
            return self.held[path]
        named = f"{run.name}/{strip}".lstrip("/")
        if not path.resolve().is_relative_to(run.folder.resolve()) or not path.is_file():
            self.problems.say(f"The filmstrip {named} is not there.")
            return None
        data = path.read_bytes()
        size = jpeg_size(data)
        if size is None:
            self.problems.say(f"The filmstrip {named} is not a readable JPEG file.")
            return None
        text = base64.b64encode(data).decode()
        if len(text) > self.budget:
            self.left_out += 1
            return None
        self.budget -= len(text)
        self.held[path] = Strip(f"s{len(self.held)}", f"data:image/jpeg;base64,{text}", *size)
        return self.held[path]


def shown_frames(strip: Strip, receipt: Receipt) -> tuple[int, ...]:
    """Which of the frames seen a strip shows, by its width: all, or the centres of equal bins (as data/strip.py thins).

    () if the strip's shape fits neither.
    """
    seen = len(receipt.seconds)
    if not seen or receipt.height <= 0 or receipt.width <= 0:
        return ()
    one = max(1, round(strip.height * receipt.width / receipt.height))
    count, rest = divmod(strip.width, one)
    if rest or not 0 < count <= seen:
        return ()
    return tuple((2 * k + 1) * seen // (2 * count) for k in range(count))


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from a JPEG's frame header (ITU T.81, B.2.2), None if this is no JPEG."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height) if width and height else None
        at += 2 + size
    return None
