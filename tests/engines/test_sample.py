"""Inverse transform sampling: the right distribution, one number a token."""

from __future__ import annotations

from math import sqrt

import pytest
import torch

from longtake.engines.loop import sample

SPREADS = 5  # standard deviations of a chi-square
COUNT = 20_000
LOGITS_V = torch.tensor([0.3, -1.0, 2.0, 0.0, -3.0, 1.1, 0.3])


def drawn(heat, logits_V=LOGITS_V, count=COUNT):
    chance = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sample(logits_V.expand(count, -1), torch.full((count, 1), heat), chance)


def surprise(found, probability_V):
    """Standard deviations of the chi-square above what is expected."""
    expected = probability_V * COUNT
    chi = ((torch.bincount(found, minlength=len(expected)) - expected).square() / expected).sum()
    return (chi - (len(expected) - 1)) / sqrt(2 * (len(expected) - 1))


@pytest.mark.parametrize("heat", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_the_softmax_says(heat):
    found = drawn(heat)
    assert surprise(found, (LOGITS_V / heat).softmax(-1)) < SPREADS
    for other in {0.5, 1.0, 2.0} - {heat}:
        assert surprise(found, (LOGITS_V / other).softmax(-1)) > 10 * SPREADS


def test_one_number_decides():
    share = LOGITS_V.double().softmax(-1)
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), share.cumsum(-1)])
    for token in range(len(share)):
        inside = torch.stack([edges[token] + 1e-9, edges[token + 1] - 1e-9])
        assert sample(LOGITS_V.expand(2, -1), torch.ones(2, 1), inside).tolist() == [token, token]


def test_temperature_0_is_the_likeliest_whatever_the_number():
    assert drawn(0.0).unique().tolist() == [2]
    logits = torch.tensor([[1.0, 5.0, 5.0], [7.0, 1.0, 1.0]])
    assert sample(logits, torch.zeros(2, 1), torch.tensor([0.9, 0.9])).tolist() == [1, 0]


def test_greedy_and_sampled_side_by_side():
    logits = LOGITS_V.expand(3, -1)
    mixed = sample(logits, torch.tensor([[0.0], [1.0], [2.0]]), torch.full((3,), 0.999, dtype=torch.float64))
    assert mixed.tolist() == [2, 6, 6]


@pytest.mark.parametrize("chance", [0.0, 0.5, 1 - 2**-53])
def test_what_cannot_be_is_never_drawn(chance):
    """First and last token have probability 0; the number may be as small or as large as it gets."""
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    assert sample(logits, torch.ones(1, 1), torch.tensor([chance], dtype=torch.float64)).item() in (1, 2)


def test_half_precision_logits_are_sampled_in_full():
    many = torch.zeros(1, 4096)
    places = [int(sample(many, torch.ones(1, 1), torch.tensor([k / 64], dtype=torch.float64))) for k in range(64)]
    assert places == [64 * k for k in range(64)]
