"""A worker that waits elsewhere: reached, lost, busy, of another version; the fake stands for vLLM."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.engines.cases import DRAWS, LONGEST, PYTHON, Case
from tests.engines.fakes import (  # noqa: F401
    FAKE,
    draws,
    features_fixture,
    impatient,
    log,
    model_fixture,
    prompts_fixture,
    refused,
    started_fixture,
)

from longtake.engines import vllm_listen, vllm_reach
from longtake.engines.vllm import Place, VllmEngine
from longtake.engines.vllm_reach import worker_at

WORDS = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("vllm_listen", {file!r})
listen = importlib.util.module_from_spec(spec)
spec.loader.exec_module(listen)
listen.WORKER, listen.GRACE, listen.TURN = Path({worker!r}), {grace}, {turn}
sys.argv = ["vllm_listen.py", "127.0.0.1:0"]
listen.main()
"""
SHIM = """
import runpy, sys
sys.argv[1:1] = [{mode!r}, {life!r}]
runpy.run_path({fake!r}, run_name="__main__")
"""


@pytest.fixture
def listening(tmp_path, monkeypatch):
    """Waits with a fake in some mode: gives its URL."""
    made = []

    def listen(mode="plain", grace=60.0, turn=60.0):
        worker = tmp_path / "worker.py"
        worker.write_text(SHIM.format(mode=mode, life=str(tmp_path / "life"), fake=str(FAKE)))
        monkeypatch.setattr(vllm_reach, "WORKER", worker)
        command = [
            sys.executable,
            "-c",
            WORDS.format(file=vllm_listen.__file__, worker=str(worker), grace=grace, turn=turn),
        ]
        made.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return made[-1], made[-1].stdout.readline().split()[-1]

    yield listen
    for one in made:
        with one:
            one.terminate()


def test_it_answers_as_one_beside_us_does(started, listening, model, prompts, tmp_path):
    want = started()[0].generate(prompts, draws(prompts), 3)
    (tmp_path / "vllm" / "engine.log").unlink()
    server, url = listening()
    for _ in range(2):  # one run after the other
        engine, said = started(begin=worker_at(url))
        assert said == ["vLLM 0 answers on cpu"]
        pid = int((tmp_path / "life").read_text())
        assert engine.generate(prompts, draws(prompts), 3) == want
        engine.load(model, "v2")
        assert engine.generate(prompts, draws(prompts), 3)[0].answers[0].weights == "v2"
        assert [one["op"] for one in log(tmp_path) if one["op"] in ("features", "load")].count("load") == 1
        engine.close()
        gone(pid)
        (tmp_path / "vllm" / "engine.log").unlink()
    server.terminate()
    assert server.stdout.readline().strip() == f"127.0.0.1: {tmp_path / 'vllm' / 'engine.log'}"


@pytest.mark.parametrize(("mode", "why"), [
    ("dies 2", "it was ended by SIGKILL"), ("hangs 2", "said nothing for 0.6 s"),
    ("exits 2", "it ended with code 7: RuntimeError: out of memory"),
])  # fmt: skip
def test_a_death_loses_nothing(started, listening, prompts, tmp_path, monkeypatch, mode, why):
    want = started()[0].generate(prompts, draws(prompts), 3)
    (tmp_path / "life").unlink()
    engine, said = started(begin=worker_at(listening(mode)[1]))
    if mode == "hangs 2":
        impatient(engine, monkeypatch, replies=2)
    assert engine.generate(prompts, draws(prompts), 3) == want
    assert engine.link.restarts == 1
    assert why in said[1]


def test_a_worker_that_is_stopped_is_ended_with_its_run(started, listening, prompts, tmp_path):
    engine, _ = started(begin=worker_at(listening(grace=1.0)[1]))
    pid = int((tmp_path / "life").read_text())
    os.kill(pid, signal.SIGSTOP)
    engine.close()
    gone(pid)


def test_it_is_ended_with_whoever_waited(started, listening, prompts, tmp_path):
    server, url = listening("always 1")
    engine, said = started(begin=worker_at(url))
    pid = int((tmp_path / "life").read_text())
    server.terminate()
    gone(pid)
    server.wait(60)
    with refused("no worker of vLLM listens there", url, "refused", "vllm_listen.py HOST:PORT"):
        engine.generate(prompts, draws(prompts), 3)
    assert "it hung up" in said[1]


def test_a_port_that_cannot_be(started):
    with refused("no worker of vLLM listens there", "tcp://gpu:99999", "out of range"):
        started(begin=worker_at("tcp://gpu:99999"))


def test_one_run_at_a_time(started, listening, prompts):
    _, url = listening(turn=1.0)
    first, _ = started(begin=worker_at(url))
    with refused("does not start", "it answers another run", "at another port"):
        started(begin=worker_at(url))
    assert len(first.generate(prompts, draws(prompts), 3)) == len(prompts)


def test_a_listener_of_another_version_and_a_folder_that_is_not_there(started, listening, monkeypatch, tmp_path):
    _, url = listening()
    begin = worker_at(url)
    with refused("does not start", "there is no .*elsewhere on its machine", "under the same name"):
        started(begin=lambda shelf, options, log: begin(shelf / "elsewhere", options, log))
    with refused("does not start", "Is a directory"):
        started(begin=lambda shelf, options, log: begin(shelf, options, shelf))
    monkeypatch.setattr(vllm_reach, "WORKER", FAKE)
    with refused("does not start", "another version", "of this longtake"):
        started(begin=begin)


def test_somebody_else_is_told(listening):
    _, url = listening()
    host, port = url.removeprefix("tcp://").split(":")
    for line in (b"GET / HTTP/1.1\n", b"[1]\n", b"{}\n"):
        with socket.create_connection((host, int(port)), timeout=20) as link:
            link.sendall(line)
            assert json.loads(link.makefile().readline())["why"] == "it waits for a run of longtake"


def test_the_real_worker_under_a_python_without_vllm(model, features, tmp_path):
    command = [sys.executable, "-u", vllm_listen.__file__, "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().split()[-1]
        with refused("has no vLLM", "No module named 'vllm'"):
            VllmEngine.open(model, Place(url, tmp_path), features, "v1")
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


@pytest.mark.engines
def test_vllm_itself_answers_the_same(tmp_path):
    case = Case("qwen3_vl", tmp_path)
    with VllmEngine.open(case.model, Place(PYTHON, tmp_path, memory=1.0), case.features, "v1") as engine:
        want = engine.generate(case.prompts[:2], DRAWS[:2], LONGEST)
    command = [PYTHON, vllm_listen.__file__, "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        place = Place(server.stdout.readline().split()[-1], tmp_path, memory=1.0)
        with VllmEngine.open(case.model, place, case.features, "v1") as engine:
            assert engine.generate(case.prompts[:2], DRAWS[:2], LONGEST) == want
        server.terminate()


@pytest.mark.parametrize(("given", "words"), [("7000", "usage"), (":x", "usage"), ("192.0.2.1:7", "cannot wait")])
def test_what_it_is_told_is_looked_at(given, words):
    command = [sys.executable, vllm_listen.__file__, given]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ran.returncode == 1
    assert words in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def gone(pid):
    """Waits until it is."""
    end = time.monotonic() + 60
    with suppress(FileNotFoundError, ProcessLookupError):  # the second: it went while its file was open
        while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            assert time.monotonic() < end, "it lives on"
            time.sleep(0.1)
