"""Training steps read out loud: a row for every answer, loops over its tokens, AdamW by its formulas. Float64."""

import math

import numpy as np
import torch
from tests.plain import advantage
from tests.plain.engine import pick
from tests.plain.loss import _pieces

ADVANTAGES = {"longtake": advantage.batch_std, "dr_grpo": advantage.group_mean}
CLIPS = {"longtake": (0.2, 0.28), "dr_grpo": (0.2, 0.2)}


def single(number):
    """Rows hold weights and old log-probabilities as float32."""
    return float(np.float32(number))


def everyone(layer, q, k, v, scale):
    """Causal attention of one sequence: [1, heads, T, D]."""
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    score = q @ k.transpose(2, 3) * scale
    future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    return score.masked_fill(future, -math.inf).softmax(-1) @ v


def logits(model, level_LNE, prompt, ids):
    """[R, V]: what predicts each token of an answer that stands alone behind its prompt."""
    return model.head(states(model, level_LNE, prompt, ids))


def states(model, level_LNE, prompt, ids):
    """[R, E] hidden states before each token of an answer that stands alone behind its prompt."""
    seen = [place for start, stop in prompt.visual for place in range(start, stop)]
    table = model.net.get_input_embeddings().weight
    rows = [table[token] for token in (*prompt.ids, *ids[:-1])]
    for number, place in enumerate(seen):
        rows[place] = level_LNE[0, number]
    columns = [tuple(column) for column in prompt.position_3P.T.tolist()]
    start = max(map(max, columns)) + 1
    columns += [(start + i,) * 3 for i in range(len(rows) - len(columns))]
    visual = torch.tensor([place in seen for place in range(len(rows))])
    deepstack = level_LNE[1:] if seen else None
    hidden = model.hidden(torch.stack(rows), torch.tensor(columns).T, visual, deepstack, everyone)
    return hidden[len(prompt.ids) - 1 :]


def logprobs(model, level_LNE, prompt, ids, temperature=1.0):
    """[R] under the distribution at that temperature."""
    found = torch.log_softmax(logits(model, level_LNE, prompt, ids) / temperature, -1)
    return torch.stack([row[token] for row, token in zip(found, ids, strict=True)])


def sampled(model, level_LNE, prompt, seed, temperature, ids, most):
    """The same tokens drawn again, each from what stands before it: the draws of an honest sampler equal `ids`."""
    chance = np.random.Generator(np.random.Philox(key=seed)).random(most)
    return tuple(pick(row, temperature, chance[t]) for t, row in enumerate(logits(model, level_LNE, prompt, ids)))


def learned_from(algorithm, rewards, most):
    """Which questions stay: longtake drops those whose rewards are all the same."""
    if algorithm == "dr_grpo":
        return list(range(len(rewards)))
    return [n for n, own in enumerate(rewards) if len(set(own)) > 1][:most]


def shaped(algorithm, rewards, lengths, max_tokens, margin):
    """Advantages of rewards with DAPO's length penalty."""
    return ADVANTAGES[algorithm](
        [
            [r + advantage.overlong_penalty(k, max_tokens, margin) for r, k in zip(own, sizes, strict=True)]
            for own, sizes in zip(rewards, lengths, strict=True)
        ]
    )


def count(algorithm, lengths, max_tokens):
    """What the summed loss is divided by."""
    flat = [k for own in lengths for k in own]
    return float(len(flat) * max_tokens) if algorithm == "dr_grpo" else float(sum(flat))


def policy_gradients(model, level_of, algorithm, groups, advantages, temperature, on_policy=False):
    """Gradients of the summed clipped surrogate; one backward pass an answer."""
    for group, own in zip(groups, advantages, strict=True):
        for answer, weight in zip(group.answers, own, strict=True):
            new = logprobs(model, level_of(group.prompt), group.prompt, answer.ids, temperature)
            total = torch.zeros(())
            for t, old in enumerate(answer.logprob):
                ratio = torch.exp(new[t] - (new[t].detach() if on_policy else single(old)))
                total = total - _pieces(ratio, single(weight), *CLIPS[algorithm])
            if total.requires_grad:  # else the clip holds every token
                total.backward()


def supervised_gradients(model, level_of, items):
    """Gradients of the sum of -weight log p, and the sum of weights."""
    total_weight = 0.0
    for prompt, answers, weights in items:
        for ids, own in zip(answers, weights, strict=True):
            found = logprobs(model, level_of(prompt), prompt, ids)
            (-sum(single(w) * found[t] for t, w in enumerate(own))).backward()
            total_weight += sum(map(single, own))
    return total_weight


class PlainAdamW:
    """arXiv:1711.05101 algorithm 2, one tensor at a time, gradients clipped by their common norm."""

    def __init__(self, betas, decay):
        self.betas, self.decay, self.step, self.moments = betas, decay, 0, {}

    def __call__(self, weights, grads, count, lr, max_norm):
        """New weights by name, and the norm before clipping."""
        self.step += 1
        first, second = self.betas
        norm = math.sqrt(sum(float((g / count).square().sum()) for g in grads.values()))
        result = {}
        for name, weight in weights.items():
            grad = grads[name] / count * min(1.0, max_norm / (norm + 1e-6))
            m, v = self.moments.get(name, (torch.zeros_like(grad), torch.zeros_like(grad)))
            m, v = first * m + (1 - first) * grad, second * v + (1 - second) * grad * grad
            self.moments[name] = m, v
            moved = (m / (1 - first**self.step)) / ((v / (1 - second**self.step)).sqrt() + 1e-8)
            result[name] = weight * (1 - lr * self.decay) - lr * moved
        return result, norm
