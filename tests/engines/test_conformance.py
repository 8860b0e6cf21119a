"""What every engine must do, and what the trainer relies on; a new engine is one more line in ENGINES."""

import pytest
import torch
from tests.models import tiny
from tests.plain.engine import PlainEngine

from longtake.engines.local import LocalEngine
from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.records import Draw
from longtake.runtime.inputs import fill

EXACT = 1e-9  # nats, float64
LONGEST = 12
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ENGINES = {"local": LocalEngine, "plain": PlainEngine}
DRAWS = [[Draw(1.0, 19), Draw(0.0, 1), Draw(0.5, 9)], [Draw(1.0, 3), Draw(2.0, 4), Draw(0.0, 2)], [Draw(1.0, 6)] * 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def features(model):
    with torch.no_grad():
        made = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    return lambda handles: [made[handle] for handle in handles]


@pytest.fixture(scope="module")
def prompts(model):
    """Two films of different size and length, and a question without one."""
    asked = [("a", "Which cup?"), (None, "2 + 2?"), ("b", "Who gave the gem?")]
    return [model.prompt(tiny.ask(text), film and tiny.receipt(FILMS[film]), film) for film, text in asked]


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request, model, features):
    return ENGINES[request.param](model, features, "v1")


@pytest.fixture(scope="module")
def groups(engine, prompts):
    return engine.generate(prompts, DRAWS, LONGEST)


def test_groups_come_in_the_order_of_prompts_and_draws(groups, prompts):
    assert [group.prompt for group in groups] == prompts
    assert [[answer.seed for answer in group.answers] for group in groups] == [[d.seed for d in own] for own in DRAWS]
    assert {answer.weights for group in groups for answer in group.answers} == {"v1"}


def test_logprobs_are_the_trainers(model, features, groups):
    """Under the distribution that was sampled from (greedy: temperature 1): the first update's ratio is then 1."""
    for group, draws in zip(groups, DRAWS, strict=True):
        heat = [draw.temperature or 1.0 for draw, answer in zip(draws, group.answers, strict=True) for _ in answer.ids]
        ids = [answer.ids for answer in group.answers]
        row = pack([group.prompt], [ids], [[[1.0] * len(own) for own in ids]], dtype=torch.float64)
        embed_TE, deepstack = fill(model, row.ids_T, row.visual_T, features([h for h in row.features if h]))
        hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
        logits_RV = model.head(hidden_TE[row.predict_R]) / torch.tensor(heat)[:, None]
        want = logits_RV.log_softmax(-1).gather(1, row.target_R[:, None])[:, 0].tolist()
        got = [number for answer in group.answers for number in answer.logprob]
        assert got == pytest.approx(want, abs=EXACT)


def test_temperature_0_takes_the_likeliest(engine, prompts, groups):
    again = engine.generate(prompts, [[Draw(0.0, 999)]] * len(prompts), LONGEST)
    assert again[0].answers[0].ids == groups[0].answers[1].ids  # a greedy answer has no randomness
    assert again[1].answers[0].ids == groups[1].answers[2].ids


def test_an_answer_depends_on_its_own_draw_alone(engine, prompts, groups):
    """Neither on the batch nor on its place in it: so resume and chunking cannot change a run."""
    for place in (2, 0):
        alone = engine.generate([prompts[place]], [DRAWS[place][:1]], LONGEST)
        assert alone[0].answers[0].ids == groups[place].answers[0].ids


def test_equal_draws_give_equal_answers_and_others_differ(groups):
    assert len({answer.ids for answer in groups[2].answers}) == 1
    assert len({answer.ids for answer in groups[1].answers}) == len(DRAWS[1])


def test_an_answer_ends_with_its_end_token_or_at_the_limit(model, groups):
    answers = [answer for group in groups for answer in group.answers]
    assert {answer.finish for answer in answers} == {"stop", "length"}
    for answer in answers:
        ended = answer.ids[-1] in model.end_ids
        assert answer.finish == ("stop" if ended else "length")
        assert ended or len(answer.ids) == LONGEST
        assert not set(answer.ids[:-1]) & set(model.end_ids)
        assert len(answer.logprob) == len(answer.ids)
        assert answer.text == model.tokenizer.decode(answer.ids[:-1] if ended else answer.ids)


def test_engines_agree(model, features, prompts):
    made = [kind(model, features, "v1").generate(prompts, DRAWS, LONGEST) for kind in ENGINES.values()]
    for other in made[1:]:
        assert [[a.ids for a in group.answers] for group in other] == [[a.ids for a in g.answers] for g in made[0]]
