"""What a run tells: numbers on disk, seconds that add up, one line for who watches."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import pytest

from longtake.log import Log, RunFolder, read_json, read_jsonl


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that the test moves: clock[0] += 1."""
    now = [100.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    return now


def opened(path: Path, log: Log) -> RunFolder:
    folder = RunFolder.open(path, "sft", {})
    log.open(folder)
    return folder


def test_phases_add_up_to_the_wall(clock: list[float]) -> None:
    log = Log(stream=io.StringIO())
    with log.phase("rollout"):
        clock[0] += 1
        with log.phase("prefill"):
            clock[0] += 2
            with log.phase("prefill"):
                clock[0] += 4
        clock[0] += 8
    with contextlib.suppress(ZeroDivisionError), log.phase("update"):
        clock[0] += 16
        raise ZeroDivisionError
    assert log.seconds == {"rollout": 9.0, "prefill": 6.0, "update": 16.0}


def test_a_step_carries_the_seconds_since_the_last_one(clock: list[float], tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    folder = opened(tmp_path, log)
    for step in (1, 2):
        with log.phase("update"):
            clock[0] += step
        log.step(step, 2, {"loss": 0.5})
    with log.phase("save"):
        clock[0] += 8
    log.close()
    assert read_jsonl(tmp_path / "metrics.jsonl") == [
        {"step": 1, "loss": 0.5, "seconds": {"update": 1.0}},
        {"step": 2, "loss": 0.5, "seconds": {"update": 2.0}},
    ]
    assert read_json(tmp_path / "run.json")["seconds"] == {"update": 3.0, "save": 8.0}
    assert folder.status == "running"


def test_seconds_go_on_after_a_kill(clock: list[float], tmp_path: Path) -> None:
    first = Log(stream=io.StringIO())
    opened(tmp_path, first)
    with first.phase("update"):
        clock[0] += 4
    first.close()
    second = Log(stream=io.StringIO())
    opened(tmp_path, second)
    with second.phase("update"):
        clock[0] += 1
    second.step(1, 1, {})
    second.close()
    assert read_json(tmp_path / "run.json")["seconds"] == {"update": 5.0}
    assert read_jsonl(tmp_path / "metrics.jsonl")[0]["seconds"] == {"update": 1.0}


def test_steps_after_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    log.cut_after(0)  # no folder: nothing to cut
    opened(tmp_path, log)
    log.cut_after(0)
    for step in (1, 2, 3):
        log.step(step, 3, {"loss": step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    log.cut_after(2)
    log.step(3, 3, {"loss": 9})
    assert [(row["step"], row["loss"]) for row in read_jsonl(tmp_path / "metrics.jsonl")] == [(1, 1), (2, 2), (3, 9)]


def test_in_a_pipe_one_json_line_a_step() -> None:
    stream = io.StringIO()
    log = Log(stream=stream)
    log.step(1, 9, {"loss": float("nan"), "reward": 0.5})
    log.note("halved the rate")
    with log.progress("films", 2) as films:
        films.advance()
        films.advance()
    log.say("plain words")
    log.summary({"sampled": 0.5})
    *lines, words, summary = stream.getvalue().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"step": 1, "loss": None, "reward": 0.5, "seconds": {}, "total": 9},
        {"note": "halved the rate"},
        {"progress": "films", "done": 2, "total": 2},
    ]
    assert words == "plain words"
    assert json.loads(summary) == {"summary": {"sampled": 0.5}}


def test_on_a_terminal_one_line_with_the_telling_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    log = Log(stream=stream)
    log.step(3, 9, {"zebra": 1.0, "lr": 0.25, "loss": 0.125, "reward": 0.5})
    with log.progress("films", 2) as films:
        films.advance()
        log.note("a [note]")
    log.close()
    shown = stream.getvalue()
    assert "reward 0.5  loss 0.125  lr 0.25" in shown
    assert "zebra" not in shown
    assert "3/9" in shown
    assert "a [note]" in shown
    log.summary({"by_kind": {"goal": 0.123456}})
    assert "by_kind.goal  0.1235" in stream.getvalue()


def test_notes_are_kept_in_the_folder(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    opened(tmp_path, log)
    log.note("stopped early: greedy 0.81")
    assert read_json(tmp_path / "run.json")["notes"] == ["stopped early: greedy 0.81"]


def test_the_end_is_told_once(tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    folder = opened(tmp_path, log)
    log.ended("failed: x")
    assert read_json(tmp_path / "run.json")["status"] == "failed: x"
    folder.set_status("done")
    log.ended("failed: later")
    assert read_json(tmp_path / "run.json")["status"] == "done"


def test_another_folder_starts_its_own_seconds(clock: list[float], tmp_path: Path) -> None:
    log = Log(stream=io.StringIO())
    opened(tmp_path / "one", log)
    with log.phase("update"):
        clock[0] += 1
    opened(tmp_path / "two", log)
    log.close()
    assert read_json(tmp_path / "one" / "run.json")["seconds"] == {"update": 1.0}
    assert read_json(tmp_path / "two" / "run.json")["seconds"] == {}
