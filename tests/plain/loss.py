"""Losses token by token, in the papers' piecewise forms; every tensor is one number."""

import torch


def policy_gradient(logprob, old, weight, answer):
    return sum((-weight[i] * logprob[i] for i in range(len(weight)) if weight[i] != 0), torch.tensor(0.0).double())


def _pieces(ratio, weight, low, high):
    """PPO, figure 1: a good token stops gaining above 1 + high, a bad one stops losing below 1 - low."""
    if weight > 0:
        return ratio * weight if ratio < 1 + high else (1 + high) * weight
    return ratio * weight if ratio > 1 - low else (1 - low) * weight


def clipped_surrogate(logprob, old, weight, answer, *, clip_low, clip_high):
    total = torch.tensor(0.0).double()
    for i in range(len(weight)):
        if weight[i] != 0:
            total = total - _pieces(torch.exp(logprob[i]) / torch.exp(old[i]), weight[i], clip_low, clip_high)
    return total


def sequence_surrogate(logprob, old, weight, answer, *, clip_low, clip_high):
    """GSPO: (p(answer) / p_old(answer)) ** (1 / length), one surrogate term an answer with the sum of its weights."""
    total = torch.tensor(0.0).double()
    for a in sorted(set(answer.tolist())):
        tokens = [i for i in range(len(answer)) if answer[i] == a and weight[i] != 0]
        if not tokens:
            continue
        new_p, old_p = torch.tensor(1.0).double(), torch.tensor(1.0).double()
        for i in tokens:
            new_p, old_p = new_p * torch.exp(logprob[i]), old_p * torch.exp(old[i])
        ratio = (new_p / old_p) ** (1 / len(tokens))
        total = total - _pieces(ratio, sum(weight[i] for i in tokens), clip_low, clip_high)
    return total


def clipped_weight(logprob, old, weight, answer, *, clip_low, clip_high):
    total = torch.tensor(0.0).double()
    for i in range(len(weight)):
        if weight[i] != 0:
            ratio = min(max(torch.exp(logprob[i] - old[i]).item(), 1 - clip_low), 1 + clip_high)
            total = total - ratio * weight[i] * logprob[i]
    return total


def clipped_tokens(logprob, old, weight, low, high):
    """Tokens on the flat part of PPO's figure 1."""
    count = 0
    for i in range(len(weight)):
        ratio = torch.exp(logprob[i] - old[i]).item()
        count += (weight[i] > 0 and ratio > 1 + high) or (weight[i] < 0 and ratio < 1 - low)
    return int(count)
