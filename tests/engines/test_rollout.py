"""Rollouts that training goes on with: the same answers, prefills that hold what an update computes, films shared."""

from __future__ import annotations

import pytest
import torch
from tests.models import tiny

from longtake.engines.local import LocalEngine
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack
from longtake.models.adapters import add_adapter
from longtake.records import Draw
from longtake.runtime.prefix import extend
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import lead

EXACT = 1e-12
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "When was it?"), (None, "2 + 2?"), ("b", "Who?"), ("b", "Where then?"))
DRAWS = tuple([Draw(heat, 10 * n + g) for g, heat in enumerate((1.0, 0.0, 1.5))] for n in range(len(ASKED)))
TOKENS = 7


@pytest.fixture(scope="module", params=["full", "lora", "alora"])
def model(request, tmp_path_factory):
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny"), layers=3))
    if request.param != "full":
        add_adapter(model, request.param, 4, 8.0)
        generator = torch.Generator().manual_seed(1)
        for name, p in model.net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=0.3, generator=generator)
        model.net.double()
    return model


@pytest.fixture(scope="module")
def engine(model):
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))

    def make(**limits):
        return LocalEngine(model, lambda handles: [films[handle] for handle in handles], "v1", **limits)

    return make


@pytest.fixture(scope="module")
def prompts(model):
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    return [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]


def rollout(engine, prompts, keep="graph"):
    return [kept for batch in engine.rollout(prompts, DRAWS, TOKENS, lambda run: keep) for kept in batch]


def scored(model, kept):
    """Log-probabilities of all answers on the kept prefill, at temperature 1: [answers][tokens]."""
    ids = [[answer.ids for answer in group.answers] for group in kept.groups]
    ones = [[[1.0] * len(own) for own in group] for group in ids]
    row = pack([group.prompt for group in kept.groups], ids, ones, lead=lead(model))
    (part,) = answer_rows(row, len(row.ids_T))
    with torch.no_grad():
        logprob_R = score_tokens(model.head, extend(model, kept.made, part), part.target_R).logprob_R
    return [logprob_R[part.answer_R == n].tolist() for n in range(sum(map(len, ids)))]


@pytest.mark.parametrize("row_tokens", [10**6, 1])
def test_a_rollout_gives_the_answers_of_generate(model, engine, prompts, row_tokens):
    want = engine().generate(prompts, DRAWS, TOKENS)
    got = [group for kept in rollout(engine(row_tokens=row_tokens), prompts) for group in kept.groups]
    for group, other in zip(got, want, strict=True):
        assert group.prompt is other.prompt
        for answer, same in zip(group.answers, other.answers, strict=True):
            assert (answer.ids, answer.text) == (same.ids, same.text)
            assert answer.logprob == pytest.approx(same.logprob, abs=EXACT)


@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_kept_prefills_score_what_was_sampled(model, engine, prompts, keep):
    count = 0
    for kept in rollout(engine(), prompts, "nothing" if lead(model) else keep):
        flat = [answer for group in kept.groups for answer in group.answers]
        for place, (answer, own) in enumerate(zip(flat, scored(model, kept), strict=True)):
            if place % 3 != 2:  # drawn at temperature 1, or greedily and told at 1
                assert own == pytest.approx(answer.logprob, abs=EXACT)
                count += 1
    assert count == 2 * len(ASKED)


def test_questions_on_one_film_share_it(model, engine, prompts):
    kept = rollout(engine(), prompts)
    assert [len(one.groups) for one in kept] == [2, 1, 2]
    for one in (kept[0], kept[2]):
        first, second = (group.prompt for group in one.groups)
        film = first.visual[-1][1]
        assert one.made.layout.total <= len(first.ids) + len(second.ids) - film - 2 * lead(model)


def test_prefixes_are_taken_from_where_they_are_kept(model, engine, prompts):
    if not lead(model):
        pytest.skip("prefixes change with the weights")
    cache = PrefixCache(1.0)
    want = rollout(engine(), prompts, "nothing")
    for made, ram in ((3, 0), (3, 3)):
        for one, other in zip(rollout(engine(prefixes=cache), prompts, "nothing"), want, strict=True):
            assert one.groups == other.groups
            assert scored(model, one) == scored(model, other)
        assert (cache.counts.made, cache.counts.ram) == (made, ram)
