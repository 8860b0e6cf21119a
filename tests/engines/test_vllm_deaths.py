"""The client of vLLM against a worker that does not start, dies, hangs and babbles; no vLLM here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
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

from longtake.engines import vllm_process
from longtake.engines.vllm import Place, VllmEngine
from longtake.engines.vllm_process import Process, last_words

LINES = 6  # of an error


def test_closing_ends_it_and_takes_its_files_away(started, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_process, "GRACE", 60.0)  # it ends by itself, however slow the machine is
    engine, _ = started()
    pid = int((tmp_path / "life").read_text())
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert log(tmp_path)[-1:] == [{"op": "bye"}]  # it was not killed
    assert [path.name for path in (tmp_path / "vllm").iterdir()] == ["engine.log"]


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("dies 2", "SIGKILL"),
        ("exits 2", "code 7: RuntimeError: out of memory"),
        ("babbles 2", "no message: b'Hello"),
        ("breaks 2", "it broke"),
        ("hangs 2", "said nothing for 0.6 s"),
    ],
)
def test_a_death_loses_nothing(started, prompts, tmp_path, monkeypatch, mode, why):
    want = started()[0].generate(prompts, draws(prompts), 3)
    (tmp_path / "life").unlink()
    (tmp_path / "vllm" / "engine.log").write_text("")
    engine, said = started(mode)
    if mode == "hangs 2":
        impatient(engine, monkeypatch, replies=2)
    assert engine.generate(prompts, draws(prompts), 3) == want
    assert engine.link.restarts == 1
    assert why in said[1]
    assert "2 of 4 questions" in said[1]
    again = [one["ids"] for one in log(tmp_path) if one["op"] == "ask" and one["number"] >= len(prompts)]
    assert again == [list(prompt.ids) for prompt in prompts[2:]]
    assert engine.generate(prompts, draws(prompts), 3) == want


def test_a_second_death_is_the_end(started, prompts, tmp_path):
    engine, _ = started("always 1")
    with refused("died twice", "engine.log", "SIGKILL", "--engine.kind local") as caught:
        engine.generate(prompts, draws(prompts), 3)
    assert len(str(caught.value).splitlines()) <= LINES
    assert not list((tmp_path / "vllm").glob("features-*"))


def test_signs_of_life_are_no_silence(started, prompts, monkeypatch):
    engine, _ = started("beats")
    waited, hear = [], Process.hear
    monkeypatch.setattr(Process, "hear", lambda self, seconds: (waited.append(seconds), hear(self, seconds))[1])
    assert len(engine.generate(prompts[:1], draws(prompts[:1]), 3)) == 1
    assert len(engine.generate(prompts[1:2], draws(prompts[1:2]), 3)) == 1
    assert engine.link.restarts == 0
    # the beats after the first answer come before the second: each gives it all the time again
    assert waited == [engine.link.patience] * (1 + 5 + 1)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("slow", ("said nothing for 0.4 s", "patience")),
        ("raises", ("code 1: ValueError: no room for kv", "--engine.memory")),
        ("nonsense", ("no message",)),
        ("fails", ("architectures", "does not know this network")),
    ],
)
def test_why_it_does_not_start(started, mode, words):
    with refused("vLLM does not start", "engine.log", *words) as caught:
        started(mode, patience=0.4 if mode == "slow" else 60.0)
    assert len(str(caught.value).splitlines()) <= LINES


def test_a_python_that_is_none(model, features, tmp_path):
    plain = tmp_path / "python"
    plain.write_text("#!")
    for python, why in ((tmp_path / "nowhere", "No such file"), (plain, "Permission denied")):
        with refused("no Python there", why, ".venv-vllm"):
            VllmEngine.open(model, Place(python, tmp_path), features, "v1")


def test_the_worker_of_a_rank_is_no_rank():
    code = """
import os, sys, types
from longtake.engines import vllm_worker
def llm(model, **options):
    raise ValueError(" ".join(name for name in os.environ if "RANK" in name or "MASTER" in name) or "no rank")
sys.modules["vllm"] = types.SimpleNamespace(LLM=llm, SamplingParams=None)
sys.argv = ["vllm_worker.py", "model", '{"max_model_len": 9}']
vllm_worker.main()
"""
    ranked = {"RANK": "1", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu", "ROLE_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env={**os.environ, **ranked}, stdin=pipe, stdout=pipe, stderr=pipe) as worker:
        said = json.loads(worker.stdout.readline())
    assert said == {"op": "failed", "kind": "ValueError", "why": "no rank"}


def test_a_python_without_vllm(model, features, tmp_path):
    """The real worker, under ours."""
    with refused("has no vLLM", "No module named 'vllm'", ".venv-vllm"):
        VllmEngine.open(model, Place(Path(sys.executable), tmp_path), features, "v1")
    assert [path.name for path in (tmp_path / "vllm").iterdir()] == ["engine.log"]


def test_a_death_while_it_takes_new_weights(started, model, prompts):
    engine, said = started("unloadable")
    engine.load(model, "v2")
    assert engine.link.restarts == 1
    assert "out of memory" in said[1]
    assert engine.generate(prompts[1:2], draws(prompts[1:2]), 3)[0].answers[0].weights == "v2"


def test_it_dies_with_whoever_started_it(tmp_path):
    code = f"""
import os
from pathlib import Path
from longtake.engines.vllm_process import Process, last_words
process = Process([{sys.executable!r}, {str(FAKE)!r}, "plain", {str(tmp_path / "life")!r}, "w", "{{}}"],
                  Path({str(tmp_path / "engine.log")!r}))
assert process.hear(60)["op"] == "ready"
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    pid = int((tmp_path / "life").read_text())
    end = time.monotonic() + 60
    while alive(pid):
        assert time.monotonic() < end, "it lives on"
        time.sleep(0.1)


def test_the_last_words_of_a_log(tmp_path):
    """The error, not what was printed after it, without what vLLM puts before every line."""
    (tmp_path / "log").write_text(
        "(MainProcess pid=7) INFO 11-22 23:38:41 [core.py:133] starting\n"
        "[rank0]: Traceback (most recent call last):\n"
        "[rank0]:   raise RuntimeError('x')\n"
        "[rank0]: RuntimeError: no attention for these heads\n"
        "(MainProcess pid=7) WARNING 11-22 23:38:42 [core.py:9] leaked\n\n"
    )
    assert last_words(tmp_path / "log") == "RuntimeError: no attention for these heads"
    (tmp_path / "log").write_text("(MainProcess pid=7) INFO 11-22 23:38:41 [core.py:133] starting\n")
    assert last_words(tmp_path / "log") == "starting"
    (tmp_path / "log").write_text("")
    assert last_words(tmp_path / "log") == ""


def alive(pid):
    """A process that nobody waited for is a zombie: dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the second: it went while its file was open
        return False
