"""One command as several processes: `torchrun --nproc-per-node 2 -m longtake.cli.main sft rows.jsonl`.

The first rank speaks and owns the run folder; the others are silent, and what libraries say in them goes to their logs,
<out>/ranks/<rank>.log. However a run ends, one rank tells it once: the first failure, or who died and where
(parallel.watch). What torchrun prints around that, a table of exit codes, is torchrun's, and so is its --log-dir.
"""

from __future__ import annotations

import os
import shlex
import signal
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.cli.environment import Launched
from longtake.cli.stages import Stage
from longtake.errors import UserError
from longtake.log import Log

if TYPE_CHECKING:
    from longtake.parallel.watch import Watch

Tell = Callable[[str, int], object]


class QuietLog(Log):
    """The log of a rank that is silent: what libraries say on stderr goes into its text."""

    def keep(self, out: Path) -> None:
        """Also takes stderr."""
        super().keep(out)
        if self.own is not None:
            with self.own.open("a") as file:
                os.dup2(file.fileno(), 2)


class Team:
    """The ranks of this command, this process among them; or this process alone.

    Example: team = Team(environment.launched(), tell); team.join("sft", stage, words, log); …; team.leave().
    """

    def __init__(self, launched: Launched | None, tell: Tell) -> None:
        self.launched, self._tell = launched, tell
        self.rank, self.size = (launched.rank, launched.size) if launched else (0, 1)
        self.log: Log | None = None
        self._watch: Watch | None = None
        self._voice: list[int] = []  # stdout and stderr of a rank that is silent, should it have to speak

    def hush(self) -> None:
        """A rank but the first prints nothing."""
        if self.rank:
            self._voice = [os.dup(1), os.dup(2)]
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def new_log(self, *, json_output: bool) -> Log:
        """The log of this command."""
        kind = QuietLog if self.rank else Log
        self.log = kind(json_output=json_output, rank=self.rank, ranks=self.size)
        return self.log

    def join(self, name: str, stage: Stage, log: Log, stopped: str) -> None:
        """Meets the other ranks; `stopped` is what a signal makes them say. Raises UserError for what is not shared."""
        if self.launched is None:
            return
        if not stage.shared:
            why, fix = f"torchrun started {self.size} ranks", f"longtake {name} …, without torchrun"
            raise UserError(f"longtake {name} runs on one rank", why=why, fix=fix)
        from longtake.parallel import ranks, watch

        store = ranks.meet()
        self._watch = watch.Watch(store, self.rank, self.size, log, self._speak, stopped)
        self._watch.start()
        ranks.join(store, self.rank, self.size)
        log.agree = ranks.here().first

    def leave(self) -> None:
        """The end of what `join` began, where all went well."""
        if self._watch is not None:
            from longtake.parallel import ranks

            self._watch.done()
            ranks.leave()

    def end(self, error: BaseException, text: str, code: int) -> int:
        """Tells that it ended in this error, on one rank; alone, and before the ranks have met, it returns the code."""
        if self._watch is None:
            if self.rank == 0:
                self._tell(text, code)
            return code
        from longtake.parallel.watch import SIGNALS, ending

        for number in SIGNALS:  # torchrun sends one when another rank has ended
            signal.signal(number, signal.SIG_IGN)
        assert self.log is not None
        self.log.write("".join(traceback.format_exception(error)).rstrip())
        self._watch.end(ending(error), text, code)

    def ended(self, status: str) -> None:
        """Alone: what the run folder says. Of several ranks the one that tells the end says this too."""
        if self._watch is None and self.log is not None:
            self.log.ended(status)

    def again(self, words: Sequence[str]) -> str:
        """The command that goes on."""
        if self.launched is None:
            return shlex.join(["longtake", *words])
        more = f"torchrun --nproc-per-node {self.launched.near}"
        if self.launched.near < self.size:
            more += f" --nnodes {self.size // self.launched.near} …"
        return f"{more} -m longtake.cli.main {shlex.join(words)}"

    def _speak(self, text: str, code: int) -> None:
        """From the watch's thread, while the main thread may be stuck."""
        assert self.log is not None
        self.log.clear()
        for to, stream in enumerate(self._voice, start=1):
            os.dup2(stream, to)
        self._tell(text, code)
        self.log.ended("stopped: interrupted" if code in (130, 141, 143) else f"failed: {text.splitlines()[0]}")
