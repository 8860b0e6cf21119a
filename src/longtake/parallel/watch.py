"""A thread in every rank that knows how the others are, and ends this one when one of them has ended.

Every second it writes a beat into the store that torchrun keeps, which outlives any rank, and reads the others'. It
works while the rank is blocked in a collective call whose peer is gone; a rank that is only slow beats on. Signals
are read from a pipe, since Python's own handlers wait for the call to return.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from longtake.log import Log
from longtake.parallel.verdict import CUT_OFF, DONE, FAILED, GRACE, RUNS, SILENT, STOPPED, Beat, Seen, verdict

BEAT = 1.0  # seconds between two beats
ENDING = 0.1  # the same when the run is over
LONG = 180.0  # seconds in one collective call after which is said for whom
SIGNALS: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}  # exit codes
COLLECTIVE = ("torch.distributed", "longtake.parallel.axis")

End = tuple[str, str, int] | None  # state, text, exit code
Tell = Callable[[str, int], object]


def ending(error: BaseException) -> str:
    """The state of a rank that ends in this exception: by a signal, because another has gone, or by its own fault."""
    if isinstance(error, KeyboardInterrupt | BrokenPipeError):
        return STOPPED
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, dist.DistError) or (isinstance(link, RuntimeError) and "/gloo/" in str(link)):
            return CUT_OFF
        link = link.__cause__ or link.__context__
    return FAILED


class Watch:
    """One for a process. `tell(text, exit code)` says how it ended; it is called on one rank only.

    Example: watch = Watch(store, 1, 2, log, tell, "stopped"); watch.start(); …; watch.end(FAILED, "no film", 1).
    """

    def __init__(self, store: Store, rank: int, size: int, log: Log, tell: Tell, stopped: str) -> None:
        self.rank, self.size, self.log, self.tell, self.stopped = rank, size, log, tell, stopped
        self.store: Store = store.clone()  # type: ignore[attr-defined]  # one for each thread
        self.store.set_timeout(timedelta(seconds=SILENT))
        self._end_of: End = None  # of the main thread's work, set by it alone
        self._signal: End = None
        self._beats: list[Beat | None] = [None] * size
        self._heard = [time.monotonic()] * size
        self._looked = time.monotonic()
        self._number = 0
        self._trouble: float | None = None  # when it was noticed
        self._waits = self._looked, -1  # in one call since, after so many moves
        self._said = False
        self._woken, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """From the main thread, before anything that may wait for another rank."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))  # a child's signals are its own
        self.log.moved = self._nudge
        self._thread.start()

    def done(self) -> None:
        """This rank's work is done, and well."""
        signal.set_wakeup_fd(-1)
        self._end_of = DONE, "", 0
        self._nudge()
        self._thread.join()

    def end(self, state: str, text: str, code: int) -> NoReturn:
        """This rank's work has come to an end that is not good: the thread ends the process when all is known."""
        self._end_of = state, text, code
        self._nudge()
        self._thread.join()
        self._exit(text, code)  # the thread came to grief

    def _nudge(self) -> None:
        with suppress(BlockingIOError):  # full: it is awake anyway
            os.write(self._wake, b"\0")

    def _run(self) -> None:
        try:
            while not self._look():
                self._rest()
        except dist.DistError as error:
            self.log.write(f"lost touch with torchrun: {error}")
            told = "torchrun is gone, or the machine of rank 0; run the same command again to go on"
            nearest = dist.get_node_local_rank(fallback_rank=0) == 0
            self._exit(told, 1, aloud=nearest)  # nobody can be asked: once on each machine

    def _rest(self) -> None:
        """Until it is time to look around: after a while, at a signal, or when the main thread has ended."""
        until = time.monotonic() + (BEAT if self._trouble is None else ENDING)
        while select.select([self._woken], [], [], max(0.0, until - time.monotonic()))[0]:
            for number in SIGNALS.keys() & set(os.read(self._woken, 1000)):
                self._signal = STOPPED, self.stopped, SIGNALS[number]
            if self._end_of or self._signal:
                return
            self._say()  # of a new place at once, but not of every one of thousands
            time.sleep(ENDING)

    def _look(self) -> bool:
        """Beat, hear the others, and end the process if it is time; True if all is well and over."""
        now = time.monotonic()
        if now - self._looked > GRACE + BEAT:  # this process itself was asleep: nobody is to blame
            self._heard, self._trouble = [now] * self.size, self._trouble and now
        self._looked = now
        if self._say() == DONE:
            return True
        first = self._read("first")  # before the beats: whoever is named has said why
        here = [rank for rank, beat in enumerate(self._beats) if beat or self.store.check([f"beat/{rank}"])]
        for rank, found in zip(here, self.store.multi_get([f"beat/{rank}" for rank in here]), strict=True):
            beat = Beat(**json.loads(found))
            if beat != self._beats[rank]:
                self._beats[rank], self._heard[rank] = beat, now
        seen = Seen(self._beats, [now - heard for heard in self._heard], int(first) if first else None)
        self._trouble = (self._trouble or now) if seen.trouble else None
        if self._trouble is None:
            self._name_slow()
        elif told := verdict(seen, now - self._trouble):
            self._settle(seen.speaker, *told)
        return False

    def _say(self) -> str:
        """Beats; returns the state that it says."""
        self._number += 1
        state, text, code = self._end_of or self._signal or (RUNS, "", 0)
        log = str(self.log.own or "")
        beat = Beat(self._number, state, text, code, *self.log.place, self._waited(), log)
        self.store.set(f"beat/{self.rank}", json.dumps(beat.plain()))
        if state == FAILED:
            self.store.compare_set("first", "", str(self.rank))
        return state

    def _read(self, key: str) -> bytes:
        return self.store.get(key) if self.store.check([key]) else b""

    def _waited(self) -> float:
        """Seconds that the main thread has been in a collective call and told nothing."""
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None and not frame.f_globals.get("__name__", "").startswith(COLLECTIVE):
            frame = frame.f_back
        since, moves = self._waits
        if frame is None or moves != self.log.moves:
            self._waits = time.monotonic(), self.log.moves
            return 0.0
        return round(time.monotonic() - since, 1)

    def _name_slow(self) -> None:
        """Say once, on rank 0, for whom others wait."""
        beats = [(rank, beat) for rank, beat in enumerate(self._beats) if beat]
        waiting = [rank for rank, beat in beats if beat.waits > LONG]
        slow = [f"rank {rank}{beat.where()}" for rank, beat in beats if not beat.waits and beat.state == RUNS]
        if self.rank or self._said or not waiting or not (slow or len(waiting) == self.size):
            return
        self._said = True
        for_whom = (
            f"{' and '.join(slow[:3])}: alive, but slow" if slow else "one that waits as well: please report this"
        )
        self.log.aside(f"rank {waiting[0]} has waited {LONG:.0f} s for {for_whom}")

    def _settle(self, speaker: int, text: str, code: int) -> None:
        """The run is over: the speaker tells; another rank waits for that, or speaks if it does not come."""
        asked = time.monotonic()
        while self.rank != speaker and not self._read("told") and time.monotonic() - asked < GRACE:
            time.sleep(ENDING)
        told = self.store.compare_set("told", "", str(self.rank))
        self._exit(text, code, aloud=told == str(self.rank).encode())

    def _exit(self, text: str, code: int, *, aloud: bool = True) -> NoReturn:
        try:
            self.log.write(f"the end: {text}")
            if aloud:
                self.tell(text, code)
        finally:
            os._exit(code)
