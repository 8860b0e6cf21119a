"""Recorded steps give what plain ones give; what cannot be recorded, or comes out differently, is decoded plainly."""

from __future__ import annotations

import pytest
import torch
from tests.engines.tape import Tape
from tests.models import tiny
from torch.testing import assert_close

from longtake.engines import decode, graph, local
from longtake.engines.local import LocalEngine
from longtake.models.adapters import add_adapter
from longtake.records import Draw, Prompt
from longtake.runtime.rows import bare, compute

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "When was it?"), (None, "2 + 2?"), ("b", "Who last gave the gem away?"))
DRAWS = tuple([Draw(heat, 10 * n + g) for g, heat in enumerate((1.0, 0.0, 1.5))] for n in range(len(ASKED)))
TOKENS = 21
POSITION = torch.arange(20).expand(3, -1)


@pytest.fixture(scope="module", params=["float64", "float32", "alora"])
def model(request, tmp_path_factory):
    folder = tiny.checkpoint(tmp_path_factory.mktemp("tiny"))
    if request.param == "float32":
        return tiny.load_model(folder, "float32", "cpu")
    model = tiny.exact(folder)
    if request.param == "alora":
        add_adapter(model, "alora", 4, 8.0)
        generator = torch.Generator().manual_seed(1)
        for name, p in model.net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=0.3, generator=generator)
        model.net.double()
    return model


@pytest.fixture(autouse=True)
def forget():
    """What networks cannot be recorded."""
    graph._plain.clear()


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Rooms and recordings as small as the answers here."""
    monkeypatch.setattr(decode, "FIRST", 6)
    monkeypatch.setattr(graph, "PAYS", 2)


@pytest.fixture
def answers(model, monkeypatch):
    """All answers, films shared, by a recorder or without; what was said is kept."""
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    prompts = [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]

    def make(recorder=None, tokens=TOKENS, said=None, **limits):
        monkeypatch.setattr(local, "recorder_for", lambda model: None if model.net in graph._plain else recorder)
        say = {} if said is None else {"say": said.append}
        engine = LocalEngine(model, lambda handles: [films[handle] for handle in handles], "v1", **say, **limits)
        batches = engine.rollout(prompts, DRAWS, tokens, lambda run: "nothing")
        return [answer for kept in batches for one in kept for group in one.groups for answer in group.answers]

    return make


@pytest.fixture
def ends(model):
    """Sets the tokens that end an answer, for one test."""
    before = model.end_ids
    yield lambda ids: setattr(model, "end_ids", tuple(ids))
    model.end_ids = before


def same(model, got, want):
    assert [(a.ids, a.text, a.finish) for a in got] == [(a.ids, a.text, a.finish) for a in want]
    for answer, other in zip(got, want, strict=True):
        bound = EXACT[model.net.dtype] * max(1.0, *map(abs, other.logprob))
        assert max(abs(x - y) for x, y in zip(answer.logprob, other.logprob, strict=True)) <= bound


class Plain(Tape):
    """Nothing pays: a static step, run plainly."""

    def rehearse(self, run):
        raise AssertionError


def test_a_static_step_is_the_growing_one(model, answers, ends, monkeypatch):
    """Ragged prompts, two questions on a film, an activated LoRA's header, rooms that grow."""
    ends([10**6])
    want = answers()
    assert len({answer.ids for answer in want}) > 8
    monkeypatch.setattr(graph, "PAYS", 1000)
    for first in (1, 6, 1000):
        monkeypatch.setattr(decode, "FIRST", first)
        same(model, answers(Plain()), want)


def test_recorded_steps_are_the_growing_ones(model, answers, ends):
    ends([10**6])
    said = []
    tape = Tape()
    same(model, answers(tape, said=said), answers())
    assert not said
    start = 0 if model.adapter is None else len(model.header)
    rooms = [min(TOKENS + start, max(6, 2 * start))]
    while rooms[-1] < TOKENS + start:
        rooms.append(min(TOKENS + start, 2 * rooms[-1]))
    assert tape.rehearsed == tape.recorded == len(rooms)  # one in each room
    assert tape.replayed == TOKENS - 1 - tape.recorded  # the last token is never fed


def test_answers_that_leave(model, answers, ends, monkeypatch):
    """At several times, so that films and questions go as well."""
    ends([10**6])
    free = answers()
    ends({answer.ids[at] for at, answer in zip((3, 3, 3, 3, 3, 3, 9, 9, 9, 14, 14, 18), free, strict=True)})
    want = answers()
    assert len({len(answer.ids) for answer in want}) > 4
    for whole, cut in zip(free, want, strict=True):  # they do not mix
        assert cut.ids == whole.ids[: len(cut.ids)]
    left = []
    real = decode.Decode.only
    monkeypatch.setattr(decode.Decode, "only", lambda self, alive: left.append(len(alive)) or real(self, alive))
    tape, said = Tape(), []
    same(model, answers(tape, said=said), want)
    assert len(left) > 1
    assert tape.recorded > 2
    assert not said


def test_a_recording_must_pay(model, answers, ends, monkeypatch):
    """It serves until the answers are full, or their room is."""
    if model.adapter is not None:
        pytest.skip("its header takes some of the room")
    ends([10**6])
    last = TOKENS - 2  # replays: the first token comes from the prefill, the second is recorded
    for first, pays, recorded in ((1000, last, 1), (1000, last + 1, 0), (10, 9, 2), (10, 10, 0)):
        monkeypatch.setattr(decode, "FIRST", first)
        monkeypatch.setattr(graph, "PAYS", pays)
        tape = Tape()
        answers(tape)
        assert tape.recorded == recorded, (first, pays)


def test_prefixes_that_are_read_on_stay_where_they_are(model):
    """Answers leave: the levels' keys and values are made anew only if questions leave with them."""
    row = bare(
        model, [Prompt(str(n), tuple(range(50, 60 + n)), (), POSITION[:, : 10 + n], None, None) for n in range(3)]
    )
    made = compute(model, row, lambda handles: [], "nothing")
    state = decode.Decode([made], 2, 5)
    (before,) = state._levels[0]
    state.only([0, 1, 3, 4])
    (fewer,) = state._levels[0]
    assert fewer.k is before.k
    assert fewer.readers.row_MW.tolist() == [[0, 1], [2, 0], [3, 0]]
    state.only([2, 3])
    (last,) = state._levels[0]
    assert_close(last.k, before.k[1:], rtol=0, atol=0)
    assert_close(last.v, before.v[1:], rtol=0, atol=0)
    assert state.answers == [3, 4]


class Fails(Tape):
    def __init__(self, what, *, late):
        super().__init__()
        self.what, self.late = what, late

    def rehearse(self, run):
        out = super().rehearse(run)
        if not self.late:
            raise RuntimeError(self.what)
        return out

    def record(self, run):
        super().record(run)
        raise torch.OutOfMemoryError(self.what)


@pytest.mark.parametrize("late", [False, True])
def test_a_network_that_cannot_be_recorded(model, answers, ends, late):
    """The step before is not lost, nor taken twice."""
    ends([10**6])
    said, tape = [], Fails("operation not permitted\nwhen capturing", late=late)
    same(model, answers(tape, said=said), answers())
    assert said == ["decoding goes on without CUDA graphs, slower: operation not permitted"]
    assert (tape.rehearsed, tape.recorded) == (1, int(late))
    assert model.net in graph._plain


def test_a_step_that_waits_for_the_device(model, answers, ends, monkeypatch):
    """As some rotary embeddings do, which look at the largest position."""
    ends([10**6])
    want = answers()
    real = type(model).hidden
    monkeypatch.setattr(
        type(model), "hidden", lambda self, e, position, *rest: position.max().item() and real(self, e, position, *rest)
    )
    said = []
    same(model, answers(Tape(), said=said), want)
    assert said == ["decoding goes on without CUDA graphs, slower: called a synchronizing operation"]


class Wrong(Tape):
    """Replays what differs by `off` times the largest number."""

    def __init__(self, off):
        super().__init__()
        self.off = off

    def record(self, run):
        replay = super().record(run)

        def other():
            out = replay()
            out.view(-1)[7] += self.off * out.abs().max()
            return out

        return other


def test_a_recording_that_gives_other_numbers(model, answers, ends):
    ends([10**6])
    want, bound = answers(), graph.AGREE[model.net.dtype]
    for off, told in ((0.1 * bound, False), (10 * bound, True), (float("nan"), True)):
        graph._plain.clear()
        said, tape = [], Wrong(off)
        got = answers(tape, said=said)
        assert len(said) == told
        if told:
            same(model, got, want)
            assert "replayed step's logits were" in said[0]
            assert tape.replayed == 1


def test_a_step_that_depends_on_numbers_of_the_host_is_found_out(model, answers, ends, monkeypatch):
    """The growing way of decoding reads as many tokens as there are: a recording of it goes stale at once."""
    ends([10**6])
    want = answers()
    real = decode.Decode.__init__
    monkeypatch.setattr(decode.Decode, "__init__", lambda self, *a, static: real(self, *a, static=False))
    said = []
    same(model, answers(Tape(), said=said), want)
    assert len(said) == 1
