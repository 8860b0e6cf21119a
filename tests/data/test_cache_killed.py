"""The frame tier under several processes: killed, interrupted, racing; never a half file, no film decoded in vain."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tests.data.films import numbers, render

from longtake.data import tierfile
from longtake.data.cache import FrameTier, Quarantine
from longtake.records import FramePolicy

FILL = """
import sys
from pathlib import Path
from longtake.data.cache import FrameTier, Quarantine
from longtake.records import FramePolicy
folder, films = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
tier = FrameTier(folder)
print("ready", flush=True)
tier.fill(dict.fromkeys(films, [FramePolicy(frames=64)]), lambda *_: (128, 128), 2, Quarantine(folder))
"""


def filling(folder: Path, films: Sequence[Path], start_new_session: bool = False) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, str(folder), *map(str, films)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=start_new_session)


def until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it went while its file was open
        return False


@pytest.mark.skipif(not Path("/proc").exists(), reason="children are found through /proc")
def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    films = [render(tmp_path / f"{k}.mp4", 200, first=200 * k) for k in range(10)]
    films += [tmp_path / f"copy {k}.mp4" for k in range(230)]  # enough that no kill comes too late
    for k, path in enumerate(films[10:]):
        path.write_bytes(films[0].read_bytes() + bytes([k]))
    folder = tmp_path / "tier"
    for files in (1, 3):  # kill when this many films more are done
        there = len(list(folder.glob("*.safetensors")))
        with filling(folder, films) as process:
            until(lambda most=there + files: len(list(folder.glob("*.safetensors"))) >= most)
            workers = children(process.pid)
            process.send_signal(signal.SIGKILL)
        until(lambda workers=workers: not any(map(alive, workers)))
        for file in folder.glob("*.safetensors"):
            assert tierfile.read(file) is not None
        assert len(workers) == 2
    assert len(list(folder.glob("*.safetensors"))) < len(films)
    with filling(folder, films) as process:
        assert process.wait() == 0
    tier = FrameTier(folder)
    policy = FramePolicy(frames=64)
    for k, path in enumerate(films):
        frames, receipt = tier.take(path, policy, lambda *_: (128, 128))
        assert numbers(frames) == [200 * (k if k < 10 else 0) + i for i in receipt.indices]
    assert len(tier.decodes()) == len(films)
    assert sum(tier.decodes().values()) <= len(films) + 2 * 2, (
        "a kill costs at most the film that each worker was writing"
    )
    assert tier.repairs() == 0
    assert not list(folder.glob("*.tmp"))


def test_two_processes_fill_one_tier_and_decode_each_film_once(tmp_path: Path) -> None:
    films = [render(tmp_path / f"{k}.mp4", 100, first=100 * k) for k in range(8)]
    folder = tmp_path / "tier"
    with filling(folder, films) as one, filling(folder, films) as two:
        assert (one.wait(), two.wait()) == (0, 0)
    tier = FrameTier(folder)
    assert list(tier.decodes().values()) == [1] * 8
    for k, path in enumerate(films):
        frames, receipt = tier.take(path, FramePolicy(frames=64), lambda *_: (128, 128))
        assert numbers(frames) == [100 * k + i for i in receipt.indices]


@pytest.mark.skipif(not Path("/proc").exists(), reason="children are found through /proc")
def test_ctrl_c_ends_the_workers_and_accuses_no_film(tmp_path: Path) -> None:
    before = set(children(os.getpid()))

    def interrupt(done: int, films: int) -> None:
        raise KeyboardInterrupt

    paths = [render(tmp_path / f"{k}.mp4", 32, first=k) for k in range(4)]
    wants = {path: [FramePolicy(frames=8)] for path in paths}
    quarantine, folder = Quarantine(tmp_path), tmp_path / "tier"
    with pytest.raises(KeyboardInterrupt):
        FrameTier(folder).fill(wants, lambda *_: (32, 32), 2, quarantine, interrupt)
    assert set(children(os.getpid())) <= before
    assert not quarantine.films()
    FrameTier(folder).fill(wants, lambda *_: (32, 32), 2, quarantine)


def test_ctrl_c_in_a_terminal_is_answered_once(tmp_path: Path) -> None:
    films = [render(tmp_path / f"{k}.mp4", 200) for k in range(2)]
    films += [tmp_path / f"copy {k}.mp4" for k in range(60)]
    for k, path in enumerate(films[2:]):
        path.write_bytes(films[0].read_bytes() + bytes([k]))
    folder = tmp_path / "tier"
    with filling(folder, films, start_new_session=True) as process:
        until(lambda: list(folder.glob("*.safetensors")))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        errors = process.stderr.read() if process.stderr else ""
    assert errors.count("Traceback") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert len(Quarantine(folder)) == 0
