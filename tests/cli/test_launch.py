"""One of several processes by itself: who speaks before the ranks have met, and the command that goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from longtake.cli.environment import Launched
from longtake.cli.launch import Team
from longtake.cli.stages import Stage
from longtake.errors import UserError

WORDS = ["sft", "my rows.jsonl"]


def team(launched: Launched | None) -> tuple[Team, list[tuple[str, int]]]:
    told: list[tuple[str, int]] = []
    return Team(launched, lambda text, code: told.append((text, code))), told


@pytest.mark.parametrize(("launched", "said"), [(None, 1), (Launched(0, 2, 2), 1), (Launched(1, 2, 2), 0)])
def test_before_they_have_met_the_first_tells(launched: Launched | None, said: int) -> None:
    one, told = team(launched)
    assert one.end(UserError("no film"), "no film", 2) == 2
    assert told == [("no film", 2)] * said


def test_the_command_that_goes_on() -> None:
    assert team(None)[0].again(WORDS) == "longtake sft 'my rows.jsonl'"
    start = "-m longtake.cli.main sft 'my rows.jsonl'"
    assert team(Launched(1, 2, 2))[0].again(WORDS) == f"torchrun --nproc-per-node 2 {start}"
    assert team(Launched(1, 16, 8))[0].again(WORDS) == f"torchrun --nproc-per-node 8 --nnodes 2 … {start}"


def test_alone_there_is_nobody_to_meet() -> None:
    one, _ = team(None)
    log = one.new_log(json_output=False)
    one.join("demo", Stage("x", "x", trains=True), log, "stopped")
    assert (log.rank, log.ranks, log.first(lambda: 3)) == (0, 1, 3)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_is_not_shared_is_refused_on_every_rank(rank: int) -> None:
    one, _ = team(Launched(rank, 2, 2))
    log = one.new_log(json_output=False)
    assert (log.rank, log.ranks) == (rank, 2)
    with pytest.raises(UserError, match="longtake demo runs on one rank"):
        one.join("demo", Stage("x", "x", trains=True), log, "stopped")


def test_a_rank_without_voice_prints_nothing_and_its_log_takes_what_libraries_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    first, other = team(Launched(0, 2, 2))[0], team(Launched(1, 2, 2))[0]
    first.hush()
    os.write(1, b"of the first\n")
    saved = os.dup(1), os.dup(2)
    try:
        other.hush()
        other.new_log(json_output=True).keep(tmp_path)
        os.write(1, b"a print\n")
        os.write(2, b"a warning\n")
    finally:
        for place, stream in enumerate(saved, start=1):
            os.dup2(stream, place)
    assert capfd.readouterr() == ("of the first\n", "")
    assert "a warning" in (tmp_path / "ranks" / "1.log").read_text()


def test_who_has_to_speak_gets_its_voice_back(capfd: pytest.CaptureFixture[str]) -> None:
    one = Team(Launched(1, 2, 2), lambda text, code: os.write(1, f"{text} {code}\n".encode()))
    one.hush()
    one.new_log(json_output=False)
    one._speak("rank 0 died", 1)
    assert capfd.readouterr().out == "rank 0 died 1\n"
