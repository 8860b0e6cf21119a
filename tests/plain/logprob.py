"""Log-probabilities from a softmax over the whole vocabulary, one token at a time."""

import torch


def score_tokens(head, hidden, target, temperature=1.0):
    logprobs, entropies = [], []
    for h, t in zip(hidden, target, strict=True):
        p = torch.exp(head(h[None])[0]) ** (1 / temperature)
        p = p / p.sum()
        logprobs.append(torch.log(p[t]))
        entropies.append(-sum(x * torch.log(x) for x in p))
    return torch.stack(logprobs), torch.stack(entropies)
