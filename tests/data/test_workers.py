"""Decoding processes: one that a film kills takes nothing with it; a bug in one is not a bad film."""

from pathlib import Path

import pytest

from longtake.data import workers
from longtake.data.workers import complete_in_processes
from longtake.records import FramePolicy

STANDIN = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from longtake.data.workers import serve
def complete(path, policies, fit):
    assert fit(4, 2, len(policies), None) == (8, 4), "fit is answered by the parent"
    if "evil" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "buggy" in path:
        raise KeyError("bug")
    if "quits" in path:
        sys.exit(3)
serve(complete)
"""


def run(folder: Path, names: list[str], count: int = 1) -> dict[str, str]:
    wants = {Path(name): [FramePolicy(seconds=(1.0,))] for name in names}
    done = complete_in_processes(folder, wants, lambda w, h, n, m: (2 * w, 2 * h * n), count)
    return {str(path): str(error) if error else "" for path, error in done}


@pytest.fixture(autouse=True)
def _standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_START", STANDIN)


def test_a_film_that_kills_its_process_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    outcome = run(tmp_path, ["a", "evil", "b", "evil too", "c"])
    assert list(outcome) == ["a", "evil", "b", "evil too", "c"]
    assert [name for name, error in outcome.items() if error] == ["evil", "evil too"]
    assert "SIGSEGV" in outcome["evil"]


def test_several_share_the_films(tmp_path: Path) -> None:
    assert set(run(tmp_path, [str(k) for k in range(7)], count=3)) == {str(k) for k in range(7)}


def test_a_bug_is_raised_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="KeyError: 'bug'"):
        run(tmp_path, ["a", "buggy", "b"])


def test_a_process_that_just_ends_is_a_bug_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="ended with 3"):
        run(tmp_path, ["quits"])


def test_an_error_in_fit_is_the_caller_s(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        list(complete_in_processes(tmp_path, {Path("a"): [FramePolicy(frames=1)]}, lambda *_: 1 / 0, 1))
