"""One process at a time in a run folder, and never one too few: a lock goes with its holder, however that ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.log import RunFolder
from longtake.log.lock import hold

HOLDER = "import sys, time; from pathlib import Path; from longtake.log.lock import hold\n"
HOLDER += "hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that is at work in the folder."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_folder_at_work_is_refused_with_who_has_it(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        for fresh in (False, True):
            with pytest.raises(UserError, match=rf"another run is at work(?s:.*)process {other.pid} on "):
                RunFolder.open(tmp_path, "sft", {}, fresh=fresh)
        assert {path.name for path in tmp_path.iterdir()} == {".lock"}


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as other:
        other.send_signal(signal.SIGKILL)
        other.wait()
        RunFolder.open(tmp_path, "sft", {})


def test_a_process_may_open_its_own_folder_again(tmp_path: Path) -> None:
    for _ in range(3):
        RunFolder.open(tmp_path, "sft", {})


def test_a_folder_moved_aside_or_deleted_is_locked_anew(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    RunFolder.open(folder, "sft", {})
    RunFolder.open(folder, "sft", {}, fresh=True)  # moves the first aside, lock and all
    with holder(tmp_path / "run.old-1"):
        pass
    check = "import sys; from pathlib import Path; from longtake.log.lock import hold; hold(Path(sys.argv[1]))"
    said = subprocess.run([sys.executable, "-c", check, str(folder)], capture_output=True, text=True, check=False)
    assert "another run is at work" in said.stderr
    (folder / ".lock").unlink()
    with holder(folder), pytest.raises(UserError, match="another run is at work"):
        hold(folder)
