"""vLLM itself against the trainer: the contract of an engine, as far as another process keeps it. make test-engines"""

import os
import signal
from dataclasses import replace

import pytest
import torch
from tests.engines import wide
from tests.engines.cases import CONTEXT, DRAWS, GAP, LONGEST, PYTHON, Case
from tests.models import tiny

from longtake.engines import vllm_link
from longtake.engines.vllm import Place, VllmEngine
from longtake.engines.vllm_link import Link
from longtake.errors import UserError
from longtake.models import adapters
from longtake.records import Draw

pytestmark = pytest.mark.engines


@pytest.fixture(scope="module", params=wide.FAMILIES)
def case(request, tmp_path_factory):
    return Case(request.param, tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def engine(case, tmp_path_factory):
    place = Place(PYTHON, tmp_path_factory.mktemp("run"), context=CONTEXT, memory=1.0, patience=300.0)
    with VllmEngine.open(case.model, place, case.features, "v1") as made:
        yield made


@pytest.fixture(scope="module")
def groups(engine, case):
    return engine.generate(case.prompts, DRAWS, LONGEST)


def ids(groups):
    return [[answer.ids for answer in group.answers] for group in groups]


def test_groups_come_in_the_order_of_prompts_and_draws(engine, case, groups):
    assert [group.prompt for group in groups] == case.prompts
    assert [[answer.seed for answer in group.answers] for group in groups] == [[d.seed for d in own] for own in DRAWS]
    assert {answer.weights for group in groups for answer in group.answers} == {"v1"}
    assert engine.strange == engine.moved == engine.link.restarts == 0


def test_logprobs_are_the_trainers(case, groups):
    """Under the distribution that was sampled from (greedy: temperature 1), with the film that was asked about."""
    assert case.gap(groups) < GAP
    if case.films:
        case.films["a"], mine = replace(case.films["a"], level_LNE=-case.films["a"].level_LNE), case.films["a"]
        try:
            assert case.gap(groups[:1], DRAWS[:1]) > 100 * GAP
        finally:
            case.films["a"] = mine


def test_scores_are_the_trainers(engine, case, groups):
    swapped = [replace(group, prompt=prompt) for group, prompt in zip(groups, case.prompts[::-1], strict=True)]
    scores = engine.score([group.prompt for group in swapped], ids(swapped))
    for group, own in zip(swapped, scores, strict=True):
        for got, want in zip(own, case.logprobs(group, [1.0] * 3), strict=True):
            assert got == pytest.approx(want, abs=GAP)


def test_temperature_0_takes_the_likeliest(engine, case, groups):
    again = engine.generate(case.prompts, [[Draw(0.0, 999)]] * 4, LONGEST)
    assert again[0].answers[0].ids == groups[0].answers[1].ids
    assert again[1].answers[0].ids == groups[1].answers[2].ids
    assert case.gap(again, [[Draw(0.0, 999)]] * 4) < GAP


def test_an_answer_depends_on_its_own_draw_alone(engine, case, groups):
    for place in (2, 0, 3):
        alone = engine.generate([case.prompts[place]], [DRAWS[place][:1]], LONGEST)
        assert alone[0].answers[0].ids == groups[place].answers[0].ids
    assert ids(engine.generate(case.prompts, DRAWS, LONGEST)) == ids(groups)


def test_equal_draws_give_equal_answers_and_others_differ(groups):
    assert len({answer.ids for answer in groups[2].answers}) == 1
    assert len({answer.ids for group in groups for answer in group.answers}) > 7


def test_an_answer_ends_with_its_end_token_or_at_the_limit(case, groups):
    answers = [answer for group in groups for answer in group.answers]
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        ended = answer.ids[-1] in case.model.end_ids
        assert answer.finish == ("stop" if ended else "length")
        assert ended or len(answer.ids) == LONGEST
        assert not set(answer.ids[:-1]) & set(case.model.end_ids)
        assert len(answer.logprob) == len(answer.ids)
        assert answer.text == case.model.tokenizer.decode(answer.ids[:-1] if ended else answer.ids)


def test_the_checkpoints_own_end_does_not_count(engine, case):
    """Only the model's: tokenizer and generation config name <|im_end|>."""
    before, case.model.end_ids = case.model.end_ids, (3,)
    try:
        made = engine.generate(case.prompts[1:2], [[Draw(2.0, seed) for seed in range(64)]], 40)[0]
    finally:
        case.model.end_ids = before
    assert any(case.model.tokenizer.eos_token_id in answer.ids[:-1] for answer in made.answers)


def test_a_picture(engine, case):
    if case.family not in ("qwen2_5_vl", "qwen3_vl"):
        pytest.skip("its pictures go as films do")
    frame = tiny.film(2, 2, 16, 24)
    with torch.no_grad():
        case.films["c"] = case.model.encode([frame])[0]
    prompt = case.model.prompt(tiny.ask(), replace(tiny.receipt(frame), image=True), "c")
    groups = engine.generate([prompt], DRAWS[:1], LONGEST)
    assert case.gap(groups, DRAWS[:1]) < GAP
    assert torch.equal(engine.positions(prompt), prompt.position_3P)
    assert engine.strange == 0


@pytest.mark.parametrize("frames", [4, 64, 512, 2000])
def test_positions_are_ours(engine, case, frames):
    if case.family not in ("qwen2_5_vl", "qwen3_vl"):
        pytest.skip("plain positions")
    film = tiny.film(3, frames, 8, 8)
    receipt = tiny.receipt(film, step=0.2537)
    with torch.no_grad():
        case.films[f"{frames}"] = case.model.encode([film])[0]
    prompt = case.model.prompt(tiny.ask(), receipt, f"{frames}")
    assert torch.equal(engine.positions(prompt), prompt.position_3P)
    groups = engine.generate([prompt], DRAWS[:1], 3)
    assert case.gap(groups, DRAWS[:1]) < GAP
    assert engine.strange == engine.moved == 0


def test_more_visual_tokens_than_vllm_takes_in_a_step(engine, case):
    """8000 of them, where vLLM's own bound for a film would be 4096."""
    if not case.films:
        pytest.skip("it reads text alone")
    film = tiny.film(4, 1000, 32, 32)
    with torch.no_grad():
        case.films["long"] = case.model.encode([film])[0]
    prompt = case.model.prompt(tiny.ask(), tiny.receipt(film), "long")
    assert sum(stop - start for start, stop in prompt.visual) >= 8000
    assert case.gap(engine.generate([prompt], DRAWS[:1], 3), DRAWS[:1]) < GAP


def test_new_weights_change_the_answers_and_going_back_restores_them(engine, case, groups, tmp_path):
    other = Case(case.family, tmp_path, seed=1)
    case_films, case.films = case.films, other.films  # of the other tower
    try:
        engine.load(other.model, "v2")
        found = engine.generate(other.prompts, DRAWS, LONGEST)
        assert other.gap(found) < GAP  # nothing that was computed with the old weights is read
        assert ids(found) != ids(groups)
        assert found[0].answers[0].weights == "v2"
    finally:
        case.films = case_films
        engine.load(case.model, "v1")
    assert ids(engine.generate(case.prompts, DRAWS, LONGEST)) == ids(groups)


def test_a_lora_answers(engine, case, groups, tmp_path):
    other = Case(case.family, tmp_path)
    adapters.add_adapter(other.model, "lora", 4, 8.0)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for x in other.model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=generator) * 0.1)
    try:
        engine.load(other.model, "lora")
        found = engine.generate(other.prompts, DRAWS, LONGEST)
        assert other.gap(found) < GAP
        assert case.gap(found) > 100 * GAP
    finally:
        engine.load(case.model, "v1")


def test_a_kill_in_the_middle_loses_nothing(engine, case, groups, monkeypatch):
    hear, killed = Link._hear, []
    monkeypatch.setattr(vllm_link, "AHEAD", 1)  # a prompt at a time

    def kill_after_the_first(link):
        reply = hear(link)
        if not killed and reply["op"] == "found":
            killed.append(link._process._popen.pid)
            os.kill(killed[0], signal.SIGKILL)
        return reply

    monkeypatch.setattr(Link, "_hear", kill_after_the_first)
    assert ids(engine.generate(case.prompts, DRAWS, LONGEST)) == ids(groups)
    assert engine.link.restarts == 1
    assert killed != [engine.link._process._popen.pid]


def test_heads_that_are_too_small_are_said(tmp_path):
    model = tiny.load_model(tiny.checkpoint(tmp_path / "tiny"), "float32", "cpu")
    if torch.cuda.is_available():
        pytest.skip("a GPU's kernels take them")
    place = Place(PYTHON, tmp_path, context=1024, memory=1.0)
    with pytest.raises(UserError, match=r"(?s)does not start.*engine.log.*heads of 32 numbers"):
        VllmEngine.open(model, place, lambda handles: [], "v1")


@pytest.mark.parametrize(
    ("family", "spec"),
    [("qwen2_5_vl", "dynamic:2"), ("qwen3_vl", "yarn:2"), ("qwen3", "linear:2"), ("qwen3", "yarn:2")],
)
def test_scaled_positions(tmp_path, family, spec):
    case = Case(family, tmp_path)
    case.model = tiny.load_model(tmp_path / f"{family}-0", "float32", "cpu", rope=spec)
    with VllmEngine.open(case.model, Place(PYTHON, tmp_path, memory=1.0), case.features, "v1") as engine:
        groups = engine.generate(case.prompts[:1], DRAWS[:1], 4)
    assert case.gap(groups, DRAWS[:1]) < GAP


def test_a_distance_of_frames_that_vllm_cannot_tell_is_counted(tmp_path):
    case = Case("qwen2_5_vl", tmp_path)
    film = tiny.film(3, 128, 8, 8)
    with torch.no_grad():
        case.films["c"] = case.model.encode([film])[0]
    prompt = case.model.prompt(tiny.ask(), tiny.receipt(film, step=7 / 24), "c")
    said = []
    with VllmEngine.open(case.model, Place(PYTHON, tmp_path, memory=1.0), case.features, "v1", said.append) as engine:
        off = engine.positions(prompt) - prompt.position_3P
        assert int((off != 0).sum()) == case.model.sent(prompt).moved > 0
        assert int(off.abs().max()) == 1
        assert engine.moved == 1
        assert "one position off" in said[-1]


def test_memory_that_is_not_there_is_said(tmp_path):
    case = Case("qwen3", tmp_path)
    with pytest.raises(UserError, match=r"(?s)does not start.*engine.log.*--engine.memory"):
        VllmEngine.open(case.model, Place(PYTHON, tmp_path, memory=4096.0), case.features, "v1")
