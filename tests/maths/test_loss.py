"""Losses against their piecewise forms: value and gradient, and what must not change them."""

from itertools import pairwise

import pytest
import torch
from tests.maths.ragged import normal
from tests.plain import loss as plain
from torch.testing import assert_close

from longtake.maths import loss

EXACT = 1e-12
CLIP = {"clip_low": 0.2, "clip_high": 0.28}
CASES = [
    ("policy_gradient", {}),
    ("clipped_surrogate", CLIP),
    ("sequence_surrogate", {"clip_low": 0.1, "clip_high": 0.15}),
    ("clipped_weight", CLIP),
    ("clipped_weight", {"clip_low": 1.0, "clip_high": 1.0}),
]
LENGTHS = (5, 1, 9, 3, 12, 7, 2, 8, 6, 10)


def batch(seed=0):
    """logprob, old_logprob, weight (every fifth token 0), answer of ten answers."""
    answer = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    logprob = (normal(seed, len(answer)) - 2).detach().requires_grad_()
    old = (logprob + 0.4 * normal(seed + 1, len(answer)) + 0.2 * normal(seed + 2, len(LENGTHS))[answer]).detach()
    weight = (normal(seed + 3, len(LENGTHS)).detach().abs() * torch.tensor([1.0, -1.0] * 5))[answer]
    weight[::5] = 0
    return logprob, old, weight, answer


@pytest.mark.parametrize(("name", "clip"), CASES)
def test_equals_its_twin(name, clip):
    arguments = batch()
    got = getattr(loss, name)(*arguments, **clip).total
    want = getattr(plain, name)(*arguments, **clip)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x, arguments[0])[0] for x in (got, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)
    assert (gradients[0] != 0).sum() > 10


def test_clipping_is_met_on_both_sides():
    """Otherwise the test above would not see a swapped bound."""
    logprob, old, weight, _ = batch()
    ratio = (logprob - old).exp()
    assert min(((weight > 0) & (ratio > 1.28)).sum(), ((weight < 0) & (ratio < 0.8)).sum()) >= 3
    assert min(((weight > 0) & (ratio < 0.8)).sum(), ((weight < 0) & (ratio > 1.28)).sum()) >= 3


@pytest.mark.parametrize(("name", "clip"), CASES)
def test_cutting_the_batch_changes_nothing(name, clip):
    arguments = batch()
    function = getattr(loss, name)
    whole = function(*arguments, **clip)
    cuts = [0, sum(LENGTHS[:2]), sum(LENGTHS[:7]), sum(LENGTHS)]
    parts = [function(*(x[a:b] for x in arguments), **clip) for a, b in pairwise(cuts)]
    for field in ("total", "clipped", "kl_k1", "kl_k3", "count"):
        assert_close(sum(getattr(part, field) for part in parts), getattr(whole, field), rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x, arguments[0])[0] for x in (whole.total, sum(part.total for part in parts))]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("name", "clip"), CASES)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf"), 1e4])
def test_a_token_of_weight_zero_cannot_poison(name, clip, poison):
    logprob, old, weight, answer = batch()
    dead = weight == 0
    clean = getattr(loss, name)(logprob, old, weight, answer, **clip)
    dirty_logprob = torch.where(dead, poison, logprob).detach().requires_grad_()
    dirty = getattr(loss, name)(dirty_logprob, torch.where(dead, -poison, old), weight, answer, **clip)
    for field in ("total", "clipped", "kl_k1", "kl_k3", "count"):
        assert_close(getattr(dirty, field), getattr(clean, field), rtol=EXACT, atol=EXACT)
    gradient = torch.autograd.grad(dirty.total, dirty_logprob)[0]
    assert_close(gradient, torch.autograd.grad(clean.total, logprob)[0], rtol=EXACT, atol=EXACT)
    assert (gradient[dead] == 0).all()


def test_on_policy_every_ratio_loss_has_the_policy_gradient():
    logprob, _, weight, answer = batch()
    want = torch.autograd.grad(loss.policy_gradient(logprob, logprob.detach(), weight, answer).total, logprob)[0]
    for name, clip in CASES[1:]:
        if name == "sequence_surrogate":  # shares an answer's gradient among its tokens
            continue
        terms = getattr(loss, name)(logprob, logprob.detach(), weight, answer, **clip)
        assert_close(torch.autograd.grad(terms.total, logprob)[0], want, rtol=EXACT, atol=EXACT)
        assert terms.clipped == 0


def test_numbers_to_watch():
    logprob, old, weight, answer = batch()
    terms = loss.clipped_surrogate(logprob, old, weight, answer, **CLIP)
    live = [i for i in range(len(weight)) if weight[i] != 0]
    assert int(terms.count) == len(live)
    assert int(terms.clipped) == plain.clipped_tokens(logprob, old, weight, 0.2, 0.28) > 0
    gaps = [(old[i] - logprob[i]).item() for i in live]
    assert float(terms.kl_k1) == pytest.approx(sum(gaps), rel=EXACT)
    assert float(terms.kl_k3) == pytest.approx(sum(2.718281828459045 ** (-gap) - 1 + gap for gap in gaps), rel=1e-9)
    assert not any(x.requires_grad for x in (terms.clipped, terms.kl_k1, terms.kl_k3, terms.count))
    bounded = loss.clipped_weight(logprob, old, weight, answer, **CLIP)
    outside = [i for i in live if not 0.8 <= (logprob[i] - old[i]).exp().item() <= 1.28]
    assert int(bounded.clipped) == len(outside) > 0
    assert int(loss.policy_gradient(logprob, old, weight, answer).clipped) == 0


def test_no_tokens_is_zero():
    empty, none = torch.zeros(0, requires_grad=True), torch.zeros(0, dtype=torch.int64)
    for name, clip in CASES:
        terms = getattr(loss, name)(empty, empty.detach(), empty.detach(), none, **clip)
        assert terms.total.item() == 0
        assert int(terms.count) == 0


def distributions():
    return normal(1, 6).log_softmax(0), normal(2, 6).detach().log_softmax(0)


@pytest.mark.parametrize("name", ["kl_k1", "kl_k3"])
def test_mean_over_all_samples_is_the_kl(name):
    p, q = distributions()
    true_kl = (p.exp() * (p - q)).sum()
    assert_close((p.exp() * getattr(loss, name)(p, q)).sum(), true_kl, rtol=EXACT, atol=EXACT)
    assert name == "kl_k1" or (loss.kl_k3(p, q) >= 0).all()


def test_mean_gradient_of_k2_is_that_of_the_kl():
    logits, q = normal(1, 6), distributions()[1]
    p = logits.log_softmax(0)
    want = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)[0]
    got = torch.autograd.grad((p.detach().exp() * loss.kl_k2(p, q)).sum(), logits)[0]
    assert_close(got, want, rtol=EXACT, atol=EXACT)


def test_kl_penalty_is_a_weighted_sum_of_live_tokens():
    logprob, reference, weight, _ = batch()
    want = sum(weight[i] * (torch.exp(reference[i] - logprob[i]) - 1 - (reference[i] - logprob[i])) for i in range(63))
    got = loss.kl_penalty(logprob, torch.where(weight == 0, torch.nan, reference), weight)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x, logprob)[0] for x in (got, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)
