"""DPO, IPO and SimPO against their plain forms: value and gradient, what is watched, and what must not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import normal, quick
from tests.plain import preference as plain
from torch.testing import assert_close

from longtake.maths import loss

EXACT = 1e-12
CASES = [
    ("dpo", {"beta": 0.1}),
    ("dpo", {"beta": 0.7, "smoothing": 0.2}),
    ("ipo", {"beta": 0.3}),
    ("simpo", {"beta": 2.0, "margin": 0.5}),
]
LENGTHS = (5, 1, 9, 3, 12, 7, 2, 8)
cases = pytest.mark.parametrize(("name", "knobs"), CASES)


def batch(lengths=LENGTHS, seed=0):
    """logprob, old_logprob, weight (one number a pair; every fifth token is out), answer."""
    answer = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    logprob = (normal(seed, len(answer)) - 2).detach().requires_grad_()
    old = (logprob + 0.8 * normal(seed + 1, len(answer))).detach()
    weight = (normal(seed + 2, len(lengths) // 2 + 1).detach().abs() + 0.5)[answer // 2]
    weight[2::5] = 0
    return logprob, old, weight, answer


@cases
def test_equals_its_twin(name, knobs):
    arguments = batch()
    got = getattr(loss, name)(*arguments, **knobs)
    want = getattr(plain, name)(*arguments, **knobs)
    assert_close(got.total, want, rtol=EXACT, atol=EXACT)
    assert int(got.count) == 4
    gradients = [torch.autograd.grad(x, arguments[0])[0] for x in (got.total, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)
    assert ((gradients[0] != 0) == (arguments[2] != 0)).all()


@cases
@quick
@given(lengths=st.lists(st.integers(0, 4), min_size=2, max_size=8).filter(lambda lengths: len(lengths) % 2 == 0))
def test_ragged_pairs_and_absent_answers(name, knobs, lengths):
    """Answers without a token, or without one of weight, and pairs with them."""
    arguments = batch(lengths, seed=5)
    got = getattr(loss, name)(*arguments, **knobs)
    want = getattr(plain, name)(*arguments, **knobs)
    assert_close(got.total, want, rtol=EXACT, atol=EXACT)
    assert int(got.count) == len(plain.pairs(*arguments))


@cases
def test_cutting_between_pairs_changes_nothing(name, knobs):
    arguments = batch()
    function = getattr(loss, name)
    whole = function(*arguments, **knobs)
    cut = sum(LENGTHS[:4])
    parts = [function(*(x[:cut] for x in arguments), **knobs), function(*(x[cut:] for x in arguments), **knobs)]
    assert_close(parts[0].total + parts[1].total, whole.total, rtol=EXACT, atol=EXACT)
    assert int(parts[0].count + parts[1].count) == int(whole.count)
    for key, value in whole.watched.items():
        assert_close(parts[0].watched[key] + parts[1].watched[key], value, rtol=EXACT, atol=EXACT)


@cases
def test_half_a_pair_adds_nothing(name, knobs):
    arguments = batch()
    start = LENGTHS[0]  # the chosen answer of the first pair is elsewhere
    got = getattr(loss, name)(*(x[start:] for x in arguments), **knobs)
    want = getattr(loss, name)(*(x[start + LENGTHS[1] :] for x in arguments), **knobs)
    assert_close(got.total, want.total, rtol=EXACT, atol=EXACT)
    assert int(got.count) == 3
    alone = getattr(loss, name)(*(x[:start] for x in arguments), **knobs)
    assert alone.total.item() == int(alone.count) == 0
    assert (torch.autograd.grad(alone.total, arguments[0])[0] == 0).all()


@cases
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_a_token_of_weight_zero_cannot_poison(name, knobs, poison):
    logprob, old, weight, answer = batch()
    dead = weight == 0
    clean = getattr(loss, name)(logprob, old, weight, answer, **knobs)
    dirty_logprob = torch.where(dead, poison, logprob).detach().requires_grad_()
    dirty = getattr(loss, name)(dirty_logprob, torch.where(dead, -poison, old), weight, answer, **knobs)
    assert_close(dirty.total, clean.total, rtol=EXACT, atol=EXACT)
    gradient = torch.autograd.grad(dirty.total, dirty_logprob)[0]
    assert_close(gradient, torch.autograd.grad(clean.total, logprob)[0], rtol=EXACT, atol=EXACT)


@cases
def test_what_is_watched(name, knobs):
    arguments = batch()
    got = getattr(loss, name)(*arguments, **knobs)
    reward = getattr(plain, f"{name}_rewards")
    beta = knobs["beta"]
    rewards = [(reward(c, beta).item(), reward(r, beta).item()) for _, c, r in plain.pairs(*arguments)]
    want = {
        "chosen": sum(c for c, _ in rewards),
        "rejected": sum(r for _, r in rewards),
        "margin": sum(c - r for c, r in rewards),
        "right": sum(c > r for c, r in rewards),
        "tokens": int((arguments[2] != 0).sum()),
    }
    assert {key: float(value) for key, value in got.watched.items()} == pytest.approx(want, rel=EXACT)
    assert 0 < want["right"] < len(rewards)
    others = (got.clipped, got.kl_k1, got.kl_k3)
    assert not any(x.requires_grad for x in (*got.watched.values(), got.count, *others))
    assert all(float(x) == 0 for x in others)


def test_at_the_reference_dpo_is_log_2_and_all_are_half_right():
    logprob, _, weight, answer = batch()
    got = loss.dpo(logprob, logprob.detach(), weight, answer, beta=0.1)
    want = sum(float(w) for w, *_ in plain.pairs(logprob, logprob, weight, answer)) * torch.tensor(2.0).double().log()
    assert_close(got.total, want, rtol=EXACT, atol=EXACT)
    assert float(got.watched["right"]) == 2.0


def test_simpo_does_not_read_a_reference():
    logprob, old, weight, answer = batch()
    got = loss.simpo(logprob, torch.full_like(old, torch.nan), weight, answer, beta=2.0, margin=0.5)
    want = loss.simpo(logprob, old, weight, answer, beta=2.0, margin=0.5)
    assert_close(got.total, want.total, rtol=0, atol=0)


@cases
def test_several_weights_in_a_pair_are_refused(name, knobs):
    logprob, old, weight, answer = batch()
    weight[1] *= 2
    with pytest.raises(ValueError, match="one weight"):
        getattr(loss, name)(logprob, old, weight, answer, **knobs)


@cases
def test_no_tokens_is_zero(name, knobs):
    empty, none = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    terms = getattr(loss, name)(empty, empty.detach(), empty.detach(), none, **knobs)
    terms.total.backward()
    assert terms.total.item() == int(terms.count) == 0
