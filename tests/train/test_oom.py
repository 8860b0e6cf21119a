"""Out of memory ends in six lines: phase, what was held, three knobs; other errors stay what they are."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tests.models import tiny

from longtake.errors import UserError
from longtake.maths.cost import Way, Work
from longtake.maths.knobs import savings
from longtake.maths.shapes import PRESETS
from longtake.models.adapters import add_adapter
from longtake.records import Layout
from longtake.runtime.load import load_model
from longtake.train.oom import Facts, explained, facts_of, gb

FACTS = Facts(PRESETS["qwen2.5-vl-7b"], Work(0, 35_840, 256), Way("exact", "graph", adapter="lora"))
CUDA = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB\nmore"
)
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
)
LIMITED = """
import resource, torch
from longtake.maths.cost import Way, Work
from longtake.maths.shapes import PRESETS
from longtake.train.oom import Facts, explained

facts = Facts(PRESETS["qwen3-vl-2b"], Work(64, 4480, 256), Way("exact", "graph", item=4, weight=4))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
with explained("prefix_backward", lambda: facts):
    held = [torch.ones(2**24) for _ in range(32)]
"""


def told(phase, facts, error):
    with pytest.raises(UserError) as found, explained(phase, lambda: facts):
        raise error
    return found.value


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_six_lines_say_phase_tokens_what_was_held_and_three_knobs(error):
    lines = str(told("prefix_backward", FACTS, error)).splitlines()
    assert len(lines) == 6
    assert lines[0] == "out of memory in prefix backward: 36,096 prefix tokens, 6,144 answer tokens"
    assert "more" not in lines[1].split()[0]
    assert "weights 16.9 GB" in lines[2]
    assert "graph" in lines[2]
    saved = savings(FACTS.shape, FACTS.work, FACTS.way, phase="prefix_backward")
    worth = [f"{saving.knob.words} saves {gb(saving.bytes)}" for saving in saved if saving.bytes > 1e9]
    three = [line.removeprefix("  do: ").strip() for line in lines[3:]]
    assert [line[:3] for line in three] == ["1) ", "2) ", "3) "]
    assert [line[3:] for line in three] == sorted((line[3:] for line in three), key=worth.index)
    assert three[0][3:] == worth[0]
    assert len({line.split()[1] for line in three}) == 3, "three settings, not one three times"


def test_knobs_are_those_of_the_phase():
    many = replace(FACTS, way=replace(FACTS.way, keep="layers"))
    answers, prefix = (str(told(phase, many, CUDA)) for phase in ("answers", "prefix_backward"))
    assert "--memory.answer-tokens" in answers
    assert "--memory.answer-tokens" not in prefix


def test_other_errors_stay_what_they_are():
    for error in (RuntimeError("shapes do not fit"), ValueError("no"), UserError("said already"), KeyboardInterrupt()):
        with pytest.raises(type(error)) as found, explained("answers", lambda: FACTS):
            raise error
        assert found.value is error


def test_facts_are_asked_only_when_memory_is_out():
    def never():
        raise AssertionError

    with explained("answers", never):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS and /proc")
def test_a_real_failure_on_the_cpu():
    ended = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    said = ended.stderr.split("longtake.errors.UserError: ")[-1].splitlines()
    assert said[0].startswith("out of memory in prefix backward: 4,736 prefix tokens")
    assert "allocat" in said[1]
    assert len(said) <= 6


@pytest.fixture
def model(tmp_path):
    return load_model(tiny.checkpoint(tmp_path / "model"), device="cpu")


def test_facts_of_a_row(model):
    film = (90, ((7, (20, 40)), (5, (30, 30)), (8, (25, 35))))  # three questions on a film, two answers each
    found = facts_of(model, Layout((film,)), "layers", visual=80, answer_tokens=64)
    assert found.shape.layers == 2
    assert found.work == Work(0, 80, 10, questions=3, group=2, answer=30)
    assert found.work.inner.tokens == 110
    assert (found.way.mode, found.way.keep, found.way.adapter, found.way.item) == ("exact", "layers", "full", 4.0)
    assert found.way.answer_tokens == 64
    plain = facts_of(model, Layout(((20, (3, 5)), (20, (4, 4)))), "nothing", visual=0)
    assert plain.work == Work(0, 0, 20, questions=2, group=2, answer=4)
    assert plain.way.mode == "none"


def test_facts_of_a_rollout_and_of_an_adapter(model):
    before = Layout(((20, ()), (20, ())))
    assert facts_of(model, before, "graph", visual=10, asked=(8, 64)).work == Work(0, 10, 15, 2, 8, 64)
    add_adapter(model, "lora", 4, 8.0)
    way = facts_of(model, before, "graph", visual=10, asked=(8, 64)).way
    assert (way.adapter, way.rank, way.mode) == ("lora", 4, "exact")
    assert way.weight == pytest.approx(4.0, rel=0.05)  # norms are frozen as well
