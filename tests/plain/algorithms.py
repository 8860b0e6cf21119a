"""The objectives of the papers, each written out whole: rewards and token probabilities of all groups in, loss out.

rewards[n][g] are numbers; new[n][g] and old[n][g] are [R] log-probabilities of the tokens of answer g to question n.
"""

import torch
from tests.plain import advantage
from tests.plain.loss import _pieces


def _answers(rewards, advantages, new, old):
    for n, group in enumerate(rewards):
        for g in range(len(group)):
            yield advantages[n][g], new[n][g], old[n][g]


def _kept(rewards, new, old):
    keep = [n for n, group in enumerate(rewards) if len(set(group)) > 1]
    return [[x[n] for n in keep] for x in (rewards, new, old)]


def _token_mean(rewards, advantages, new, old, low, high):
    total, count = 0.0, 0
    for a, p, q in _answers(rewards, advantages, new, old):
        for t in range(len(p)):
            total = total + _pieces(torch.exp(p[t] - q[t]), a, low, high)
            count += 1
    return -total / count


def longtake(rewards, new, old, max_tokens):
    rewards, new, old = _kept(rewards, new, old)
    return _token_mean(rewards, advantage.batch_std(rewards), new, old, 0.2, 0.28)


def dapo(rewards, new, old, max_tokens):
    rewards, new, old = _kept(rewards, new, old)
    return _token_mean(rewards, advantage.group_normalised(rewards), new, old, 0.2, 0.28)


def grpo(rewards, new, old, max_tokens):
    total, count = 0.0, 0
    for a, p, q in _answers(rewards, advantage.group_normalised(rewards), new, old):
        own = 0.0
        for t in range(len(p)):
            own = own + _pieces(torch.exp(p[t] - q[t]), a, 0.2, 0.2)
        total = total + own / len(p)
        count += 1
    return -total / count


def dr_grpo(rewards, new, old, max_tokens):
    total, count = 0.0, 0
    for a, p, q in _answers(rewards, advantage.group_mean(rewards), new, old):
        for t in range(len(p)):
            total = total + _pieces(torch.exp(p[t] - q[t]), a, 0.2, 0.2) / max_tokens
        count += 1
    return -total / count


def gspo(rewards, new, old, max_tokens):
    total, count = 0.0, 0
    for a, p, q in _answers(rewards, advantage.group_normalised(rewards), new, old):
        total = total + _pieces((torch.exp(p.sum()) / torch.exp(q.sum())) ** (1 / len(p)), a, 3e-4, 4e-4)
        count += 1
    return -total / count


def cispo(rewards, new, old, max_tokens):
    rewards, new, old = _kept(rewards, new, old)
    total, count = 0.0, 0
    for a, p, q in _answers(rewards, advantage.group_normalised(rewards), new, old):
        for t in range(len(p)):
            total = total + torch.exp(p[t] - q[t]).detach().clamp(max=5) * a * p[t]
            count += 1
    return -total / count


def rloo(rewards, new, old, max_tokens):
    """(R - baseline) × log p(answer), averaged over answers; the constant only scales."""
    total, count = 0.0, 0
    for a, p, _ in _answers(rewards, advantage.leave_one_out(rewards), new, old):
        total = total + a * p.sum()
        count += 1
    return -total / count / max_tokens


def reinforce_pp(rewards, new, old, max_tokens):
    return _token_mean(rewards, advantage.batch_normalised(rewards), new, old, 0.2, 0.2)


def reinforce_pp_baseline(rewards, new, old, max_tokens):
    return _token_mean(rewards, advantage.group_mean_batch_normalised(rewards), new, old, 0.2, 0.2)
