"""Importance weights of answers from another process, one answer and one token at a time."""

import math


def weights(logprob, sampled, answer, cap):
    """[A]: the product of the ratios of an answer's tokens, 0 above the cap."""
    found = []
    for a in range(max(answer) + 1):
        ratio = 1.0
        for ours, theirs, owner in zip(logprob, sampled, answer, strict=True):
            if owner == a:
                ratio *= math.exp(ours) / math.exp(theirs)
        found.append(ratio if cap == 0 or ratio <= cap else 0.0)
    return found if cap else [1.0] * len(found)


def kl(logprob, sampled):
    """Schulman's k3, from tokens that `sampled` drew: r - 1 - log r, r = ours / theirs; the mean."""
    terms = [math.exp(a - b) - 1 - (a - b) for a, b in zip(logprob, sampled, strict=True)]
    return sum(terms) / len(terms)
