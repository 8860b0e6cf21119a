"""Breaks of how several ranks run as one command, and of how the end of one is told by another. See mutants_table."""

from __future__ import annotations

from tests.mutants_table import breaks

SEAT, LAUNCH, WATCH = "log/test_seat.py", "cli/test_launch.py", "parallel/test_watch.py"
TESTS = {
    "cli/environment.py": ("cli/test_ranks.py::test_who_is_launched", "cli/test_ranks.py::test_one_rank_is_no_rank"),
    "cli/launch.py": (LAUNCH,),
    "log/log.py": (SEAT,),
    "log/run.py": (SEAT,),
    "log/seat.py": (SEAT,),
    "parallel/verdict.py": ("parallel/test_verdict.py",),
    "parallel/watch.py": (WATCH,),
}

VERDICT = breaks(
    "parallel/verdict.py",
    ("LOST if sure else SILENT if beat", "SILENT if beat", "the dead are found late"),
    ("LOST if sure else SILENT if beat", "LOST if beat", "a busy rank is dead"),
    ("LOST if sure else SILENT if beat else JOINING", "LOST if sure else SILENT", "who starts late is dead"),
    ("beat.state in (STOPPED, CUT_OFF) for", "beat.state == STOPPED for", "a broken connection is no sign of death"),
    ("if rank not in self.ended and self.silent", "if self.silent", "who has ended is dead"),
    ("not in (RUNS, DONE) for", "not in (RUNS, DONE, CUT_OFF) for", "a broken connection is no trouble"),
    ("bool(self.lost) or any(", "any(", "a silent rank is no trouble"),
    ("if r not in lost and not (beat and beat.state == DONE)", "if r not in lost", "who has gone home speaks"),
    ("if r not in lost and not", "if not", "the dead speak"),
    ("if every or since > GRACE else None", "", "a failure does not wait for those who meet the same"),
    ("if every or since > GRACE else None", "if every else None", "a failure waits for who is stuck"),
    ("failed[0] if seen.first is None else seen.first", "failed[0]", "the lowest failure for the first"),
    ("if every or since > LOST + GRACE:", "if every or since > GRACE:", "a signal is told before a death is seen"),
    ("if every or since > LOST + GRACE:", "if every:", "a broken connection waits for ever"),
    ("for state in (STOPPED, CUT_OFF) for beat in beats", "for state in (CUT_OFF, STOPPED) for beat in beats", "order"),
    ("other.state == FAILED and _what(other) == _what(beat)", "other.state == FAILED", "any two failures are one"),
    ("other.state == FAILED and _what(other) ==", "_what(other) ==", "a broken connection is the same failure"),
    ("if place not in seen.lost and other", "if other", "the dead have not met it"),
    ('text.partition("\\n")[0]', "text", "two logs make two failures"),
    (".splitlines()[:LINES]\n    log", ".splitlines()\n    log", "a failure of many lines"),
    ("if beat.log and beat.log not in beat.text else []", "", "its log twice, or of nowhere"),
    ("if seen.silent[rank] < SILENT else", "if True else", "frozen is dead"),
)

WATCHED = breaks(
    "parallel/watch.py",
    ("self._end_of or self._signal or (RUNS", "self._end_of or (RUNS", "a signal to a rank that is stuck"),
    ("self._end_of or self._signal or (RUNS", "self._signal or (RUNS", "an end that nobody hears of"),
    ("aloud=told == str(self.rank).encode()", "aloud=True", "told by every rank"),
    ("while self.rank != speaker and not", "while False and not", "who comes first speaks"),
    ("if beat != self._beats[rank]:", "if True:", "nobody is ever silent"),
    ("if beat != self._beats[rank]:", "if beat and not self._beats[rank]:", "heard of once"),
    ("if frame is None or moves != self.log.moves:", "if True:", "nobody ever waits"),
    ("if frame is None or moves != self.log.moves:", "if moves != self.log.moves:", "who works waits"),
    ("beat.waits > LONG]", "beat.waits > 0]", "said at once"),
    ("self.rank or self._said or not", "self.rank or not", "said at every beat"),
    ("(slow or len(waiting) == self.size)", "slow", "a deadlock is not said"),
    ("if not beat.waits and beat.state == RUNS]", "if beat.waits]", "who waits is slow"),
    ("self.log.moved = self._nudge", "", "the place of a second ago"),
    ("os.register_at_fork(", "(lambda **_: None)(", "a child's signals end the parent"),
    ("self._say()  # of a new place", "pass  # of a new place", "a new place is not told"),
    ("except dist.DistError as error:", "except KeyError as error:", "the store is gone"),
    ('"/gloo/" in str(link)', '"/gloo/" not in str(link)', "what gloo says"),
    ("link = link.__cause__ or link.__context__", "link = None", "what is behind an error"),
    ("KeyboardInterrupt | BrokenPipeError", "KeyboardInterrupt", "a reader that went away"),
    ("            os._exit(code)\n", "            os._exit(0)\n", "all is well"),
)

SEATS = breaks(
    "log/seat.py",
    ("if self.leads:\n            try:", "if True:\n            try:", "every rank works"),
    ("except UserError as error:", "except KeyError as error:", "an error that one rank alone meets"),
    ("if wrong is not None:", "if False:", "an error is a result"),
    ("return self.rank == 0", "return True", "every rank leads"),
    ('self.own.open("a", encoding', 'self.own.open("w", encoding', "only the last line is kept"),
    ("self.place = phase, row", "self.place = phase, self.place[1]", "no rows"),
    ("        self.moved()\n", "", "nobody hears of a place"),
    ('self.own.open("a").close()', "pass", "a text that cannot be written"),
)

LOG = breaks(
    "log/log.py",
    ("self.stream = spoken if self.leads else Nowhere()", "self.stream = spoken", "every rank speaks"),
    ("self._move(name, self.place[1])", "self._move(name, '')", "an inner phase forgets the row"),
    (
        '        self._move(*(self._stack[-1][0], self.place[1]) if self._stack else (f"after phase {name}", ""))\n',
        "",
        "a phase that is over goes on",
    ),
)

RUN = breaks(
    "log/run.py",
    ("    return log.first(written)", "    return written() if log.leads else summary", "each rank its own result"),
    ("ranks=log.ranks", "ranks=1", "one rank in run.json"),
    ("        log.keep(out)", "        pass", "no text of its own"),
)

LAUNCHED = breaks(
    "cli/launch.py",
    ("if self.rank == 0:\n", "if True:\n", "every rank tells"),
    ("if self.launched.near < self.size:", "if False:", "the other machines"),
    ("rank=self.rank, ranks=self.size)", ")", "a log that does not know its rank"),
    ("        if self.rank:\n", "        if True:\n", "nobody speaks"),
    ("for to, stream in enumerate(self._voice, start=1):", "for to, stream in ():", "spoken to nobody"),
    ("os.dup2(file.fileno(), 2)", "pass", "what libraries say"),
)

ENVIRONMENT = breaks(
    "cli/environment.py",
    ('if "RANK" in os.environ', 'if "RANK" not in os.environ', "a world without a rank"),
    ("if size > 1 else None", "if size else None", "one rank is several"),
    ('os.environ.get("LOCAL_WORLD_SIZE", size)', "size", "one machine"),
)

MUTANTS = VERDICT + WATCHED + SEATS + LOG + RUN + LAUNCHED + ENVIRONMENT
