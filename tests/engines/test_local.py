"""The local engine in float64 and float32: against plain decoding, against training, in whatever batch."""

from __future__ import annotations

import pytest
import torch
from tests.models import tiny
from tests.plain.engine import PlainEngine

from longtake.engines import decode
from longtake.engines.local import LocalEngine
from longtake.maths.attention import Row
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import pack
from longtake.records import Draw
from longtake.runtime.inputs import fill

EXACT = {torch.float64: 1e-12, torch.float32: 1e-5}
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), (None, "2 + 2?"), ("b", "Who last gave the gem away?"), ("a", "When?"))
DRAWS = tuple([Draw(heat, 100 * n + g) for g, heat in enumerate((1.0, 0.0, 1.0, 2.0, 0.5))] for n in range(4))
TOKENS = 9


@pytest.fixture(scope="module", params=["float64", "float32"])
def model(request, tmp_path_factory):
    folder = tiny.checkpoint(tmp_path_factory.mktemp("tiny"))
    return tiny.exact(folder) if request.param == "float64" else tiny.load_model(folder, "float32", "cpu")


@pytest.fixture(scope="module")
def films(model):
    with torch.no_grad():
        return dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))


@pytest.fixture(scope="module")
def prompts(model):
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    return [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]


@pytest.fixture
def engine(model, films):
    def make(**limits):
        return LocalEngine(model, lambda handles: [films[handle] for handle in handles], "v1", **limits)

    return make


@pytest.fixture
def ends(model):
    """Sets the tokens that end an answer, for one test."""
    before = model.end_ids
    yield lambda *ids: setattr(model, "end_ids", ids)
    model.end_ids = before


def close(model, got, want):
    bound = EXACT[model.net.dtype] * max(1.0, *map(abs, want))
    assert max(abs(a - b) for a, b in zip(got, want, strict=True)) <= bound


def same(model, answer, other):
    assert (answer.ids, answer.text, answer.finish, answer.seed) == (other.ids, other.text, other.finish, other.seed)
    close(model, answer.logprob, other.logprob)


def test_answers_are_those_of_the_engine_that_keeps_nothing(model, films, prompts, engine):
    slow = PlainEngine(model, lambda handles: [films[handle] for handle in handles], "v1")
    for group, own in zip(
        engine().generate(prompts, DRAWS, TOKENS), slow.generate(prompts, DRAWS, TOKENS), strict=True
    ):
        assert group.prompt is own.prompt
        for answer, other in zip(group.answers, own.answers, strict=True):
            same(model, answer, other)


@torch.no_grad()
def test_sampled_logprobs_are_those_that_training_computes(model, films, prompts, engine):
    groups = engine().generate(prompts, DRAWS, TOKENS)
    answers = [[answer.ids for answer in group.answers] for group in groups]
    sampled = [[answer.logprob for answer in group.answers] for group in groups]
    row = pack(prompts, answers, sampled, sampled, dtype=model.net.dtype)
    seen = [films[handle] for handle in row.features if handle is not None]
    embed_TE, deepstack = fill(model, row.ids_T, row.visual_T, seen)
    hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
    heat = [draw.temperature or 1.0 for own in DRAWS for draw in own]  # greedy answers: at temperature 1
    for one in sorted(set(heat)):
        scored = score_tokens(model.head, hidden_TE[row.predict_R], row.target_R, temperature=one)
        mine_R = torch.tensor(heat)[row.answer_R] == one
        assert mine_R.any()
        close(model, row.old_logprob_R[mine_R].tolist(), scored.logprob_R[mine_R].tolist())


def test_an_answer_depends_on_its_own_seed_alone(model, prompts, engine):
    want = engine().generate(prompts, DRAWS, TOKENS)
    assert len({answer.ids for group in want for answer in group.answers}) > 12
    order = [2, 0, 3, 1]
    turned = engine().generate([prompts[i] for i in order], [DRAWS[i][::-1] for i in order], TOKENS)
    longest = max(len(prompt.ids) for prompt in prompts)
    others = {
        "in another order": [turned[order.index(i)] for i in range(4)],
        "one prompt a prefill": engine(row_tokens=1).generate(prompts, DRAWS, TOKENS),
        "some prompts a prefill": engine(row_tokens=2 * longest).generate(prompts, DRAWS, TOKENS),
        "few answers together": engine(answers=10).generate(prompts, DRAWS, TOKENS),
        "alone": [engine().generate([p], [own], TOKENS)[0] for p, own in zip(prompts, DRAWS, strict=True)],
    }
    for name, groups in others.items():
        for group, own, prompt in zip(groups, want, prompts, strict=True):
            assert group.prompt is prompt, name
            for answer, other in zip(sorted(group.answers, key=lambda a: a.seed), own.answers, strict=True):
                same(model, answer, other)
    single = engine().generate(prompts[:1], [[DRAWS[0][2]]], TOKENS)[0].answers[0]
    same(model, single, want[0].answers[2])


def test_a_limit_cuts_and_changes_nothing_before_the_cut(model, prompts, engine):
    long = engine().generate(prompts, DRAWS, TOKENS)
    short = engine().generate(prompts, DRAWS, 4)
    for one, other in zip(long, short, strict=True):
        for whole, part in zip(one.answers, other.answers, strict=True):
            assert (part.ids, part.finish, len(part.ids)) == (whole.ids[:4], "length", 4)
            close(model, part.logprob, whole.logprob[:4])
            assert part.text == model.tokenizer.decode(part.ids)


@pytest.mark.parametrize(("first", "tokens"), [(1, TOKENS), (3, TOKENS), (64, 70)])
def test_room_that_grows_changes_nothing(model, prompts, engine, ends, monkeypatch, first, tokens):
    """It doubles when it is full, up to the longest answer; the last token is never fed."""
    ends()
    draws = [own[:2] for own in DRAWS[:2]]
    monkeypatch.setattr(decode, "FIRST", 1000)
    want = engine().generate(prompts[:2], draws, tokens)
    monkeypatch.setattr(decode, "FIRST", first)
    rooms = []
    real = decode.Decode.__call__

    def spied(self, layer, *call):
        out = real(self, layer, *call)
        rooms.append(self.own[layer][0].shape[2])
        return out

    monkeypatch.setattr(decode.Decode, "__call__", spied)
    got = engine().generate(prompts[:2], draws, tokens)
    assert sorted(set(rooms)) == {1: [1, 2, 4, 8], 3: [3, 6, 9], 64: [64, 70]}[first]
    for one, other in zip(got, want, strict=True):
        for answer, whole in zip(one.answers, other.answers, strict=True):
            assert len(answer.ids) == tokens
            same(model, answer, whole)


@pytest.mark.parametrize(
    ("tokens", "leave"),
    [pytest.param([(0, 3), (12, 5)], 0, id="few"), pytest.param([(n, 2 + n % 5) for n in range(20)], 2, id="many")],
)
def test_an_answer_ends_with_its_end_token(model, prompts, engine, ends, monkeypatch, tokens, leave):
    """Answers that have ended leave once they are half of all: the others go on as they were."""
    free = engine().generate(prompts, DRAWS, TOKENS)
    flat = [answer for group in free for answer in group.answers]
    stop = [flat[number].ids[place] for number, place in tokens]
    ends(*stop)
    left = []
    real = decode.Decode.only
    monkeypatch.setattr(decode.Decode, "only", lambda self, alive: left.append(alive) or real(self, alive))
    cut = engine().generate(prompts, DRAWS, TOKENS)
    finished = 0
    for whole, answer in zip(flat, [answer for group in cut for answer in group.answers], strict=True):
        at = next((i + 1 for i, token in enumerate(whole.ids) if token in stop), None)
        assert answer.ids == whole.ids[:at]
        close(model, answer.logprob, whole.logprob[:at])
        assert answer.finish == ("stop" if at else "length")
        assert answer.text == model.tokenizer.decode(answer.ids[:-1] if at else answer.ids)
        finished += at is not None
    assert finished >= 2
    assert len(left) >= leave


def test_answers_of_one_token(model, prompts, engine, ends):
    first = engine().generate(prompts[:1], [DRAWS[0]], 1)[0].answers
    assert [(len(answer.ids), answer.finish) for answer in first] == [(1, "length")] * 5
    ends(*{answer.ids[0] for answer in first})
    ended = engine().generate(prompts[:1], [DRAWS[0]], TOKENS)[0].answers
    assert [(a.ids, a.text, a.finish) for a in ended] == [(a.ids, "", "stop") for a in first]


def test_decoding_stops_when_all_have_ended(model, prompts, engine, ends, monkeypatch):
    ends(*range(len(model.tokenizer)))
    passes = []
    real = type(model).hidden
    monkeypatch.setattr(type(model), "hidden", lambda self, *call: passes.append(1) or real(self, *call))
    engine().generate(prompts, DRAWS, TOKENS)
    assert len(passes) == 1  # the prefill


def test_texts_only_need_no_features(model, prompts):
    def none(handles):
        assert list(handles) == []
        return []

    groups = LocalEngine(model, none, "v1").generate([prompts[1]] * 2, DRAWS[:2], 3)
    assert [len(answer.ids) for group in groups for answer in group.answers] == [3] * 10


def test_who_sampled_with_what_is_written_on_the_answer(prompts, engine):
    groups = engine().generate(prompts, DRAWS, 2)
    assert [[answer.seed for answer in group.answers] for group in groups] == [[d.seed for d in own] for own in DRAWS]
    assert {answer.weights for group in groups for answer in group.answers} == {"v1"}
    assert engine().generate([], [], 2) == []
    with pytest.raises(ValueError, match="same number of draws"):
        engine().generate(prompts[:2], [DRAWS[0], DRAWS[1][:2]], 2)


def test_no_gradient_is_kept(model, prompts, engine):
    engine().generate(prompts, DRAWS, 2)
    assert all(weight.grad is None for weight in model.net.parameters())
    assert torch.is_grad_enabled()
