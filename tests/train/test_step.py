"""One optimizer step: sums over rows however they are cut, divided once; nothing is learned from what is not finite."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.models import tiny
from torch import nn

from longtake.errors import UserError
from longtake.maths.loss import clipped_surrogate, cross_entropy, sequence_surrogate
from longtake.maths.pack import pack
from longtake.train.rows import chunks
from longtake.train.step import (
    MOST_BAD,
    Objective,
    Passes,
    Sums,
    adamw,
    backward,
    count_bad,
    step_optimizer,
)

EXACT = 1e-12  # of the largest number compared
NUMBERS = ("loss", "entropy", "clipped", "kl", "tokens")
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), (None, "2 + 2?"), ("b", "Who gave the gem away?"), ("a", "When?"))
LENGTHS = ((5, 3), (4, 1, 2), (7,), (2, 2))
LOSSES = {
    "cross_entropy": cross_entropy,
    "clipped": partial(clipped_surrogate, clip_low=0.2, clip_high=0.28),
    "sequence": partial(sequence_surrogate, clip_low=0.2, clip_high=0.28),
}
FAR = 1e9  # a norm that nothing is clipped to
WHOLE = Passes()
SPREADS = 4  # standard deviations of a number of draws


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def films(model):
    with torch.no_grad():
        return dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))


@pytest.fixture(scope="module")
def items(model):
    """(prompt, ids, weights, old log-probabilities) of four questions with and without a film."""
    generator = torch.Generator().manual_seed(0)

    def numbers(make):
        return [[make(n) for n in own] for own in LENGTHS]

    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    prompts = [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]
    ids = numbers(lambda n: torch.randint(40, 250, (n,), generator=generator).tolist())
    weights = numbers(lambda n: torch.randn(n, generator=generator).tolist())
    old = numbers(lambda n: (-5 + torch.randn(n, generator=generator)).tolist())
    return list(zip(prompts, ids, weights, old, strict=True))


@pytest.fixture
def grads(model, films):
    """Sums and gradients of items that are packed into rows of at most `budget` tokens."""

    def run(items, loss, budget=10**6, on_policy=False, passes=WHOLE, scale=1.0, **heat):
        model.net.zero_grad()
        sums = Sums()
        for part in chunks(items, lambda item: len(item[0].ids) + sum(map(len, item[1])), budget):
            row = pack(*(list(column) for column in zip(*part, strict=True)), dtype=torch.float64)
            objective, seen = Objective(loss, on_policy, **heat), lambda handles: [films[h] for h in handles]
            sums += backward(model, seen, row, objective, passes, scale=scale)
        return sums, {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}

    yield run
    model.net.zero_grad()


def close(got, want):
    assert abs(got - want) <= EXACT * max(1.0, abs(want))


def same_grads(got, want):
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert (got[name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max().item()), name


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("on_policy", [True, False])
def test_cutting_a_batch_into_rows_changes_nothing(grads, items, loss, on_policy):
    whole, want = grads(items, LOSSES[loss], on_policy=on_policy)
    assert max(grad.abs().max() for grad in want.values()) > 0.01
    assert whole.tokens == sum(sum(own) for own in LENGTHS)
    longest = max(len(prompt.ids) + sum(map(len, ids)) for prompt, ids, *_ in items)
    for budget in (1, 2 * longest):
        sums, got = grads(items, LOSSES[loss], budget, on_policy)
        for name in NUMBERS:
            close(getattr(sums, name), getattr(whole, name))
        same_grads(got, want)


@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_answers_in_runs_change_nothing(grads, items, keep):
    whole, want = grads(items, LOSSES["clipped"])
    sums, got = grads(items, LOSSES["clipped"], passes=Passes(keep, answer_tokens=4))
    for name in NUMBERS:
        close(getattr(sums, name), getattr(whole, name))
    same_grads(got, want)


def test_the_gradient_through_prefixes_is_scaled(grads, items):
    one, none, many = (grads(items, LOSSES["clipped"], scale=scale)[1] for scale in (1.0, 0.0, 3.0))
    same_grads(many, {name: none[name] + 3 * (grad - none[name]) for name, grad in one.items()})
    assert min((one[name] - grad).abs().max() for name, grad in none.items()) > 1e-3


@pytest.mark.parametrize("p", [0.125, 0.5])
def test_a_prefix_has_its_gradient_as_often_as_asked(p):
    """It is drawn by the run's seed and the prefix's key, and counts 1/p: the mean is the exact gradient."""
    keys = [(step, f"q{n}") for step in range(20) for n in range(100)]
    passes = Passes("layers", prefix_gradient=p, seed=1)
    scales = [passes.scale(*key) for key in keys]
    assert set(scales) == {0.0, 1 / p}
    spread = math.sqrt(len(keys) * p * (1 - p))
    assert abs(scales.count(1 / p) - p * len(keys)) < SPREADS * spread
    assert [passes.kept(9, *key) for key in keys] == ["layers" if scale else "nothing" for scale in scales]
    assert scales[:100] != scales[100:200]
    assert scales != [Passes("layers", prefix_gradient=p, seed=2).scale(*key) for key in keys]
    assert {WHOLE.scale(*key) for key in keys} == {1.0}
    assert {Passes(prefix_gradient=0.0).scale(*key) for key in keys} == {0.0}


def test_order_and_grouping_change_nothing(grads, items):
    _, want = grads(items, LOSSES["clipped"])
    _, turned = grads(items[::-1], LOSSES["clipped"])
    same_grads(turned, want)
    apart = [(p, [i], [w], [o]) for p, ids, weights, old in items for i, w, o in zip(ids, weights, old, strict=True)]
    _, split = grads(apart, LOSSES["clipped"])
    same_grads(split, want)


def test_on_policy_the_ratio_is_1(grads, items):
    """Then the clipped loss is minus the weights, and its gradient is that of -w log p."""
    sums, got = grads(items, LOSSES["clipped"], on_policy=True)
    close(sums.loss, -sum(w for *_, weights, _ in items for own in weights for w in own))
    assert sums.clipped == sums.kl == 0.0
    _, want = grads(items, LOSSES["cross_entropy"])
    same_grads(got, want)
    off, _ = grads(items, LOSSES["clipped"])
    assert off.clipped > 0
    assert off.kl > 0


def test_tokens_of_weight_0_teach_nothing(grads, items):
    """Neither in value nor in gradient, whatever they are."""
    kept, rest = items[:2], items[2:]
    _, want = grads(kept, cross_entropy)
    idle = [(p, ids, [[0.0] * len(own) for own in ids], old) for p, ids, _, old in rest]
    sums, got = grads([*kept, *idle], cross_entropy)
    assert sums.tokens == sum(sum(own) for own in LENGTHS[:2])
    same_grads(got, want)
    turned = [(p, [own[::-1] for own in ids], weights, old) for p, ids, weights, old in idle]
    same_grads(grads([*kept, *turned], cross_entropy)[1], want)


def test_entropy_is_that_of_the_tokens_that_count(grads, items, model):
    sums, _ = grads(items, cross_entropy)
    turned = [(p, ids, [[-w for w in own] for own in weights], old) for p, ids, weights, old in items]
    close(grads(turned, cross_entropy)[0].entropy, sums.entropy)  # a mistake's tokens count as well
    assert 0 < sums.means()["entropy"] < torch.log(torch.tensor(float(len(model.tokenizer))))
    idle = [(p, ids, [[0.0] * len(own) for own in ids], old) for p, ids, _, old in items]
    none, _ = grads(idle, cross_entropy)
    assert (none.entropy, none.tokens, none.loss) == (0.0, 0.0, 0.0)
    assert none.means().keys() == {"entropy", "clipped", "kl"}
    assert all(map(math.isnan, none.means().values()))  # a mean of nothing is no number


@pytest.mark.parametrize("heat", [0.7, 2.0])
def test_the_policy_is_the_distribution_that_was_sampled_from(grads, items, heat, model):
    """A head whose weights are divided by the temperature gives the same sums, and its gradient times 1 / heat."""
    sums, got = grads(items, LOSSES["clipped"], temperature=heat)
    real = type(model).head
    try:
        type(model).head = lambda self, hidden: real(self, hidden) / heat
        want, wanted = grads(items, LOSSES["clipped"])
    finally:
        type(model).head = real
    for name in NUMBERS:
        close(getattr(sums, name), getattr(want, name))
    same_grads(got, wanted)
    plain, _ = grads(items, LOSSES["clipped"])
    assert abs(sums.loss - plain.loss) > 0.1
    assert abs(sums.entropy - plain.entropy) > 0.1


def layer():
    torch.manual_seed(0)
    net = nn.Linear(3, 2, dtype=torch.float64)
    for p in net.parameters():
        p.grad = torch.randn_like(p)
    return net


def after(net, **settings):
    """Weights after a step of plain gradient descent, and the norm."""
    sgd = torch.optim.SGD(net.parameters(), lr=123.0)
    before = [p.detach().clone() for p in net.parameters()]
    norm = step_optimizer(sgd, list(net.parameters()), **({"count": 1.0, "lr": 0.5, "max_norm": FAR} | settings))
    return [p.detach() - b for p, b in zip(net.parameters(), before, strict=True)], norm


def test_the_summed_gradient_is_divided_by_the_count():
    net = layer()
    want = [-0.5 * p.grad / 4 for p in net.parameters()]
    moved, norm = after(net, count=4.0)
    torch.testing.assert_close(moved, want, rtol=EXACT, atol=EXACT)
    close(norm, (torch.cat([w.flatten() for w in want]).norm() / 0.5).item())
    assert all(p.grad is None for p in net.parameters())


def test_gradients_are_clipped_after_the_division():
    net = layer()
    flat = torch.cat([p.grad.flatten() for p in net.parameters()]) / 2
    moved, norm = after(net, count=2.0, max_norm=0.1)
    close(norm, flat.norm().item())
    clipped = torch.cat([m.flatten() for m in moved])
    torch.testing.assert_close(clipped, -0.5 * 0.1 * flat / (flat.norm() + 1e-6), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_changes_no_weight(bad):
    net = layer()
    optimizer = adamw(net.parameters(), 0.1, (0.9, 0.95), 0.1)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    step_optimizer(optimizer, list(net.parameters()), count=1.0, lr=0.1, max_norm=1.0)
    weights = [p.detach().clone() for p in net.parameters()]
    moments = [value.clone() for state in optimizer.state.values() for value in state.values()]
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    net.weight.grad[0, 0] = bad
    norm = step_optimizer(optimizer, list(net.parameters()), count=1.0, lr=0.1, max_norm=1.0)
    assert not torch.isfinite(torch.tensor(norm))
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))
    kept = [value for state in optimizer.state.values() for value in state.values()]
    assert all(torch.equal(now, before) for now, before in zip(kept, moments, strict=True))
    assert all(p.grad is None for p in net.parameters())


def test_a_step_without_gradients_does_nothing():
    net = layer()
    for p in net.parameters():
        p.grad = None
    moved, norm = after(net)
    assert norm == 0.0
    assert not any(m.any() for m in moved)


def test_five_steps_without_a_finite_gradient_end_the_run():
    bad = 0
    for norm in (math.nan, math.inf, math.nan, -math.inf):
        bad = count_bad(norm, bad)
    assert (bad, MOST_BAD) == (4, 5)
    assert count_bad(3.0, bad) == 0  # one good step begins the count anew
    with pytest.raises(UserError, match="5 steps in a row") as said:
        count_bad(math.nan, bad)
    assert "not finite" in str(said.value)
    assert len(str(said.value).splitlines()) <= 6


@given(st.lists(st.integers(1, 9)), st.integers(1, 20))
def test_runs_are_as_long_as_the_budget_allows(lengths, budget):
    runs = list(chunks(lengths, lambda n: n, budget))
    assert [n for run in runs for n in run] == lengths
    for run, following in zip(runs, [*runs[1:], None], strict=False):
        assert run
        assert sum(run) <= budget or len(run) == 1
        assert following is None or sum(run) + following[0] > budget


def test_a_long_prefix_keeps_no_graph_where_memory_chose() -> None:
    chosen = Passes("graph", graph_tokens=100)
    assert [chosen.of(tokens) for tokens in (100, 101)] == ["graph", "layers"]
    assert [Passes("host", graph_tokens=100).of(tokens) for tokens in (100, 101)] == ["host", "host"]
    assert Passes("graph").of(10**9) == "graph"
    assert chosen.kept(101, "x") == "layers"
