"""What is told of a run of several ranks that ended badly, and when it is early for that."""

import io
import json

import pytest
import torch.distributed as dist

from longtake.log import Log
from longtake.parallel.verdict import (
    CUT_OFF,
    DONE,
    FAILED,
    GRACE,
    JOINING,
    LINES,
    LOST,
    RUNS,
    SILENT,
    STOPPED,
    Beat,
    Seen,
    verdict,
)
from longtake.parallel.watch import Watch

AGAIN = "; run the same command again to go on"
ROLLOUT = {"phase": "rollout", "row": "question cups-7"}
NOW, LATER = 0.0, GRACE + 0.1


def failed(text="no film\n  where: a.mp4", code=1, **how):
    return Beat(5, FAILED, text, code, **how)


def seen(*beats, silent=None, first=None):
    return Seen(beats, silent or [0.0] * len(beats), first)


def test_nothing_is_wrong_while_all_run_or_are_done() -> None:
    assert not seen(Beat(3), Beat(1, DONE), None, silent=[SILENT - 1, 1e9, JOINING - 1]).trouble


@pytest.mark.parametrize("state", [STOPPED, FAILED, CUT_OFF])
def test_any_other_state_is_trouble(state) -> None:
    assert seen(Beat(3), Beat(3, state)).trouble


def test_a_failure_waits_for_ranks_that_may_meet_the_same() -> None:
    found = seen(Beat(3), failed(), first=1)
    assert verdict(found, GRACE - 0.1) is None
    assert verdict(found, LATER) == ("rank 1 failed: no film\n  where: a.mp4", 1)
    assert verdict(seen(Beat(3, CUT_OFF, "closed", 1), failed(), first=1), NOW) is not None


def test_the_first_failure_is_told_with_its_place_and_log() -> None:
    other = failed("shapes differ", log="out/ranks/0.log")
    text, code = verdict(seen(other, failed(**ROLLOUT, log="out/ranks/1.log", code=2), Beat(2, DONE), first=1), NOW)
    assert text.splitlines() == [
        "rank 1 failed in phase rollout, at question cups-7: no film",
        "  where: a.mp4",
        "  its log: out/ranks/1.log",
    ]
    assert code == 2


def test_a_failure_that_is_not_yet_called_the_first_is_no_less_one() -> None:
    assert verdict(seen(Beat(3, CUT_OFF, "closed", 1), failed(), failed("other")), NOW)[0].startswith("rank 1 failed")


def test_two_failures_are_not_one() -> None:
    assert verdict(seen(failed("bad rows"), failed("no film"), first=1), NOW) == ("rank 1 failed: no film", 1)


def test_what_every_rank_met_is_told_as_of_one() -> None:
    first = failed("bad rows\n  where: ranks/1.log", 2)
    assert verdict(seen(failed("bad rows\n  where: ranks/0.log", 2), first, first=1), NOW) == (
        "bad rows\n  where: ranks/0.log",
        2,
    )
    text, _ = verdict(seen(Beat(3, CUT_OFF, "bad rows", 2), first, first=1), NOW)
    assert text.startswith("rank 1 failed: bad rows")


def test_what_every_rank_met_that_is_left() -> None:
    stopped = Beat(3, STOPPED, "stopped", 143)
    silent = [0.0, 0.0, SILENT + 1]
    assert verdict(seen(failed("bad"), failed("bad"), Beat(1), silent=silent, first=0), NOW) == ("bad", 1)
    assert verdict(seen(failed("bad"), failed("bad"), stopped, first=0), NOW)[0] == "rank 0 failed: bad"


def test_a_failure_takes_few_lines_and_its_log_once() -> None:
    long = "\n".join(f"line {number}" for number in range(20))
    text, _ = verdict(seen(Beat(3), failed(long, log="1.log"), first=1), LATER)
    assert text.splitlines()[LINES:] == ["  its log: 1.log"]
    text, _ = verdict(seen(Beat(3), failed("crash\n  where: 1.log holds it", log="1.log"), first=1), LATER)
    assert text.count("1.log") == 1


def test_a_rank_that_is_silent_is_dead() -> None:
    gone = Beat(9, **ROLLOUT, log="out/ranks/1.log")
    found = seen(Beat(3), gone, silent=[0.0, SILENT + 1])
    assert (found.lost, found.trouble, found.speaker) == ([1], True, 0)
    assert verdict(found, NOW) == (
        f"rank 1 has not been heard of for {SILENT + 1:.0f} s in phase rollout, at question cups-7; "
        f"its log: out/ranks/1.log{AGAIN}",
        1,
    )
    assert seen(Beat(3), gone, silent=[0.0, SILENT - 1]).lost == []


@pytest.mark.parametrize("sign", [STOPPED, CUT_OFF])
def test_where_there_are_signs_of_death_a_shorter_silence_is_enough(sign) -> None:
    told = Beat(3, sign, "text", 143)
    assert verdict(seen(told, Beat(9, phase="rollout"), silent=[0.0, LOST + 1]), NOW) == (
        f"rank 1 died in phase rollout{AGAIN}",
        1,
    )
    between = Beat(9, phase="after phase update", row="step 4")
    assert verdict(seen(told, between, silent=[0.0, LOST + 1]), NOW)[0].startswith("rank 1 died after phase update, at")
    assert seen(told, Beat(9), silent=[0.0, LOST - 1]).lost == []


def test_who_slept_gives_the_others_their_time_again() -> None:
    """Or the end of one would be told before the rank that caused it is known to be dead."""
    store, told = dist.HashStore(), []
    watched = Watch(store, 0, 2, Log(stream=io.StringIO(), ranks=2), None, "")
    watched._settle = lambda *given: told.append(given)
    store.set("beat/1", json.dumps(Beat(1, STOPPED, "its end", 143).plain()))
    watched._look()
    watched._looked -= 1000.0
    watched._trouble -= 1000.0
    watched._look()
    assert told == []
    watched._trouble -= 1000.0
    watched._look()
    assert told == [(0, "its end", 143)]


def test_who_has_come_to_an_end_is_not_silent() -> None:
    assert seen(failed(), Beat(9, DONE), Beat(9, STOPPED), silent=[1e9] * 3).lost == []


def test_a_rank_that_never_came() -> None:
    assert seen(Beat(3), None, silent=[0.0, JOINING - 1]).lost == []
    found = seen(Beat(3, CUT_OFF, "refused", 1), None, silent=[0.0, LOST + 1])
    assert verdict(found, NOW) == (f"rank 1 ended before it had met the others{AGAIN}", 1)


def test_a_signal_is_told_when_all_have_it_or_after_a_while() -> None:
    stopped = Beat(3, STOPPED, "stopped; to go on", 143)
    assert verdict(seen(stopped, stopped), NOW) == ("stopped; to go on", 143)
    assert verdict(seen(stopped, Beat(3)), LOST + GRACE - 0.1) is None  # the other may have died: hence the signal
    assert verdict(seen(Beat(3), stopped), LOST + LATER) == ("stopped; to go on", 143)


def test_a_broken_connection_is_told_only_when_nobody_has_a_better_reason() -> None:
    cut = Beat(3, CUT_OFF, "connection closed", 1)
    assert verdict(seen(cut, cut), NOW) == ("connection closed", 1)
    assert verdict(seen(Beat(3), cut), LATER) is None
    assert verdict(seen(Beat(3), cut), LOST + LATER) == ("connection closed", 1)
    assert verdict(seen(cut, Beat(3, STOPPED, "stopped", 130)), NOW) == ("stopped", 130)
    assert verdict(seen(cut, failed("no film"), first=1), NOW)[0] == "rank 1 failed: no film"


def test_the_lowest_rank_that_is_there_speaks() -> None:
    assert seen(failed(), Beat(3)).speaker == 0
    assert seen(Beat(3), Beat(3), failed(), silent=[SILENT + 1, 0.0, 0.0]).speaker == 1
    assert seen(Beat(3, DONE), Beat(3, RUNS), failed()).speaker == 1
