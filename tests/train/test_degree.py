"""How many ranks share a prefix: what the longest prompt needs against what a rank has, and what is said of it."""

from __future__ import annotations

import io
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import tiny
from tests.ranks import run

from longtake.log import Log
from longtake.maths.cost import Work
from longtake.maths.cost_ranks import Mesh, room_of_rank
from longtake.maths.room import USABLE, room
from longtake.maths.shapes import shape_of
from longtake.models.qwen3_vl import Qwen3VL
from longtake.parallel.axis import ALONE, Axis
from longtake.parallel.ranks import Ranks
from longtake.records import FramePolicy, Question
from longtake.runtime.films import Look
from longtake.train import degree, passes
from longtake.train.oom import way_of

WORDS = tiny.tokenizer()
MODEL = Qwen3VL(tiny.network(WORDS), WORDS, tiny.PIXELS)  # 4 heads, 2 key heads
LENGTHS = {"short": 300, "long": 40_000, "text": 20}


class Films:
    """Prompts of known lengths. Example: Films(4).prompt(look("long"))."""

    def __init__(self, size: int, model: Any = MODEL) -> None:
        self.model, self.ranks, self.longest = model, Ranks(Axis(0, size), Axis(0, size)) if size > 1 else Ranks(), 0
        self.sequence: int | None = None
        self.attention = "gather"
        self.asked: list[str] = []

    def receipt(self, look: Look) -> Any:
        name = look.question.video
        if name is None:
            return None
        return SimpleNamespace(width=len(name), height=8, indices=(0, 1), image=False)

    def prompt(self, look: Look) -> Any:
        self.asked.append(look.question.id)
        return SimpleNamespace(ids=(0,) * LENGTHS[look.question.video or "text"])


def look(name: str, film: str | None) -> Look:
    return Look(Question(name, film, "?"), FramePolicy(frames=2))


def meshed(world: Axis, found: int, how: Any) -> Ranks:
    return Ranks(world, Axis(0, world.size // found), Axis(0, found), how)


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what a rank has."""
    monkeypatch.setattr(degree, "mesh", meshed)
    return lambda device, host=1e18: monkeypatch.setattr(degree, "room_of", lambda _: (device, host))


def on(kind: str) -> Any:
    """The tiny model as if it lay on such a device."""
    config, dtype = MODEL.net.config, MODEL.net.dtype
    net = SimpleNamespace(config=config, dtype=dtype, device=torch.device(kind))
    return SimpleNamespace(net=net, adapter=None, layers=MODEL.layers)


def needed(model: Any, size: int, ranks: int, longest: int = 40_000, *, shares: bool = False) -> float:
    """By the cost model, for the longest prompt and 2,048 tokens of answers."""
    shape, way = shape_of(model.net.config.to_dict()), way_of(model, "layers", 2048)
    return room_of_rank(shape, Work(1, longest, 1, answer=256), way, Mesh(size, ranks, shares)).peak


@pytest.mark.parametrize("longest", [40_000, 20])  # where a prefix, and where answers need the most
@pytest.mark.parametrize(("size", "degrees"), [(6, [1, 2, 3, 6]), (5, [1, 5]), (4, [1, 2, 4])])
def test_as_few_ranks_as_have_room(memory: Any, size: int, degrees: list[int], longest: int) -> None:
    model = on("cuda")
    films: Any = Films(size, model)
    needs = [needed(model, size, ranks, longest) for ranks in degrees]
    assert needs == sorted(needs, reverse=True)
    for found, need in zip(degrees, needs, strict=True):
        memory(need / USABLE * 1.0001)
        assert degree.degree(films, longest) == found
        memory(need / USABLE * 0.9999)
        assert degree.degree(films, longest) == degrees[min(degrees.index(found) + 1, len(degrees) - 1)]
    memory(1.0, 1.0)
    assert degree.degree(films, longest) == size  # nothing fits: all share it


def test_weights_and_optimizer_in_shares_leave_room(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = on("cuda")
    films: Any = Films(4, model)
    assert needed(model, 4, 1, shares=True) < needed(model, 4, 1)
    memory(needed(model, 4, 1) / USABLE * 0.9999)
    assert degree.degree(films, 40_000) == 2
    monkeypatch.setattr(degree, "in_parts", lambda layers: layers is model.layers)
    assert degree.degree(films, 40_000) == 1


def said(films: Any, *films_of: str | None) -> list[str]:
    stream = io.StringIO()
    log = Log(stream=stream)
    degree.spread(films, [look(f"q{n}", name) for n, name in enumerate(films_of)], log)
    log.close()
    return [json.loads(line)["note"] for line in stream.getvalue().splitlines()]


def note(films: Any, *films_of: str | None) -> str:
    lines = said(films, *films_of)
    assert len(lines) == 1
    return lines[0]


def test_one_rank_is_told_nothing(memory: Any) -> None:
    memory(1.0)
    films: Any = Films(1)
    assert said(films, "long") == []
    assert films.ranks.world == ALONE
    assert films.asked == []


def test_the_longest_prompt_decides_and_is_said(memory: Any) -> None:
    films: Any = Films(4, on("cuda"))
    memory(needed(films.model, 4, 2) / USABLE * 1.01)
    line = note(films, "short", None)
    assert line.endswith("4 ranks: each takes questions of its own (the longest prompt, 300 tokens, fits one)")
    assert films.ranks.sequence.size == 1
    line = note(films, "short", "long", None)
    told = "2 sequences of 2, which share prompts of up to 40000 tokens; keys and values are gathered"
    assert line.endswith(f"4 ranks: {told}")
    assert (films.ranks.data.size, films.ranks.sequence.size, films.longest) == (2, 2, 40_000)
    assert said(films, "short") == []  # what was long may come again
    assert films.ranks.sequence.size == 2
    memory(needed(films.model, 4, 4) / USABLE * 1.01)
    line = note(films, "short")
    assert "1 sequence of 4, which share prompts of up to 40000 tokens" in line


def test_one_prompt_of_every_size_is_made(memory: Any) -> None:
    memory(1e18)
    films: Any = Films(2)
    said(films, "short", "short", "long", None, "long", None)
    assert films.asked == ["q0", "q2", "q3"]


@pytest.mark.parametrize(("asked", "size", "words"), [
    (4, 4, "attention goes by heads"),
    (3, 3, "keys and values are gathered: 4 heads and 2 key heads cannot be parted so"),
])  # fmt: skip
def test_heads_where_they_can_be_parted(memory: Any, asked: int, size: int, words: str) -> None:
    memory(1e18)
    films: Any = Films(size)
    films.sequence, films.attention = asked, "ulysses"
    line = note(films, "short")
    assert line.endswith(f"1 sequence of {asked}, which share prompts of up to 300 tokens; {words}")
    assert (films.ranks.how, films.ranks.sequence.size) == ("ulysses", asked)


def test_large_weights_are_a_third_of_a_rank(memory: Any) -> None:
    model = on("cuda")
    shape, way = shape_of(model.net.config.to_dict()), way_of(model, "layers", degree.ANSWERS)
    found = room(shape, Work(frames=1, visual=1, question=1), way)
    bound = 3 * (found.weights + found.learning)
    memory(bound * 1.001)
    assert not degree.large(model)
    memory(bound * 0.999)
    assert degree.large(model)


def rooms(world: Axis) -> tuple[Any, Any]:
    """Two machines of two ranks each, the second half as large; what each rank takes for its own."""
    small = world.index // 2
    passes.platform.node = lambda: f"machine {small}"
    real = passes.os.sysconf
    passes.os.sysconf = lambda name: real(name) // (1 + small) if name == "SC_PHYS_PAGES" else real(name)
    return passes.room_of(torch.device("cpu")), real("SC_PAGE_SIZE") * (real("SC_PHYS_PAGES") // 2)


def test_all_ranks_reckon_with_the_smallest_machines_part() -> None:
    for (device, host), bytes_there in run(4, rooms):
        assert device == host == bytes_there / 2
