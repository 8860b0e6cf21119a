"""Commands under torchrun: what is said, by whom, and how a run ends in which a rank fails, dies or is slow."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtake.cli import environment
from longtake.cli.main import MOST_LINES, main
from longtake.cli.stages import STAGES
from longtake.log import read_json, read_jsonl

# a stage for several ranks; --how says what befalls which of them in its second step
SCRIPT = """
import os, signal, sys, time, types
from pathlib import Path
from longtake.cli.main import main
from longtake.cli.stages import Stage
from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import begin, finish
class Config(Settings):
    out: Path
    how: str = "well"
    rank: int = -1
told = []
def telling(say):
    def noted(self):
        place = self.log.place
        state = say(self)
        told.append(place)
        return state
    return noted
def befall(how):
    while ("rollout", "question cups-1") not in told: time.sleep(0.01)
    if how == "user": raise UserError("no film", where="a.mp4", why="moov", fix="copy it again")
    if how == "crash": raise RuntimeError("shapes differ")
    if how == "kill": os.kill(os.getpid(), signal.SIGKILL)
    if how == "freeze": os.kill(os.getpid(), signal.SIGSTOP)
    if how == "slow": time.sleep(8)
def run(config, log):
    from longtake.parallel import watch
    from longtake.parallel.ranks import here
    if config.how == "slow": watch.LONG = 3.0
    watch.Watch._say = telling(watch.Watch._say)
    if known := begin(log, "tiny", config, config.out, fresh=False, reads=[], makes=["summary.json"]):
        return known
    if config.how == "same": raise UserError("bad rows", where="rows.jsonl:3", fix="mend it")
    print("a library speaks")
    print(f"a library warns on {log.rank}", file=sys.stderr)
    for step in range(3):
        with log.phase("rollout"):
            log.at(f"question cups-{step}")
            if step == 1 and log.rank == config.rank: befall(config.how)
            here().wait()
        log.step(step + 1, 3, {"loss": 1.0})
        if config.how == "long": time.sleep(60 * log.leads); here().wait()
    return finish(log, {"steps": 3, "sum": sum(here().gather(log.rank + 1))})
stage = types.ModuleType("tiny")
stage.Config, stage.run = Config, run
sys.modules["tiny"] = stage
sys.exit(main(None, {"tiny": Stage("tiny", "for tests", trains=True, shared=True)}))
"""
AGAIN = "run the same command again to go on"
LIMIT = 300  # seconds for a run to end, on a machine that does much else


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.py"
    path.write_text(SCRIPT)
    return path


def torchrun(script: Path, *words: str, ranks: int = 2) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), str(script), "tiny"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*start, *words], stdout=pipe, stderr=pipe, text=True, cwd=script.parent)


def run(script: Path, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, what our ranks said on stderr) of a run in out/."""
    with torchrun(script, "--out", "out", *words) as process:
        out, err = process.communicate(timeout=LIMIT)
    return process.returncode, out, own(err)


def own(err: str) -> str:
    """Without what torchrun says: a note on threads, its log, a traceback with a table of exit codes."""
    said = re.sub(r"(?s)\n?\*{9,}\nSetting OMP_NUM_THREADS.*?\*{9,}\n", "", err)
    said = re.sub(r"(?m)^[WE]\d{4} .*torch/distributed/elastic.*\n", "", said)
    return re.sub(r"(?s)Traceback \(most recent call last\):\n  File \"<frozen runpy>\".*", "", said)


def status(script: Path) -> str:
    return read_json(script.parent / "out" / "run.json")["status"]


def text_of(script: Path, rank: int) -> str:
    return (script.parent / "out" / "ranks" / f"{rank}.log").read_text()


def test_two_ranks_are_told_as_one(script: Path) -> None:
    code, out, err = run(script, "--json")
    assert code == 0, err
    first, said = out.splitlines()
    assert (first, json.loads(said)) == ("a library speaks", {"steps": 3, "sum": 3})
    assert [json.loads(line)["step"] for line in err.splitlines() if line.startswith("{")] == [1, 2, 3]
    assert "a library warns on 0" in err
    assert "a library warns on 1" not in err
    assert "a library warns on 1" in text_of(script, 1)
    folder = script.parent / "out"
    assert len(read_jsonl(folder / "metrics.jsonl")) == 3
    assert read_json(folder / "run.json")["machine"]["ranks"] == 2
    assert (status(script), read_json(folder / "summary.json")["sum"]) == ("done", 3)


@pytest.mark.slow
def test_the_failure_of_one_rank_is_told_by_the_first(script: Path) -> None:
    code, out, err = run(script, "--how", "user", "--rank", "1", "--json")
    assert code == 1
    assert err.splitlines()[-5:] == [
        "rank 1 failed in phase rollout, at question cups-1: no film",
        "  where: a.mp4",
        "  why: moov",
        "  do: copy it again",
        "  its log: out/ranks/1.log",
    ]
    assert json.loads(out.splitlines()[-1])["error"].startswith("rank 1 failed")
    assert "Traceback" in text_of(script, 1)
    assert status(script) == "failed: rank 1 failed in phase rollout, at question cups-1: no film"


def test_a_killed_rank_is_named(script: Path) -> None:
    code, _, err = run(script, "--how", "kill", "--rank", "1")
    assert code == 1
    where = "rank 1 died in phase rollout, at question cups-1; its log: out/ranks/1.log"
    assert err.splitlines()[-1] == f"{where}; {AGAIN}"
    assert err.count("died") == 1
    assert "stopped" not in err
    assert status(script).startswith("failed: rank 1 died")


@pytest.mark.slow
def test_what_every_rank_meets_is_told_as_on_one(script: Path) -> None:
    code, _, err = run(script, "--how", "same")
    assert (code, err) == (1, "bad rows\n  where: rows.jsonl:3\n  do: mend it\n")
    assert status(script) == "failed: bad rows"


@pytest.mark.slow
def test_settings_that_are_wrong_are_told_once(script: Path) -> None:
    with torchrun(script, "--outt", "out") as process:
        _, err = process.communicate(timeout=LIMIT)
    assert own(err) == "--outt: unknown option — did you mean '--out'?\n"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_leaves_its_traceback_in_the_log_of_its_rank(script: Path, rank: int) -> None:
    code, _, err = run(script, "--how", "crash", "--rank", str(rank))
    assert code == 1
    assert err.splitlines()[-2:] == [
        f"rank {rank} failed in phase rollout, at question cups-1: RuntimeError: shapes differ",
        f"  where: out/ranks/{rank}.log holds the whole traceback",
    ]
    assert 'raise RuntimeError("shapes differ")' in text_of(script, rank)


@pytest.mark.slow
def test_where_the_first_rank_is_killed_the_next_says_so(script: Path) -> None:
    code, out, err = run(script, "--how", "kill", "--rank", "0", "--json")
    where = "rank 0 died in phase rollout, at question cups-1; its log: out/ranks/0.log"
    assert code == 1
    assert err.splitlines()[-1] == f"{where}; {AGAIN}"
    assert json.loads(out.splitlines()[-1]) == {"error": f"{where}; {AGAIN}"}


@pytest.mark.slow
def test_a_rank_that_is_silent_is_given_up_within_half_a_minute(script: Path) -> None:
    with torchrun(script, "--out", "out", "--how", "freeze", "--rank", "1") as process:
        await_step(script)
        begun = time.monotonic()
        while "has not been heard of" not in text_of(script, 0):
            assert time.monotonic() - begun < 30
            time.sleep(0.2)
        _, err = process.communicate(timeout=LIMIT)  # torchrun gives the frozen rank another half
    where = "s in phase rollout, at question cups-1; its log: out/ranks/1.log"
    assert re.search(rf"(?m)^rank 1 has not been heard of for 2\d {where}; {AGAIN}$", own(err))


@pytest.mark.slow
def test_a_slow_rank_is_waited_for_and_named(script: Path) -> None:
    code, out, _ = run(script, "--how", "slow", "--rank", "1")
    assert code == 0
    said = {"note": "rank 0 has waited 3 s for rank 1 in phase rollout, at question cups-1: alive, but slow"}
    assert [row for row in map(json.loads, out.splitlines()[1:]) if "note" in row] == [said]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_torchrun_is_told_once(script: Path, number: int) -> None:
    with torchrun(script, "--out", "out", "--how", "long") as process:
        await_step(script)
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT)
    again = "torchrun --nproc-per-node 2 -m longtake.cli.main tiny --out out --how long"
    assert own(err).splitlines()[1:] == ["stopped; what was done is kept. To go on:", f"  {again}"]
    assert status(script) == "stopped: interrupted"


@pytest.mark.slow
def test_ranks_end_with_a_torchrun_that_was_killed(script: Path) -> None:
    with torchrun(script, "--out", "out", "--how", "long") as process:
        await_step(script)
        process.kill()
        _, err = process.communicate(timeout=LIMIT)  # until the last of them has closed it
    assert err.count("torchrun is gone") == 1


def await_step(script: Path) -> None:
    deadline = time.monotonic() + LIMIT
    while not (script.parent / "out" / "metrics.jsonl").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def as_rank(rank: int, *words: str) -> subprocess.CompletedProcess[str]:
    """A command that never meets the others."""
    told = os.environ | {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    start = [sys.executable, "-m", "longtake.cli.main", *words]
    return subprocess.run(start, env=told, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["sft", "--help"], ["sft", "r.jsonl", "--model", "m", "--dry-run"]])
def test_what_only_tells_is_told_by_the_first_rank(words: list[str]) -> None:
    first, other = as_rank(0, *words), as_rank(1, *words)
    assert (first.returncode, other.returncode) == (0, 0)
    assert len(first.stdout.splitlines()) > 5
    assert (other.stdout, other.stderr) == ("", "")


@pytest.mark.parametrize("words", [["parity", "r.jsonl", "--model", "m"], ["doctor"], ["view", "x"]])
def test_what_ranks_cannot_share_is_refused_by_the_first(words: list[str]) -> None:
    first, other = as_rank(0, *words), as_rank(1, *words)
    assert (first.returncode, other.returncode) == (1, 1)
    assert first.stderr.splitlines() == [
        f"longtake {words[0]} runs on one rank",
        "  why: torchrun started 2 ranks",
        f"  do: longtake {words[0]} …, without torchrun",
    ]
    assert len(first.stderr.splitlines()) <= MOST_LINES
    assert (other.stdout, other.stderr) == ("", "")


def test_an_unknown_stage_is_said_once() -> None:
    assert [as_rank(rank, "gpro").stderr for rank in (0, 1)] == ["gpro: unknown stage — did you mean 'grpo'?\n", ""]


def test_who_is_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, text)
    assert environment.launched() == (3, 4, 2)
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert environment.launched() == (3, 4, 4)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert environment.launched() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.delenv("RANK")
    assert environment.launched() is None


def test_one_rank_is_no_rank(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert main(["view", "/nowhere"]) == 1
    assert capsys.readouterr().err.startswith("no such run folder")


def test_what_is_shared_trains() -> None:
    shared = {name for name, stage in STAGES.items() if stage.shared}
    assert shared >= {"difficulty", "sft", "grpo", "judge", "reward", "dpo", "ppo"}
    assert all(STAGES[name].trains for name in shared)
