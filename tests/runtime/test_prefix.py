"""A prefix computed once against a row of its own for every answer: values and gradients, float64."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
import torch
from tests.models import tiny
from tests.plain.training import everyone
from transformers import LlamaConfig, LlamaModel, Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from longtake.maths.pack import answer_rows, pack, stem
from longtake.models.decoder import Decoder
from longtake.models.network import Network
from longtake.records import Features, Prompt
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import TILE, extend, finish, prefill

EXACT = 1e-12  # of the largest number compared
KEEPS = ("graph", "attention", "layers", "host")
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "When was it, and who?"), (None, "2 + 2?"), ("b", "Who?"), ("a", "Where?"))
LENGTHS = ((5, 3, 1), (4, 2), (6,), (), (2, 0, 7))
VOCABULARY = 300


def decoder(kind, layers=3):
    """A random text decoder with a head tied to its embeddings."""
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3,
    }  # fmt: skip
    torch.manual_seed(1)
    if kind == "llama":
        net = LlamaModel(LlamaConfig(**shape, head_dim=8))
    else:
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        net = Qwen2_5_VLTextModel(Qwen2_5_VLTextConfig(**shape, rope_parameters=rope))
    head = torch.nn.Linear(32, VOCABULARY, bias=False, dtype=torch.float64)
    net.double()
    head.weight = net.embed_tokens.weight
    tiny.exact_norms(net)
    return Decoder(net, head, rope_rows=1 if kind == "llama" else 3)


def text_prompts():
    """Two questions with a common beginning, and one apart."""
    generator = torch.Generator().manual_seed(5)
    ids = [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (9, 4, 6, 11)]
    made = []
    for name, features, own in (("q", "x", ids[0] + ids[1]), ("r", "x", ids[0] + ids[2]), ("s", None, ids[3])):
        made.append(Prompt(name, tuple(own), (), torch.arange(len(own)).expand(3, -1), features, None))
    return made


@pytest.fixture(scope="module", params=["qwen2_5", "llama", "qwen3_vl", "qwen3_vl, as many levels as layers"])
def case(request, tmp_path_factory):
    """(model, prompts, features by handle, answer lengths)."""
    if not request.param.startswith("qwen3"):
        return decoder(request.param), text_prompts(), {}, LENGTHS[:3]
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny"), layers=2 if "many" in request.param else 3))
    model.net.requires_grad_(True)
    model.tower.requires_grad_(False)
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    prompts = [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]
    return model, prompts, films, LENGTHS


def parameters(model):
    if not isinstance(model, Network):
        return dict(model.text.named_parameters())
    return {name: p for name, p in model.net.named_parameters() if p.requires_grad}


def filler(model, row, films):
    if not isinstance(model, Network):
        return lambda: (model.embed(row.ids_T), None)
    return lambda: fill(model, row.ids_T, row.visual_T, [films[h] for h in row.features if h is not None])


def drawn(lengths):
    generator = torch.Generator().manual_seed(3)
    ids = [[torch.randint(40, 250, (n,), generator=generator).tolist() for n in own] for own in lengths]
    weights = [[torch.randn(n, generator=generator, dtype=torch.float64).tolist() for n in own] for own in lengths]
    return ids, weights


def collect(model):
    return {name: p.grad.clone() for name, p in parameters(model).items() if p.grad is not None}


def plain(model, prompts, films, lengths):
    """Losses [answers] and gradients, a row of its own and a backward for every answer."""
    for p in parameters(model).values():
        p.grad = None
    losses = []
    for prompt, own, weights in zip(prompts, *drawn(lengths), strict=True):
        for ids, weight in zip(own, weights, strict=True):
            if not ids:
                losses.append(0.0)
                continue
            row = pack([prompt], [[ids]], [[weight]], dtype=torch.float64)
            embed, deepstack = filler(model, row, films)()
            hidden = model.hidden(embed, row.position_3T, row.visual_T, deepstack, everyone)
            logprob = model.head(hidden[row.predict_R]).log_softmax(-1)
            loss = -(logprob[torch.arange(len(ids)), row.target_R] * row.weight_R).sum()
            loss.backward()
            losses.append(loss.item())
    return losses, collect(model)


def shared(model, prompts, films, lengths, keep, most=10**6, *, lead=0, scale=1.0, tile=TILE):
    """The same by prefill, extend and finish."""
    for p in parameters(model).values():
        p.grad = None
    row = pack(prompts, *drawn(lengths), lead=lead, dtype=torch.float64)
    stems = stem(row)
    made = prefill(model, stems, filler(model, stems, films), keep)
    losses = [0.0] * sum(map(len, lengths))
    for part in answer_rows(row, most):
        hidden = extend(model, made, part)
        logprob = model.head(hidden).log_softmax(-1)
        loss = -logprob[torch.arange(len(part.target_R)), part.target_R] * part.weight_R
        for answer, one in zip(part.answer_R.tolist(), loss.tolist(), strict=True):
            losses[answer] += one
        loss.sum().backward()
    if keep != "nothing":
        finish(model, made, scale, tile)
    with pytest.raises(ValueError, match="no backward"):
        finish(model, made)
    return losses, collect(model)


def same(got, want):
    assert torch.allclose(
        *(torch.tensor(x[0], dtype=torch.float64) for x in (got, want)), rtol=0, atol=EXACT * max(map(abs, want[0]))
    )
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        assert (got[1][name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max().item()), name


@pytest.mark.parametrize(("keep", "most"), list(itertools.product(KEEPS, (10**6, 1))))
def test_a_shared_prefix_is_a_row_for_every_answer(case, keep, most):
    model, prompts, films, lengths = case
    want = plain(model, prompts, films, lengths)
    assert min(grad.abs().max() for grad in want[1].values()) > 0
    same(shared(model, prompts, films, lengths, keep, most), want)


@pytest.mark.parametrize("keep", KEEPS[1:])
def test_a_layer_may_be_computed_again_in_tiles(case, keep):
    model, prompts, films, lengths = case
    same(shared(model, prompts, films, lengths, keep, tile=7), plain(model, prompts, films, lengths))


@pytest.mark.parametrize("keep", KEEPS)
def test_answers_may_begin_with_the_prompts_last_tokens(case, keep):
    model, prompts, films, lengths = case
    same(shared(model, prompts, films, lengths, keep, lead=2), plain(model, prompts, films, lengths))


@pytest.mark.parametrize("keep", KEEPS)
def test_the_gradient_through_the_prefix_is_multiplied(case, keep):
    model, prompts, films, lengths = case
    whole, many = (shared(model, prompts, films, lengths, keep, scale=scale)[1] for scale in (1.0, 2.5))
    alone = shared(model, prompts, films, lengths, "nothing")[1]
    for name, grad in whole.items():
        own = alone.get(name, torch.zeros_like(grad))
        assert (grad - own).abs().max() > 1e-3, name
        assert (many[name] - own - 2.5 * (grad - own)).abs().max() <= EXACT * max(1.0, many[name].abs().max()), name


@pytest.mark.parametrize(("keep", "tile"), [("graph", TILE), ("layers", TILE), ("layers", 7)])
def test_a_tower_in_training_gets_its_gradient(case, keep, tile):
    """On every level that any answer can see: not what is added after the last layer."""
    model, prompts, films, lengths = case
    if not films:
        pytest.skip("no film")
    found = []
    for run in (plain, partial(shared, keep=keep, tile=tile)):
        leaves = {name: Features(film.level_LNE.clone().requires_grad_()) for name, film in films.items()}
        run(model, prompts, leaves, lengths)
        found.append({name: film.level_LNE.grad for name, film in leaves.items()})
    want, got = found
    assert want["a"].abs().amax((1, 2)).count_nonzero() == min(len(want["a"]), len(model.layers))
    assert (got["a"] - want["a"]).abs().max() <= EXACT * want["a"].abs().max()
    assert want["b"] is None  # nobody answers about it
    assert got["b"] is None or not got["b"].any()


def test_gradients_that_add_up_are_wider_than_half_precision():
    model, (prompt, *_) = decoder("llama"), text_prompts()
    model.text.bfloat16()
    row = pack([prompt], [[]], [[]])
    made = prefill(model, row, filler(model, row, {}), "layers")
    for layer, (once, dtype) in enumerate(((False, torch.float32), (True, torch.bfloat16))):
        assert {x.dtype for x in made.buffers(layer, once)} == {dtype}
    assert made.ends_SE.dtype == torch.float32


def test_gradients_of_an_end_that_many_answers_share_add_up_in_one_order():
    """On several threads too: else a run that was killed would end with other bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    model, (prompt, *_) = decoder("llama"), text_prompts()
    row = pack([prompt], [[(7,)] * 3000], [[(1.0,)] * 3000])
    made = prefill(model, stem(row), filler(model, stem(row), {}), "layers")
    made.ends_SE = made.ends_SE.detach().float().requires_grad_()
    (part,) = answer_rows(row, 10**6)
    gradient_RE = torch.randn(3000, made.ends_SE.shape[1], generator=torch.Generator().manual_seed(0))
    try:
        found = [torch.autograd.grad(extend(model, made, part), made.ends_SE, gradient_RE)[0] for _ in range(20)]
    finally:
        torch.set_num_threads(before)
    assert all(x.equal(found[0]) for x in found)
