"""Sliced log-probabilities against a softmax written out, and what bounds their memory."""

import pytest
import torch
from tests.maths.ragged import normal
from tests.plain import logprob as plain
from torch.testing import assert_close

from longtake.maths.logprob import score_tokens

EXACT = 1e-12
R, E, V = 13, 6, 17


def world():
    hidden, weight = normal(0, R, E), normal(1, V, E)
    return hidden, weight, torch.arange(R) * 5 % V, normal(2, R).detach()


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("rows", [1, 4, 13, 100])
def test_equals_its_twin_however_it_is_sliced(rows, temperature):
    hidden, weight, target, share = world()
    scored = score_tokens(lambda h: h @ weight.T, hidden, target, temperature=temperature, rows=rows)
    logprob, entropy = plain.score_tokens(lambda h: h @ weight.T, hidden, target, temperature)
    assert_close(scored.logprob_R, logprob, rtol=EXACT, atol=EXACT)
    assert_close(scored.entropy_R, entropy, rtol=EXACT, atol=EXACT)
    got = torch.autograd.grad((scored.logprob_R * share).sum(), (hidden, weight))
    want = torch.autograd.grad((logprob * share).sum(), (hidden, weight))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)
    assert not scored.entropy_R.requires_grad


def test_temperature_is_1_unless_said():
    hidden, weight, target, _ = world()
    one, unsaid = (score_tokens(lambda h: h @ weight.T, hidden, target, **said) for said in ({"temperature": 1.0}, {}))
    assert torch.equal(one.logprob_R, unsaid.logprob_R)
    assert torch.equal(one.entropy_R, unsaid.entropy_R)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan")])
def test_temperatures_without_a_distribution_are_refused(temperature):
    with pytest.raises(ValueError, match=f"temperature must be above 0 and finite, got {temperature}"):
        score_tokens(lambda h: h, torch.zeros(2, 3), torch.tensor([0, 1]), temperature=temperature)


def test_at_most_a_slice_of_logits_is_made_and_none_is_kept():
    hidden, weight, target, _ = world()
    sizes, kept = [], []

    def head(h):
        sizes.append(len(h))
        return h @ weight.T

    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape) or x, lambda x: x):
        scored = score_tokens(head, hidden, target, rows=4)
    assert sizes == [4, 4, 4, 1]
    assert not any(V in shape and E not in shape for shape in kept)
    scored.logprob_R.sum().backward()
    assert sorted(sizes) == [1, 1] + [4] * 6  # each slice once more, in whatever order


def test_impossible_tokens_do_not_make_the_entropy_nan():
    scored = score_tokens(lambda h: h, torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([1]))
    assert_close(scored.entropy_R, torch.tensor([2.0]).log())


def test_half_precision_logits_are_refused():
    with pytest.raises(ValueError, match=r"float32, the head gave torch\.bfloat16"):
        score_tokens(lambda h: h.bfloat16(), torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="rows must be at least 1"):
        score_tokens(lambda h: h, torch.zeros(2, 3), torch.tensor([0, 1]), rows=0)


def test_no_tokens():
    scored = score_tokens(lambda h: h, torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert scored.logprob_R.shape == scored.entropy_R.shape == (0,)
