"""Losses of pairs answer by answer and token by token, in the papers' words; every tensor is one number."""

import torch


def _log_sigmoid(x):
    return -torch.log(1 + torch.exp(-x))


def pairs(logprob, old, weight, answer):
    """(weight, [(new, old) of the chosen's tokens], [… of the rejected's]) of pairs with tokens on both sides."""
    found = []
    for pair in sorted({a // 2 for a in answer.tolist()}):
        sides = []
        for a in (2 * pair, 2 * pair + 1):
            sides.append([i for i in range(len(answer)) if answer[i] == a and weight[i] != 0])
        if all(sides):
            chosen, rejected = ([(logprob[i], old[i]) for i in side] for side in sides)
            found.append((weight[sides[0][0]], chosen, rejected))
    return found


def ratio(tokens):
    """log of p(answer) / ref(answer), of products of probabilities."""
    p = q = torch.tensor(1.0).double()
    for new, old in tokens:
        p, q = p * torch.exp(new), q * torch.exp(old)
    return torch.log(p / q)


def dpo_rewards(tokens, beta):
    return beta * ratio(tokens)


def ipo_rewards(tokens, beta):
    return beta * ratio(tokens) / len(tokens)


def simpo_rewards(tokens, beta):
    return beta * sum(new for new, _ in tokens) / len(tokens)


def dpo(logprob, old, weight, answer, *, beta, smoothing=0.0):
    total = torch.tensor(0.0).double()
    for w, chosen, rejected in pairs(logprob, old, weight, answer):
        lead = beta * ratio(chosen) - beta * ratio(rejected)
        total = total - w * ((1 - smoothing) * _log_sigmoid(lead) + smoothing * _log_sigmoid(-lead))
    return total


def ipo(logprob, old, weight, answer, *, beta):
    total = torch.tensor(0.0).double()
    for w, chosen, rejected in pairs(logprob, old, weight, answer):
        lead = ratio(chosen) / len(chosen) - ratio(rejected) / len(rejected)
        total = total + w * (lead - 1 / (2 * beta)) ** 2
    return total


def simpo(logprob, old, weight, answer, *, beta, margin):
    total = torch.tensor(0.0).double()
    for w, chosen, rejected in pairs(logprob, old, weight, answer):
        total = total - w * _log_sigmoid(simpo_rewards(chosen, beta) - simpo_rewards(rejected, beta) - margin)
    return total


def bradley_terry(score, margin, weight, centring, way):
    """The mean-of-batch centring as VLM-RLAIF writes it, times the pairs: what is divided by them again later."""
    total, both = torch.tensor(0.0).double(), torch.tensor(0.0).double()
    for pair in range(len(score) // 2):
        chosen, rejected = score[2 * pair], score[2 * pair + 1]
        better = torch.exp(chosen) / (torch.exp(chosen) + torch.exp(rejected + margin[pair]))
        total = total - weight[pair] * torch.log(better)
        both = both + weight[pair] * (chosen + rejected)
        if way == "trl":
            total = total + weight[pair] * centring * (chosen + rejected) ** 2
    return total if way == "trl" else total + centring * torch.abs(both)
