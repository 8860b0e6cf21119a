"""A shared-prefix row through the whole network equals one row per answer; decoding equals the full forward."""

from dataclasses import replace

import pytest
import torch
from tests.models import tiny
from torch.testing import assert_close

from longtake.engines.decode import Decode
from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.models.adapters import add_adapter
from longtake.records import Layout, Prompt
from longtake.runtime.features import FeatureStore
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import prefill
from longtake.runtime.rows import bare, compute, lead, prefix_key

EXACT = 1e-12  # of the largest number compared
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}


def prompts(model):
    """Two films of different size and length, and a question without one."""
    asked = [("a", "Which cup?"), (None, "2 + 2?"), ("b", "Who last gave the gem away?")]
    return [
        model.prompt(tiny.ask(text, str(i)), film and tiny.receipt(FILMS[film]), film)
        for i, (film, text) in enumerate(asked)
    ]


def numbers(seed, lengths, low=40, high=250):
    generator = torch.Generator().manual_seed(seed)
    ids = [[torch.randint(low, high, (n,), generator=generator).tolist() for n in own] for own in lengths]
    weights = [[torch.randn(n, generator=generator).tolist() for n in own] for own in lengths]
    return ids, weights


@pytest.fixture
def store(exact, tmp_path):
    made = FeatureStore(tmp_path, "tower", torch.float64)
    with torch.no_grad():
        made.put(dict(zip(FILMS, exact.encode(list(FILMS.values())), strict=True)))
    return made


def gather(model, store, row):
    return fill(model, row.ids_T, row.visual_T, [store.get(handle) for handle in row.features if handle is not None])


def weighted_logprobs(model, store, row):
    """Log-probability of every answer token [R]."""
    embed_TE, deepstack = gather(model, store, row)
    hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
    return model.head(hidden_TE[row.predict_R]).log_softmax(-1).gather(1, row.target_R[:, None])[:, 0]


def close(got, want, scale):
    assert (got - want).abs().max().item() <= EXACT * scale


def grads(model, loss):
    model.net.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lengths", [((5, 3, 9), (4, 1, 2), (7,)), ((2, 40), (3,), (1, 1))])
def test_row_equals_one_row_per_answer(exact, store, lengths):
    ids, weights = numbers(0, lengths)
    asked = prompts(exact)
    row = pack(asked, ids, weights, dtype=torch.float64)
    got = weighted_logprobs(exact, store, row)
    got_grads = grads(exact, (got * row.weight_R).sum())
    want, loss = [], 0.0
    for prompt, own_ids, own_weights in zip(asked, ids, weights, strict=True):
        for answer, weight in zip(own_ids, own_weights, strict=True):
            alone = pack([prompt], [[answer]], [[weight]], dtype=torch.float64)
            plain = plain_logprobs(exact, store, alone)
            want.append(plain)
            loss = loss + (plain * alone.weight_R).sum()
    close(got, torch.cat(want), got.abs().max().item())
    want_grads = grads(exact, loss)
    assert got_grads.keys() == want_grads.keys()
    for name, grad in want_grads.items():
        close(got_grads[name], grad, grad.abs().max().item())
    assert sum(grad.abs().sum() > 0 for grad in want_grads.values()) == len(want_grads) > 20


def plain_logprobs(model, store, row):
    """The same of a row [prompt | answer], all of it one causal sequence."""
    embed_TE, deepstack = gather(model, store, row)
    whole = Row(Layout(((row.layout.total, ()),)))
    hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, whole)
    return model.head(hidden_TE[row.predict_R]).log_softmax(-1).gather(1, row.target_R[:, None])[:, 0]


def test_deepstack_and_features_matter(exact, store):
    """The rows above would also agree if features were left out: they are not."""
    row = pack(prompts(exact), *numbers(0, ((5,), (4,), (7,))), dtype=torch.float64)
    embed_TE, deepstack = gather(exact, store, row)
    call = (row.position_3T, row.visual_T)
    seen = exact.hidden(embed_TE, *call, deepstack, Row(row.layout))
    no_deepstack = exact.hidden(embed_TE, *call, torch.zeros_like(deepstack), Row(row.layout))
    blind = exact.hidden(exact.embed(row.ids_T), *call, deepstack, Row(row.layout))
    for other in (no_deepstack, blind):
        assert (seen - other).abs().max() > 1e-3


def test_gather_fills_the_places_in_row_order(exact, store):
    row = pack(prompts(exact), *numbers(0, ((2,), (2,), (2,))), dtype=torch.float64)
    embed_TE, deepstack = gather(exact, store, row)
    levels = torch.cat([store.get(handle).level_LNE for handle in "ab"], dim=1)
    assert torch.equal(embed_TE[row.visual_T], levels[0])
    assert torch.equal(deepstack, levels[1:])
    assert torch.equal(embed_TE[~row.visual_T], exact.embed(row.ids_T)[~row.visual_T])
    with pytest.raises(ValueError, match="do not fill"):
        fill(exact, row.ids_T, row.visual_T, [store.get("a")])


@torch.no_grad()
def test_cached_features_equal_fresh_ones(exact, store):
    row = pack(prompts(exact), *numbers(0, ((5, 3), (4,), (7,))), dtype=torch.float64)
    fresh = fill(exact, row.ids_T, row.visual_T, exact.encode(list(FILMS.values())))
    for cached, made in zip(gather(exact, store, row), fresh, strict=True):
        assert (cached is made is None) or torch.equal(cached, made)


@torch.no_grad()
def test_decoding_equals_the_full_forward(exact, store):
    asked, answers, length = prompts(exact), 2, 5
    ids, weights = numbers(1, ((length,) * answers,) * len(asked))
    want = weighted_logprobs(exact, store, pack(asked, ids, weights, dtype=torch.float64))
    prefixes = pack(asked, [[]] * 3, [[]] * 3, dtype=torch.float64)
    made = prefill(exact, prefixes, lambda: gather(exact, store, prefixes), "nothing")
    logits = exact.head(made.tips_NE).repeat_interleave(answers, 0)
    decode = Decode([made], answers, length)
    at = torch.tensor([int(prompt.position_3P.max()) + 1 for prompt in asked]).repeat_interleave(answers)
    flat = torch.tensor([answer for own in ids for answer in own])
    none = torch.zeros(len(flat), dtype=torch.bool)
    got = []
    for step in range(length):
        got.append(logits.log_softmax(-1).gather(1, flat[:, step : step + 1])[:, 0])
        position = (at + step).expand(3, -1)
        logits = exact.head(exact.hidden(exact.embed(flat[:, step]), position, none, None, decode))
        decode.at += 1
    assert_close(torch.stack(got, 1).flatten(), want, rtol=EXACT, atol=EXACT)


@pytest.fixture(params=["full", "lora", "alora"])
def adapted(request, folder):
    model = tiny.exact(folder)
    if request.param != "full":
        add_adapter(model, request.param, 4, 8.0)
        for x in model.adapter.weights().values():
            torch.nn.init.normal_(x.data, std=0.3)
        model.net.double()
    return model


@torch.no_grad()
def test_an_aloras_prefix_is_the_base_models_and_ends_before_the_header(adapted):
    kind = adapted.adapter and adapted.adapter.kind
    assert lead(adapted) == (len(adapted.header) if kind == "alora" else 0)
    films = dict(zip(FILMS, adapted.encode(list(FILMS.values())), strict=True))
    row = bare(adapted, prompts(adapted))
    assert row.layout.total == sum(len(prompt.ids) - lead(adapted) for prompt in prompts(adapted))

    def kv():
        made = compute(adapted, row, lambda handles: [films[handle] for handle in handles], "nothing")
        return torch.stack([x for pair in made.kv for x in pair])

    if kind is None:
        return
    acting = kv()
    with adapted.adapter.off():
        assert torch.equal(acting, kv()) == (kind == "alora")


def test_a_prefix_key_names_all_that_keys_and_values_depend_on(adapted):
    def key(*prompts):
        return prefix_key(adapted, bare(adapted, prompts))

    def text(*ids, features=None):
        ids = (*ids, *adapted.header[: lead(adapted)])
        return Prompt("t", ids, (), torch.zeros(3, len(ids), dtype=torch.int64), features, None)

    first = text(50, 51, 52)
    keys = {key(first), key(text(50, 52, 51)), key(text(50, 51, 52, features="a")), key(text(50, 51, 52, features="b"))}
    keys |= {key(text(50), text(51, 52)), key(text(50, 51), text(52))}
    assert len(keys) == 6
    assert key(replace(first, id="other")) == key(first)
    with torch.no_grad():
        before = key(first)
        for x in adapted.adapter.weights().values() if adapted.adapter else ():
            x.add_(1.0)
        assert key(first) == before
        adapted.norm.weight.add_(1.0)
        assert key(first) != before
