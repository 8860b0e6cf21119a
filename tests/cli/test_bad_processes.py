"""A command as a process: signals, closed streams, strange locales and folders. Exit codes, and words for people."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from longtake.cli.main import MOST_LINES

# a stage that trains for ever; its run folder is the first argument
SLOW = """
import sys, time, types
from pathlib import Path
from longtake.config import Settings
from longtake.log import Log, RunFolder
from longtake.cli.stages import Stage
from longtake.cli.main import main
class Config(Settings):
    out: Path
def run(config, log):
    log.open(RunFolder.open(config.out, "slow", {}))
    log.open(RunFolder.open(config.out / "part", "slow", {}))
    for step in range(1000):
        log.step(step, 1000, {"loss": 1.0})
        time.sleep(0.05)
stage = types.ModuleType("slow")
stage.Config, stage.run = Config, run
sys.modules["slow"] = stage
sys.exit(main(None, {"slow": Stage("slow", "for tests", trains=True)}))
"""


def slow(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SLOW, "slow", "--out", str(folder), *more]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    told = process.stderr if "--json" in more else process.stdout
    assert told is not None
    assert '"step": 0' in told.readline()
    return process


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_in_words(tmp_path: Path, number: int, code: int) -> None:
    with slow(tmp_path) as process:
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == code
    assert said == f"stopped; what was done is kept. To go on:\n  longtake slow --out {tmp_path}\n"
    for folder in (tmp_path, tmp_path / "part"):  # a demo and its stage
        assert json.loads((folder / "run.json").read_text())["status"] == "stopped: interrupted"


def test_a_signal_under_json_leaves_one_object(tmp_path: Path) -> None:
    with slow(tmp_path, "--json") as process:
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate()
    assert json.loads(out)["error"].startswith("stopped; what was done is kept.")


def test_a_run_that_nobody_reads_any_more_says_how_to_go_on(tmp_path: Path) -> None:
    with slow(tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "To go on:\n  longtake slow" in process.stderr.read()
    assert process.returncode == 141


def shell(command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A command in sh, `longtake` in it replaced by this Python's."""
    start = f'{sys.executable} -c "import sys; from longtake.cli.main import main; sys.exit(main())"'
    everything = {name: text for name, text in os.environ.items() if name not in ("LANG", "LC_ALL")} | environment
    command = command.replace("longtake", start)
    return subprocess.run(["sh", "-c", command], capture_output=True, text=True, env=everything, check=False)


def test_closed_streams_are_no_crash() -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&-"):
        ended = shell(f"longtake view /nowhere {closed}")
        assert (ended.returncode, "Traceback" in ended.stderr) == (1, False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_stdout_that_is_full_is_no_crash() -> None:
    ended = shell("longtake view /nowhere --json > /dev/full")
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (1, "no such run folder")


def test_any_locale_can_be_told_anything() -> None:
    ended = shell("longtake view '/nowhere/球'", PYTHONIOENCODING="ascii")
    assert (ended.returncode, "where: /nowhere/\\u7403" in ended.stderr) == (1, True)


def test_a_folder_that_was_deleted_under_one_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ended = shell(f"cd '{tmp_path}/gone' && rmdir ../gone && longtake doctor")
    assert ended.returncode == 1
    assert ended.stderr.startswith("the folder you are in was deleted")
    assert len(ended.stderr.splitlines()) <= MOST_LINES


RENDER = """
import sys
import time
from pathlib import Path
from longtake.sim.make import SPLITS, make_films
if __name__ == "__main__":
    def told(done, total):
        print(done, flush=True)
    make_films(Path(sys.argv[1]), 0, dict.fromkeys(SPLITS, 400), 1, told)
"""


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_that_render_end_with_a_killed_parent(tmp_path: Path) -> None:
    (tmp_path / "render.py").write_text(RENDER)
    words = [sys.executable, str(tmp_path / "render.py"), str(tmp_path / "films")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline() in ("", "0\n"):
            assert process.poll() is None
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.kill()
    assert children
    deadline = time.monotonic() + 120
    while any(alive(child) for child in children):
        assert time.monotonic() < deadline, "a process waits for a parent that is gone"
        time.sleep(0.05)


def alive(number: str) -> bool:
    """Neither gone nor a zombie that nobody has buried."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it went while its file was open
        return False
