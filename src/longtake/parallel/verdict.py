"""How a run of several ranks ended, from what each of them last said: the first failure, told once.

Pure: what is known goes in, a sentence comes out. The thread that finds out is parallel.watch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

# how a rank is: at work; or at its end, which was good, a signal, an error of its own, or one that another's end made
RUNS, DONE, STOPPED, FAILED, CUT_OFF = "runs", "done", "stopped", "failed", "cut off"
SILENT = 20.0  # seconds without a beat after which a rank counts as dead
LOST = 6.0  # the same where torchrun has already ended the others, or a connection is broken
GRACE = 4.0  # seconds for other ranks to come to an end by themselves: they may have met the same error
JOINING = 600.0  # seconds for a first beat: on some machines Python takes long to start
LINES = 5  # of a failure's text


@dataclass(frozen=True, slots=True)
class Beat:
    """What a rank last said. Example: Beat(17, RUNS, phase="rollout", row="question cups-7")."""

    number: int = 0
    state: str = RUNS
    text: str = ""  # of its end
    code: int = 0  # exit code
    phase: str = ""
    row: str = ""
    waits: float = 0.0  # seconds that it has been in one collective call
    log: str = ""  # path of its text

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def where(self) -> str:
        """' in phase rollout, at question cups-7'; ' after phase rollout' between two; "" before any phase."""
        within = self.phase and not self.phase.startswith("after ")
        phase = f" in phase {self.phase}" if within else f" {self.phase}".rstrip()
        return phase + (f", at {self.row}" if self.row else "")


@dataclass(frozen=True, slots=True)
class Seen:
    """All that one rank knows. Example: Seen([Beat(9), None], [0.4, 12.0], None): rank 1 was never heard of."""

    beats: Sequence[Beat | None]
    silent: Sequence[float]  # seconds since each was last heard of
    first: int | None  # the rank that failed first

    @property
    def ended(self) -> list[int]:
        """Ranks that have come to an end and said how."""
        return [rank for rank, beat in enumerate(self.beats) if beat and beat.state != RUNS]

    @property
    def lost(self) -> list[int]:
        """Ranks that are gone without a word."""
        sure = any(beat and beat.state in (STOPPED, CUT_OFF) for beat in self.beats)
        limits = [LOST if sure else SILENT if beat else JOINING for beat in self.beats]
        return [rank for rank, limit in enumerate(limits) if rank not in self.ended and self.silent[rank] > limit]

    @property
    def trouble(self) -> bool:
        """Whether the run cannot end well any more."""
        return bool(self.lost) or any(beat and beat.state not in (RUNS, DONE) for beat in self.beats)

    @property
    def speaker(self) -> int:
        """The lowest rank that is still there."""
        lost = self.lost
        return next(r for r, beat in enumerate(self.beats) if r not in lost and not (beat and beat.state == DONE))


def verdict(seen: Seen, since: float) -> tuple[str, int] | None:
    """(what is told, exit code), `since` seconds after trouble was noticed; None while it is too early to tell."""
    beats, lost = seen.beats, seen.lost
    every = len(seen.ended) + len(lost) == len(beats)
    failed = [rank for rank, beat in enumerate(beats) if beat and beat.state == FAILED]
    if failed:
        first = failed[0] if seen.first is None else seen.first  # it may have had no time to say that it was first
        return _failed(seen, first) if every or since > GRACE else None
    if lost:
        return "\n".join([_gone(seen, rank) for rank in lost[:LINES]]), 1
    if every or since > LOST + GRACE:  # until then whoever is the cause may say so, or turn out to be dead
        found = [beat for state in (STOPPED, CUT_OFF) for beat in beats if beat and beat.state == state]
        return found[0].text, found[0].code
    return None


def _failed(seen: Seen, rank: int) -> tuple[str, int]:
    """The first failure; without the rank's name where every rank that is left met the same."""
    beat = seen.beats[rank]
    assert beat is not None
    others = [other for place, other in enumerate(seen.beats) if place not in seen.lost and other]
    if all(other.state == FAILED and _what(other) == _what(beat) for other in others):
        return others[0].text, others[0].code
    lines = beat.text.splitlines()[:LINES]
    log = [f"  its log: {beat.log}"] if beat.log and beat.log not in beat.text else []
    return "\n".join([f"rank {rank} failed{beat.where()}: {lines[0]}", *lines[1:], *log]), beat.code


def _what(beat: Beat) -> str:
    return beat.text.partition("\n")[0]


def _gone(seen: Seen, rank: int) -> str:
    beat = seen.beats[rank]
    again = "; run the same command again to go on"
    if beat is None:
        return f"rank {rank} ended before it had met the others{again}"
    how = "died" if seen.silent[rank] < SILENT else f"has not been heard of for {seen.silent[rank]:.0f} s"
    log = f"; its log: {beat.log}" if beat.log else ""
    return f"rank {rank} {how}{beat.where()}{log}{again}"
