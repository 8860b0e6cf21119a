"""PPO's numbers against plain forms, answer by answer; and against VLM-RLAIF's padded algebra where no padding is."""

import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import normal, quick
from tests.plain import ppo as plain
from torch.testing import assert_close

from longtake.maths import loss, ppo
from longtake.maths.ppo import AdaptiveKL, FixedKL, Shaping

EXACT = 1e-12
LENGTHS = (5, 1, 9, 3, 12)
VLM_RLAIF = Shaping("k1-positive", unfinished=8.0, length=10.0, max_tokens=9, scale=10.0)


def answers(lengths=LENGTHS):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def parts(x_R, lengths):
    """What belongs to each answer."""
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    return [list(x_R[a:b]) for a, b in pairwise(ends)]


def numbers(seed, count):
    return normal(seed, count).detach()


@pytest.mark.parametrize("lengths", [LENGTHS, (1,), (4, 4)])
@pytest.mark.parametrize(("discount", "lam"), [(1.0, 1.0), (0.9, 0.8), (1.0, 0.95), (0.5, 0.0)])
def test_gae(lengths, discount, lam):
    reward, value = numbers(0, sum(lengths)), numbers(1, sum(lengths))
    got = ppo.gae(reward, value, answers(lengths), discount=discount, lam=lam)
    by_answer = zip(parts(reward, lengths), parts(value, lengths), strict=True)
    want = [plain.gae(r, v, discount, lam) for r, v in by_answer]
    for mine, theirs in zip(got, zip(*want, strict=True), strict=True):
        assert_close(mine, torch.stack([x for answer in theirs for x in answer]), rtol=EXACT, atol=EXACT)


@quick
@given(st.lists(st.integers(0, 6), max_size=6))
def test_gae_does_not_see_other_answers(lengths):
    """Nor how answers are numbered: some of these have no tokens."""
    whole = answers(lengths) if lengths else torch.zeros(0, dtype=torch.int64)
    reward, value = numbers(0, len(whole)), numbers(1, len(whole))
    advantage, returns = ppo.gae(reward, value, whole, discount=0.9, lam=0.8)
    for answer in range(len(lengths)):
        own = whole == answer
        alone, _ = ppo.gae(reward[own], value[own], whole[own], discount=0.9, lam=0.8)
        assert_close(advantage[own], alone, rtol=EXACT, atol=EXACT)
    assert_close(returns - advantage, value, rtol=EXACT, atol=EXACT)


def test_gae_at_its_ends():
    """λ = 1: what is still to come, less the value (eq. 18); λ = 0: the surprise of one step (eq. 17)."""
    reward, value, whose = torch.tensor([1.0, 2, 4]), torch.tensor([10.0, 20, 30]), torch.zeros(3, dtype=torch.int64)
    advantage, returns = ppo.gae(reward, value, whose, discount=1.0, lam=1.0)
    assert advantage.tolist() == [-3.0, -14.0, -26.0]
    assert returns.tolist() == [7.0, 6.0, 4.0]
    assert ppo.gae(reward, value, whose, discount=1.0, lam=0.0)[0].tolist() == [11.0, 12.0, -26.0]


def test_targets_carry_no_gradient():
    value = normal(1, sum(LENGTHS))
    assert not any(x.requires_grad for x in ppo.gae(value * 2, value, answers(), discount=0.9, lam=0.8))
    score = normal(2, len(LENGTHS))
    finished = torch.ones(len(LENGTHS), dtype=torch.bool)
    assert not ppo.shaped_rewards(score, value, value * 2, answers(), finished, beta=0.1).requires_grad


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("correction", [0, 1])
def test_whitening(shift_mean, correction):
    x = normal(0, 40)
    got = ppo.whiten(3 * x + 5, shift_mean=shift_mean, correction=correction)
    y = 3 * x + 5
    mean = sum(y) / 40
    deviation = torch.sqrt(sum((v - mean) ** 2 for v in y) / (40 - correction))
    want = (y - mean) / (deviation + 1e-8) + (0 if shift_mean else mean)
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    upstream = numbers(1, 40)
    gradients = [torch.autograd.grad((v * upstream).sum(), x, retain_graph=True)[0] for v in (got, want)]
    assert_close(*gradients, rtol=1e-9, atol=EXACT)
    assert float(got.detach().std(correction=correction)) == pytest.approx(1, rel=1e-7)


def test_whitening_what_does_not_vary():
    same = torch.full((6,), 2.5).double()
    assert (ppo.whiten(same) == 0).all()
    assert (ppo.whiten(same, shift_mean=False) == 2.5).all()
    assert ppo.whiten(same[:1]).tolist() == [0.0]
    assert len(ppo.whiten(same[:0])) == 0


SHAPINGS = [
    Shaping(),
    Shaping("k3"),
    Shaping("k1-positive"),
    Shaping(unfinished=8.0),
    Shaping(length=3.0, max_tokens=20),
    Shaping(scale=10.0),
    VLM_RLAIF,
]


@pytest.mark.parametrize("shaping", SHAPINGS)
def test_shaped_rewards(shaping):
    new, reference, score = numbers(0, sum(LENGTHS)), numbers(1, sum(LENGTHS)), numbers(2, len(LENGTHS))
    finished = torch.tensor([True, False, True, True, False])
    got = ppo.shaped_rewards(score, new, reference, answers(), finished, beta=0.3, shaping=shaping)
    by_answer = zip(score, parts(new, LENGTHS), parts(reference, LENGTHS), finished, strict=True)
    want = [plain.rewards(s, p, q, bool(f), 0.3, shaping) for s, p, q, f in by_answer]
    assert_close(got, torch.stack([x for answer in want for x in answer]), rtol=EXACT, atol=EXACT)


def test_the_score_alone_is_on_the_last_token_of_each():
    flat = torch.zeros(sum(LENGTHS)).double()
    score = numbers(2, len(LENGTHS))
    got = ppo.shaped_rewards(score, flat, flat, answers(), torch.ones(5, dtype=torch.bool), beta=0.3)
    assert got.nonzero()[:, 0].tolist() == [4, 5, 14, 17, 29]
    assert_close(got[got != 0], score, rtol=0, atol=0)


def test_kl_estimates():
    new, reference = numbers(0, 50), numbers(1, 50)
    k1, positive, k3 = (ppo.token_kl(new, reference, kind) for kind in ("k1", "k1-positive", "k3"))
    assert_close(k1, new - reference, rtol=0, atol=0)
    assert (k1 < 0).any()
    assert_close(positive, torch.where(new > reference, new - reference, 0), rtol=0, atol=0)
    assert_close(k3, reference.exp() / new.exp() - 1 - (reference - new), rtol=1e-9, atol=EXACT)


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_value_loss(clip):
    old, returns = numbers(0, 60), numbers(1, 60)
    returns[7] = 0  # is one like others
    value = (old + 0.3 * numbers(2, 60)).requires_grad_()
    got = ppo.value_loss(value, old, returns, clip=clip)
    want = plain.value_loss(value, old, returns, clip)
    assert_close(got.total, want, rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(x, value)[0] for x in (got.total, want)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)
    assert int(got.clipped) == int((gradients[0] == 0).sum())
    assert (int(got.clipped) > 5) == (clip == 0.2)
    assert int(got.count) == 60
    assert float(got.watched["error"]) == pytest.approx(float(((value - returns) ** 2).sum().detach()), rel=EXACT)


def vlm_rlaif(lengths, slots, discount, lam):
    """Ours and theirs on the same numbers: ((advantage_R, …), (advantage_AT, …), mask_AT)."""
    mask_AT = torch.arange(slots)[None] < torch.tensor(lengths)[:, None]
    shape = (len(lengths), slots)
    new, old, value, old_value = (normal(seed, *shape) for seed in range(4))
    reference = torch.where(mask_AT, old + 0.3 * normal(4, *shape), old).detach()  # padding has no KL
    score = numbers(5, len(lengths))
    new, value = old.detach() + 0.2 * new, old_value.detach() + 0.2 * value
    old, old_value = old.detach(), old_value.detach()
    finished, length = torch.arange(len(lengths)) % 2 == 0, torch.tensor(lengths).double()
    shaping = Shaping("k1-positive", unfinished=8.0, length=10.0, max_tokens=slots, scale=10.0)
    whose = answers(lengths)

    reward_R = ppo.shaped_rewards(score, old[mask_AT], reference[mask_AT], whose, finished, beta=0.1, shaping=shaping)
    advantage_R, return_R = ppo.gae(reward_R, old_value[mask_AT], whose, discount=discount, lam=lam)
    white_R = ppo.whiten(advantage_R, correction=0)
    clipped = partial(loss.clipped_surrogate, clip_low=0.2, clip_high=0.2)
    policy = clipped(new[mask_AT], old[mask_AT], white_R, whose)
    valued = ppo.value_loss(value[mask_AT], old_value[mask_AT], return_R, whose, clip=0.2)
    ours = (advantage_R, policy.total / policy.count, valued.total / valued.count)

    reward_AT = plain.vlm_rlaif_rewards(score, old, reference, finished, length)
    advantage_AT, return_AT = plain.vlm_rlaif_gae(reward_AT, old_value, discount, lam)
    losses = plain.vlm_rlaif_losses(new, old, advantage_AT, value, old_value, return_AT)
    return ours, (advantage_AT[mask_AT], *losses), (new, value)


@pytest.mark.parametrize(("discount", "lam"), [(1.0, 1.0), (0.95, 0.9)])
def test_vlm_rlaif_exactly_where_nothing_is_padded(discount, lam):
    ours, theirs, inputs = vlm_rlaif((7, 7, 7, 7), 7, discount, lam)
    for mine, other in zip(ours, theirs, strict=True):
        assert_close(mine, other, rtol=EXACT, atol=EXACT)
    gradients = [torch.autograd.grad(policy + 0.1 * value, inputs) for _, policy, value in (ours, theirs)]
    assert_close(*gradients, rtol=EXACT, atol=EXACT)


def test_vlm_rlaif_differs_over_padding():
    """At γ = λ = 1 the losses alone, else the advantages too."""
    ours, theirs, _ = vlm_rlaif((7, 3, 5, 7), 7, 1.0, 1.0)
    assert_close(ours[0], theirs[0], rtol=EXACT, atol=EXACT)
    assert not torch.allclose(ours[1], theirs[1], rtol=0.01)
    assert not torch.allclose(ours[2], theirs[2], rtol=0.01)
    ours, theirs, _ = vlm_rlaif((7, 3, 5, 7), 7, 1.0, 0.9)
    assert not torch.allclose(ours[0], theirs[0], rtol=0.01)


def test_fixed_kl_stays():
    assert FixedKL(0.1).after(kl=50.0, count=256) == FixedKL(0.1)


@pytest.mark.parametrize(
    ("kl", "count", "factor"),
    [
        (6.0, 100, 1.0),
        (6.6, 100, 1.01),  # 10 % above: 0.1 × 100 / 1000
        (60.0, 100, 1.02),  # held at 20 %
        (0.0, 100, 0.98),
        (-5.0, 100, 0.98),
        (60.0, 10_000, 1.2),  # a step beyond the horizon counts as one horizon
        (0.0, 10_000, 0.8),
    ],
)
def test_adaptive_kl(kl, count, factor):
    controller = AdaptiveKL(0.2, target=6.0, horizon=1000)
    got = controller.after(kl=kl, count=count)
    assert got.beta == pytest.approx(0.2 * factor, rel=EXACT)
    assert (got.target, got.horizon) == (6.0, 1000)


def test_adaptive_kl_reaches_its_target():
    """A policy whose KL is 1 / β."""
    controller = AdaptiveKL(0.5, target=4.0, horizon=100)
    for _ in range(200):
        controller = controller.after(kl=1 / controller.beta, count=50)
    assert 1 / controller.beta == pytest.approx(4.0, rel=1e-3)


def test_refusals():
    flat, ones = torch.zeros(3), torch.ones(2, dtype=torch.bool)
    for call in (
        lambda: ppo.gae(flat, flat, torch.tensor([0, 1, 0]), discount=1.0, lam=1.0),
        lambda: ppo.shaped_rewards(flat[:2], flat, flat, torch.tensor([0, 1, 0]), ones, beta=0.1),
    ):
        with pytest.raises(ValueError, match="in order"):
            call()
    for whose in ([0, 0, 0], [0, 1, 2]):
        with pytest.raises(ValueError, match="as many answers"):
            ppo.shaped_rewards(flat[:2], flat, flat, torch.tensor(whose), ones, beta=0.1)
    with pytest.raises(ValueError, match="max_tokens"):
        Shaping(length=1.0)
