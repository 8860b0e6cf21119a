"""A prefix shared out over ranks against a row and a backward of its own for every answer: float64, every way."""

from __future__ import annotations

import pytest
import torch
from tests.models import tiny
from tests.ranks import run
from tests.runtime.test_prefix import ASKED, FILMS, LENGTHS, VOCABULARY, collect, drawn, parameters, plain, text_prompts
from transformers import LlamaConfig, LlamaModel

from longtake.maths.pack import answer_rows, pack, stem
from longtake.models.decoder import Decoder
from longtake.models.network import Network
from longtake.parallel.axis import Axis
from longtake.parallel.ranks import Ranks
from longtake.records import Features
from longtake.runtime import rows
from longtake.runtime.prefix import TILE, extend, finish
from longtake.runtime.shared import Shared, Whole, fits, over

EXACT = 1e-12  # of the largest number compared
WAYS = [("graph", TILE), ("attention", TILE), ("layers", TILE), ("layers", 4), ("host", TILE), ("attention", 5)]
HEADS = {"seven heads": (7, 1), "six of three": (6, 3), "eight of four": (8, 4)}


def decoder(heads, kv_heads):
    torch.manual_seed(1)
    shape = {
        "vocab_size": VOCABULARY, "hidden_size": 8 * heads, "intermediate_size": 40, "num_hidden_layers": 3,
        "head_dim": 8, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "initializer_range": 0.3,
    }  # fmt: skip
    net = LlamaModel(LlamaConfig(**shape)).double()
    head = torch.nn.Linear(8 * heads, VOCABULARY, bias=False, dtype=torch.float64)
    head.weight = net.embed_tokens.weight
    tiny.exact_norms(net)
    return Decoder(net, head, rope_rows=1)


def seeing(folder):
    """A Qwen3-VL with DeepStack, its prompts and its features."""
    model = tiny.exact(tiny.checkpoint(folder, layers=3))
    model.net.requires_grad_(True)
    model.tower.requires_grad_(False)
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    return model, [model.prompt(tiny.ask(text, str(n)), receipts[f], f) for n, (f, text) in enumerate(ASKED)], films


@pytest.fixture(scope="module", params=[*HEADS, "qwen3_vl"])
def case(request, tmp_path_factory):
    """(model, prompts, features by handle, answer lengths, losses, gradients)."""
    if request.param in HEADS:
        made = decoder(*HEADS[request.param]), text_prompts(), {}, LENGTHS[:3]
    else:
        made = *seeing(tmp_path_factory.mktemp("tiny")), LENGTHS
    return *made, *plain(*made)


class Plainly:
    """A bare decoder as rows.compute meets a model."""

    adapter = None

    def __init__(self, model):
        self.model, self.net = model, model.text

    def __getattr__(self, name):
        return getattr(self.model, name)


def learned(world, case, ways):
    """By way: (losses of all answers, gradients summed over ranks, rows of keys gathered)."""
    model, prompts, films, lengths = case
    met = model if isinstance(model, Network) else Plainly(model)
    row = pack(prompts, *drawn(lengths), dtype=torch.float64)
    found = []
    for keep, tile, how in ways:
        for p in parameters(model).values():
            p.grad = None
        ranks = Ranks(sequence=world, how=how)
        made = rows.compute(met, stem(row), lambda handles: [films[h] for h in handles if h in films], keep, ranks)
        losses = [0.0] * sum(map(len, lengths))
        for number, part in enumerate(answer_rows(row, 4)):
            if number % world.size != world.index:
                continue
            logprob = model.head(extend(model, made, part)).log_softmax(-1)
            loss = -logprob[torch.arange(len(part.target_R)), part.target_R] * part.weight_R
            for answer, one in zip(part.answer_R.tolist(), loss.tolist(), strict=True):
                losses[answer] += one
            loss.sum().backward()
        finish(model, made, tile=tile)
        for p in parameters(model).values():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        world.add_([p.grad for p in parameters(model).values()])
        every = [sum(own) for own in zip(*world.gather(losses), strict=True)]
        found.append((every, collect(model), isinstance(made.over, Shared)))
    return found


def same(got, want):
    assert torch.allclose(
        torch.tensor(got[0]).double(), torch.tensor(want[0]).double(), rtol=0, atol=1e-12 * max(map(abs, want[0]))
    )
    most = max(float(g.abs().max()) for g in want[1].values())
    assert got[1].keys() >= want[1].keys()
    for name, gradient in got[1].items():
        expected = want[1].get(name, torch.zeros_like(gradient))
        assert float((gradient - expected).abs().max()) <= EXACT * most, name


@pytest.mark.parametrize("size", [2, 3, 4])
def test_n_ranks_give_one_ranks_losses_and_gradients(case, size: int) -> None:
    ways = [(keep, tile, "gather") for keep, tile in WAYS]
    if fits(case[0].text.config.num_attention_heads, case[0].text.config.num_key_value_heads, size):
        ways += [(keep, tile, "ulysses") for keep, tile in WAYS]
    else:
        ways.append(("graph", TILE, "ulysses"))  # keys are gathered all the same
    for every in run(size, learned, case[:4], ways):
        for got in every:
            assert got[2]
            same(got, case[4:])


def test_a_short_row_is_computed_by_each(case) -> None:
    layout = stem(pack(case[1], *drawn(case[3]), dtype=torch.float64)).layout
    ranks = layout.total // 2
    assert isinstance(over(layout, axis_of(ranks)), Shared)
    assert type(over(layout, axis_of(ranks + 1))) is Whole
    for got in (one for every in run(2, short, case[:4]) for one in every):
        same(got, case[4:])


def axis_of(size):
    return Ranks(sequence=Axis(0, size))


def short(world, case):
    from longtake.runtime import shared

    shared.LEAST = 10**6
    return learned(world, case, [("graph", TILE, "gather"), ("layers", TILE, "gather")])


def test_what_fits_the_heads() -> None:
    assert [ranks for ranks in range(1, 33) if fits(28, 4, ranks)] == [1, 2, 4, 28]
    assert [ranks for ranks in range(1, 33) if fits(32, 8, ranks)] == [1, 2, 4, 8, 16, 32]
    assert [ranks for ranks in range(1, 9) if fits(7, 1, ranks)] == [1, 7]


def moved(world, case, how):
    model, prompts, _, lengths = case
    row = stem(pack(prompts, *drawn(lengths), dtype=torch.float64))
    world.traffic.bytes.clear()
    world.traffic.padding = 0
    with torch.no_grad():
        rows.compute(Plainly(model), row, lambda hs: [], "nothing", Ranks(sequence=world, how=how))
    return world.traffic, row.layout.total


@pytest.mark.parametrize("how", ["gather", "ulysses"])
def test_keys_travel_as_few_as_they_are(how: str) -> None:
    """A layer's keys and values once, of the key heads alone; by heads, queries and outputs once more."""
    heads, kv_heads, layers, ranks = 8, 4, 3, 2
    for traffic, total in run(ranks, moved, (decoder(heads, kv_heads), text_prompts(), {}, LENGTHS[:3]), how):
        per_rank = -(-total // ranks)
        ends = 2 * 64 * 8  # of three segments, two on one of the ranks
        assert traffic.bytes["rows"] in (layers * per_rank * 2 * kv_heads * 8 * 8 + n * ends // 2 for n in (2, 3))
        assert traffic.padding <= 0.02 * traffic.bytes["rows"] + layers * 2 * kv_heads * 8 * 8
        asked = (layers - 1) * 2 * heads * 8 * 8  # the last layer's few ends go by tokens
        assert traffic.bytes.get("swap", 0) == (
            0 if how == "gather" else pytest.approx(asked * total / ranks, rel=0.05)
        )


def test_features_are_only_those_of_ones_tokens(case) -> None:
    if case[2]:
        model, prompts, films, lengths = case[:4]
        assert run(2, sliced, (model, prompts, films, lengths))


def sliced(world, case):
    model, prompts, films, lengths = case
    row = stem(pack(prompts, *drawn(lengths), dtype=torch.float64))
    doubled = {name: Features(2 * one.level_LNE) for name, one in films.items()}
    with torch.no_grad():
        a, b = (
            rows.compute(model, row, lambda hs, own=own: [own[h] for h in hs], "nothing", Ranks(sequence=world)).kv
            for own in (films, doubled)
        )
    assert not torch.equal(a[1][0], b[1][0])
    return True
