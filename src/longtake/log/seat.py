"""One rank's part in what is told: the first owns the run folder and speaks; each keeps a text of its own.

That text, <out>/ranks/<rank>.log, says what happened when: phases, notes, steps, an error with its traceback.
"""

from __future__ import annotations

import io
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from longtake.errors import UserError
from longtake.log.files import ESCAPED, writing

T = TypeVar("T")


class Nowhere(io.StringIO):
    """Where a silent rank speaks to."""

    def write(self, text: str) -> int:
        """Nothing happens."""
        return len(text)


class Seat:
    """A place among `ranks` that run the same command. Example: Seat(1, 4); Seat() is alone."""

    def __init__(self, rank: int = 0, ranks: int = 1) -> None:
        self.rank, self.ranks = rank, ranks
        self.agree: Callable[[Any], Any] = lambda thing: thing  # what the first rank gave, on every rank
        self.own: Path | None = None  # this rank's text
        self.place = "", ""  # phase and row; after an exception, those that it came from
        self.moves = 0  # how often anything was told
        self.moved: Callable[[], None] = lambda: None  # called at every new place

    @property
    def leads(self) -> bool:
        """Whether this rank owns the run folder: it writes the files that all share."""
        return self.rank == 0

    def first(self, work: Callable[[], T]) -> T:
        """What `work` makes on the first rank, or the UserError it ends in, on every rank; the others do not work."""
        if self.ranks == 1:
            return work()
        found: tuple[T | None, UserError | None] = None, None
        if self.leads:
            try:
                found = work(), None
            except UserError as error:
                found = None, error
        thing, wrong = self.agree(found)
        if wrong is not None:
            raise wrong
        return thing

    def keep(self, out: Path) -> None:
        """Where there are several ranks, this one's text goes to out/ranks/<rank>.log from now on."""
        if self.ranks == 1:
            return
        self.own = out / "ranks" / f"{self.rank}.log"
        with writing(self.own):
            self.own.parent.mkdir(parents=True, exist_ok=True)
            self.own.open("a").close()
        self.write(f"rank {self.rank} of {self.ranks}, process {os.getpid()} on {platform.node()}")

    def write(self, text: str) -> None:
        """Into this rank's text, with the time of day. A disk that is full ends no run here."""
        self.moves += 1
        if self.own is not None:
            with suppress(OSError), self.own.open("a", encoding="utf-8", errors=ESCAPED) as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def at(self, row: str) -> None:
        """What is worked on until the phase is over, told if this rank is slow or dies: `log.at("question cups-7")`."""
        self._move(self.place[0], row)

    def _move(self, phase: str, row: str) -> None:
        self.moves += 1
        self.place = phase, row
        self.moved()
