"""The client of vLLM against a worker that speaks its protocol and fails on demand; no vLLM here."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.models import tiny

from longtake.engines import vllm, vllm_link
from longtake.engines.vllm import Place, VllmEngine
from longtake.engines.vllm_link import Link
from longtake.errors import UserError
from longtake.records import Draw

FAKE = Path(__file__).with_name("fake_worker.py")
OPTIONS = {"dtype": "float32", "max_model_len": 300}
FILM = tiny.film(0, 4, 16, 8)
LINES = 6  # of an error


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        made = model.encode([FILM, FILM[::-1].copy()])
    return lambda handles: [made["ab".index(handle)] for handle in handles]


@pytest.fixture
def prompts(model):
    receipt = tiny.receipt(FILM)
    asked = [("a", "Which cup?"), (None, "2 + 2?"), ("a", "And now?"), ("b", "Who?")]
    return [model.prompt(tiny.ask(text, f"q{n}"), f and receipt, f) for n, (f, text) in enumerate(asked)]


@pytest.fixture
def started(model, features, tmp_path):
    """Starts a fake in some mode; all are closed in the end."""
    made = []

    def start(mode="plain", patience=20.0):
        said = []
        command = [sys.executable, str(FAKE), mode, str(tmp_path / "life")]
        engine = VllmEngine(model, Link(command, OPTIONS, tmp_path / "vllm", features, patience, said.append))
        made.append(engine)
        engine.load(model, "v1")
        return engine, said

    yield start
    for engine in made:
        engine.close()


def draws(prompts):
    return [[Draw(1.0, 10 * n + 3), Draw(0.0, 10 * n + 2)] for n, _ in enumerate(prompts)]


def log(tmp_path):
    """What the fake heard and did."""
    lines = (tmp_path / "vllm" / "engine.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def refused(*words):
    return pytest.raises(UserError, match="(?s)" + ".*".join(words))


def test_answers_come_in_order_with_their_seeds_and_version(started, model, prompts):
    engine, said = started("backwards 4")
    groups = engine.generate(prompts, draws(prompts), 3)
    assert [group.prompt for group in groups] == prompts
    assert [[a.seed for a in group.answers] for group in groups] == [[d.seed for d in own] for own in draws(prompts)]
    for group in groups:
        first, second = group.answers
        assert (first.finish, second.finish) == ("length", "stop")
        assert first.text == model.tokenizer.decode(first.ids)
        assert second.text == model.tokenizer.decode(second.ids[:-1])
        assert second.ids[-1] == model.end_ids[0]
        assert first.logprob == (-1.5,) * 3
        assert first.weights == "v1"
    assert said == ["vLLM 0 answers on cpu"]


def test_a_film_is_sent_once_and_forgotten_after_its_last_question(started, features, prompts, tmp_path):
    engine, _ = started()
    engine.generate(prompts, draws(prompts), 2)
    engine.positions(prompts[1])  # so that all before is heard
    ops = [(one["op"], one.get("handle")) for one in log(tmp_path) if one["op"] in ("features", "forget")]
    assert sorted(ops) == [("features", "a"), ("features", "b"), ("forget", "a"), ("forget", "b")]
    told = log(tmp_path)
    last = [one["number"] for one in told if one["op"] == "ask"][2]
    assert told.index({"op": "forget", "handle": "a"}) > told.index({"op": "replied", "number": last})
    sent = load_file(tmp_path / "last.safetensors")["features"]
    level_LNE = features(["b"])[0].level_LNE
    assert torch.equal(sent, torch.cat(list(level_LNE), -1).float())
    assert not list((tmp_path / "vllm").glob("features-*"))


def test_no_more_is_asked_at_once_than_there_is_room_for(started, prompts, tmp_path, monkeypatch):
    engine, _ = started()
    monkeypatch.setattr(vllm_link, "AHEAD", 10)
    engine.generate(prompts, draws(prompts), 2)
    assert [one["op"] for one in log(tmp_path) if one["op"] in ("ask", "replied")] == ["ask", "replied"] * 4


def test_what_is_asked(started, model, prompts, tmp_path):
    engine, _ = started()
    engine.generate(prompts[:2], draws(prompts[:2]), 5)
    film, text = [one for one in log(tmp_path) if one["op"] == "ask"]
    assert film["ids"] == list(prompts[0].ids)
    assert film["sent"] == list(model.sent(prompts[0]).ids)
    assert film["film"]["kind"] == "video"
    assert film["film"]["grid"] == [2, 2, 4]
    assert film["draws"] == [[1.0, 3], [0.0, 2]]
    assert film["stop"] == list(model.end_ids)
    assert film["max_tokens"] == 5
    assert text["film"] is None
    assert text["sent"] == text["ids"] == list(prompts[1].ids)


def test_scores_and_positions(started, prompts):
    engine, _ = started("backwards 3")
    assert engine.score(prompts[:2], [[(7, 8)], [(9,), (5, 6)]]) == [[[-7.0, -8.0]], [[-9.0], [-5.0, -6.0]]]
    assert engine.positions(prompts[1]).tolist() == [list(range(len(prompts[1].ids)))] * 3


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
def test_a_death_loses_nothing(started, prompts, tmp_path, mode, why):
    want = started()[0].generate(prompts, draws(prompts), 3)
    (tmp_path / "life").unlink()
    (tmp_path / "vllm" / "engine.log").write_text("")
    engine, said = started(mode, patience=0.6)
    assert engine.generate(prompts, draws(prompts), 3) == want
    assert engine.link.restarts == 1
    assert why in said[1]
    assert "2 of 4 questions" in said[1]
    heard = log(tmp_path)
    again = [one["ids"] for one in heard if one["op"] == "ask"][-2:]
    assert again == [list(prompt.ids) for prompt in prompts[2:]]
    assert engine.generate(prompts, draws(prompts), 3) == want


def test_a_second_death_is_the_end(started, prompts, tmp_path):
    engine, _ = started("always 1")
    with refused("died twice", "engine.log", "SIGKILL", "--engine.kind local") as caught:
        engine.generate(prompts, draws(prompts), 3)
    assert len(str(caught.value).splitlines()) <= LINES
    assert not list((tmp_path / "vllm").glob("features-*"))


def test_signs_of_life_are_no_silence(started, prompts):
    engine, _ = started("beats", patience=0.5)
    assert len(engine.generate(prompts[:1], draws(prompts[:1]), 3)) == 1
    assert len(engine.generate(prompts[1:2], draws(prompts[1:2]), 3)) == 1
    assert engine.link.restarts == 0


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("slow", ("said nothing for 0.4 s", "patience")),
        ("raises", ("code 1: ValueError: no room for kv", "--engine.memory")),
        ("nonsense", ("no message",)),
        ("fails", ("architectures", "--engine.kind local")),
    ],
)
def test_why_it_does_not_start(started, mode, words):
    with refused("vLLM does not start", "engine.log", *words) as caught:
        started(mode, patience=0.4 if mode == "slow" else 20.0)
    assert len(str(caught.value).splitlines()) <= LINES


def test_a_python_that_is_none(model, features, tmp_path):
    plain = tmp_path / "python"
    plain.write_text("#!")
    for python, why in ((tmp_path / "nowhere", "No such file"), (plain, "Permission denied")):
        with refused("no Python there", why, ".venv-vllm"):
            VllmEngine.open(model, Place(python, tmp_path), features, "v1")


def test_a_python_without_vllm(model, features, tmp_path):
    """The real worker, under ours."""
    with refused("has no vLLM", "No module named 'vllm'", ".venv-vllm"):
        VllmEngine.open(model, Place(Path(sys.executable), tmp_path), features, "v1")


def test_what_it_refuses_names_the_question_and_ends_nothing(started, prompts, tmp_path):
    engine, _ = started("refuses")
    with refused("does not take question q1", "the prompt is odd"):
        engine.generate(prompts[1:], draws(prompts[1:]), 3)
    assert engine.score(prompts[1:2], [[(7,)]]) == [[[-7.0]]]
    assert {"op": "drop"} in log(tmp_path)
    assert engine.link.restarts == 0


def test_a_prompt_that_is_too_long(started, prompts):
    engine, _ = started()
    room = OPTIONS["max_model_len"] - len(prompts[0].ids)
    assert len(engine.generate(prompts[:1], draws(prompts[:1]), room)[0].answers[0].ids) == room
    with refused("question q0 is too long", f"{room + 1} of an answer are more than 300", "--engine.context"):
        engine.generate(prompts[:1], draws(prompts[:1]), room + 1)


@pytest.mark.parametrize("heat", [0.005, 2.5])
def test_a_temperature_that_vllm_does_not_take(started, prompts, heat):
    engine, _ = started()
    with refused(f"temperature {heat}", "between 0.01 and 2.0"):
        engine.generate(prompts[:1], [[Draw(1.0, 1), Draw(heat, 1)]], 3)
    assert engine.generate(prompts[:1], [[Draw(0.01, 1), Draw(2.0, 1), Draw(0.0, 1)]], 3)


def test_numbers_that_are_none(started, prompts):
    engine, _ = started("nan")
    with refused("no finite numbers", "--dtype float32"):
        engine.generate(prompts[:1], draws(prompts[:1]), 3)


def test_new_weights(started, model, prompts, tmp_path):
    engine, _ = started()
    engine.load(model, "v1")
    assert [one for one in log(tmp_path) if one["op"] == "load"] == []
    engine.load(model, "v2")
    (load,) = (one for one in log(tmp_path) if one["op"] == "load")
    assert [str(path) for path in (tmp_path / "vllm").glob("weights-*")] == [load["model"]]
    assert (Path(load["model"]) / "model.safetensors").is_file()
    assert engine.generate(prompts[1:2], draws(prompts[1:2]), 3)[0].answers[0].weights == "v2"


def test_a_death_while_it_takes_new_weights(started, model, prompts):
    engine, said = started("unloadable")
    engine.load(model, "v2")
    assert engine.link.restarts == 1
    assert "out of memory" in said[1]
    assert engine.generate(prompts[1:2], draws(prompts[1:2]), 3)[0].answers[0].weights == "v2"


def test_what_it_reads_otherwise_is_counted_and_said_once(started, prompts):
    engine, said = started("strange")
    engine.generate(prompts, draws(prompts), 3)
    assert engine.strange == 4
    assert len([text for text in said if "other tokens" in text]) == 1


def test_closing_ends_it_and_takes_its_files_away(started, tmp_path):
    engine, _ = started()
    pid = int((tmp_path / "life").read_text())
    engine.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert [path.name for path in (tmp_path / "vllm").iterdir()] == ["engine.log"]


def test_it_dies_with_whoever_started_it(tmp_path):
    code = f"""
import os
from pathlib import Path
from longtake.engines.vllm_process import Process
process = Process([{sys.executable!r}, {str(FAKE)!r}, "plain", {str(tmp_path / "life")!r}, "w", "{{}}"],
                  Path({str(tmp_path / "engine.log")!r}))
assert process.hear(20)["op"] == "ready"
os.kill(os.getpid(), {int(signal.SIGKILL)})
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    pid = int((tmp_path / "life").read_text())
    for _ in range(50):
        if not alive(pid):
            return
        time.sleep(0.1)
    raise AssertionError("it lives on")


def alive(pid):
    """A process that nobody waited for is a zombie: dead."""
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_options(model):
    place = Place(Path("p"), Path("f"), context=77, memory=0.5)
    taken = vllm.options(place, model)
    assert taken["dtype"] == "float32"  # of a model in float64
    assert taken["gpu_memory_utilization"] == 0.5
    assert taken["max_model_len"] == 77
    assert vllm.options(Place(Path("p"), Path("f"), dtype="bfloat16", memory=2.0), model) | {
        "dtype": "bfloat16",
        "kv_cache_memory_bytes": 2 * 2**30,
    } == vllm.options(Place(Path("p"), Path("f"), dtype="bfloat16", memory=2.0), model)
