"""A PPO step read out loud: four adapters by hand, a row for every answer, loops over its tokens. Float64."""

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
from tests.plain import ppo, training
from tests.plain.adapters import acting
from tests.plain.loss import _pieces, clipped_tokens


@dataclass
class Role:
    """An adapter {layer: [A, B]}, or none; the factor of its B A; a scalar head [weight, bias], or none."""

    layers: dict | None
    scale: float
    head: list = field(default_factory=list)

    def leaves(self, name):
        a = {f"{name}.{layer}.A": both[0] for layer, both in self.layers.items()}
        b = {f"{name}.{layer}.B": both[1] for layer, both in self.layers.items()}
        return a | b | ({f"{name}.weight": self.head[0], f"{name}.bias": self.head[1]} if self.head else {})

    def put(self, name, values):
        """New weights, as leaves."""
        for leaf, x in values.items():
            own, part = leaf.removeprefix(f"{name}.").rpartition(".")[::2]
            holder, place = (self.layers[own], "AB".index(part)) if own else (self.head, part == "bias")
            holder[place] = x.detach().clone().requires_grad_()


@dataclass
class Players:
    """The network, who plays on it, and `lead`: the tokens at the end of a prompt that an aLoRA acts on."""

    model: object
    level: object
    lead: int
    policy: Role
    reference: Role
    value: Role
    reward: Role

    def states(self, role, prompt, ids):
        """[R, E] before each token, with that adapter."""
        with self.acting(role, prompt):
            return training.states(self.model, self.level(prompt), prompt, ids)

    def acting(self, role, prompt):
        return acting(self.model, role.layers, role.scale, len(prompt.ids) - self.lead if self.lead else 0)

    def logprobs(self, role, prompt, ids, heat):
        found = torch.log_softmax(self.model.head(self.states(role, prompt, ids)) / heat, -1)
        return [row[token] for row, token in zip(found, ids, strict=True)]

    def values(self, prompt, ids):
        weight, bias = self.value.head
        return [(state * weight).sum() + bias for state in self.states(self.value, prompt, ids)]

    def score(self, prompt, ids, suffix):
        """Behind the end token (the model's first one, where the answer has another or none) and the suffix."""
        ends = self.model.end_ids
        said = (*(ids[:-1] if ids[-1] in ends else ids), ends[0], *suffix)
        weight, bias = self.reward.head
        return float((self.states(self.reward, prompt, (*said, 0))[-1] * weight).sum() + bias)


@dataclass
class Seen:
    """One answer and all that is known of it."""

    prompt: object
    ids: tuple
    old: list
    score: float
    reference: list
    values: list
    kl: float
    rewards: list
    advantages: list = ()
    returns: list = ()


def spread(numbers, correction):
    mean = sum(numbers) / len(numbers)
    return mean, math.sqrt(sum((x - mean) ** 2 for x in numbers) / (len(numbers) - correction))


@torch.no_grad()
def look_at(players, asked, config, beta, suffix):
    """[N][G] Seen: sampled (asked: [(prompt, [seed])]), scored, and what each token is worth."""
    own, value = config.reward, config.value
    shaping = SimpleNamespace(kl=config.kl.kind, max_tokens=config.max_tokens)
    shaping.unfinished, shaping.length, shaping.scale = own.unfinished, own.length, own.scale
    found = []
    for prompt, draws in asked:
        group = []
        for seed, known in draws:
            with players.acting(players.policy, prompt):
                level = players.level(prompt)
                ids = training.sampled(players.model, level, prompt, seed, config.temperature, known, config.max_tokens)
            old = [float(x) for x in players.logprobs(players.policy, prompt, ids, config.temperature)]
            reference = [float(x) for x in players.logprobs(players.reference, prompt, ids, config.temperature)]
            score = players.score(prompt, ids, suffix)
            values = [float(x) for x in players.values(prompt, ids)]
            finished = ids[-1] in players.model.end_ids
            tensors = [[torch.tensor(x) for x in column] for column in (old, reference)]
            rewards = [float(x) for x in ppo.rewards(score, *tensors, finished, beta, shaping)]
            kl = sum(p - q for p, q in zip(old, reference, strict=True))
            group.append(Seen(prompt, ids, old, score, reference, values, kl, rewards))
        found.append(group)
    flat = [one for group in found for one in group]
    if own.whiten:
        mean, std = spread([x for one in flat for x in one.rewards], 1)
        for one in flat:
            one.rewards = [(x - mean) / (std + 1e-8) + mean for x in one.rewards]
    for one in flat:
        one.advantages, one.returns = ppo.gae(one.rewards, one.values, value.discount, value.lam)
    if value.whiten:
        mean, std = spread([x for one in flat for x in one.advantages], 1)
        for one in flat:
            one.advantages = [(x - mean) / (std + 1e-8) for x in one.advantages]
    return found


def gradients(players, part, config):
    """Gradients by leaf of the summed loss of some answers; their tokens; clipped ones; squared errors of values."""
    leaves = players.policy.leaves("policy") | players.value.leaves("value")
    for x in leaves.values():
        x.grad = None
    tokens = clipped = error = 0
    for one in part:
        new = players.logprobs(players.policy, one.prompt, one.ids, config.temperature)
        total = torch.zeros(())
        for p, old, worth in zip(new, one.old, one.advantages, strict=True):
            total = total - _pieces(torch.exp(p - training.single(old)), training.single(worth), *config.clip)
        values = players.values(one.prompt, one.ids)
        old, returns = ([training.single(x) for x in own] for own in (one.values, one.returns))
        total = total + config.value.weight * ppo.value_loss(values, old, returns, config.value.clip)
        if total.requires_grad:  # else the clips hold every token
            total.backward()
        columns = (torch.tensor([training.single(x) for x in own]) for own in (one.old, one.advantages))
        clipped += clipped_tokens(torch.stack(new), *columns, *config.clip)
        error += sum((v.item() - r) ** 2 for v, r in zip(values, returns, strict=True))
        tokens += len(one.ids)
    return (
        {name: torch.zeros_like(x) if x.grad is None else x.grad for name, x in leaves.items()},
        tokens,
        clipped,
        error,
    )


def learn(players, groups, config, optimizer, lr):
    """All passes over a step's answers: (share of clipped tokens, mean squared error of values, last norm)."""
    each = math.ceil(len(groups) / config.minibatches)
    tokens = clipped = error = 0
    for _ in range(config.epochs):
        for start in range(0, len(groups), each):
            part = [one for group in groups[start : start + each] for one in group]
            grads, count, cut, wrong = gradients(players, part, config)
            leaves = players.policy.leaves("policy") | players.value.leaves("value")
            weights = {name: x.detach() for name, x in leaves.items()}
            after, norm = optimizer(weights, grads, count, lr, config.optim.max_grad_norm)
            for name, role in (("policy", players.policy), ("value", players.value)):
                role.put(name, {leaf: x for leaf, x in after.items() if leaf.startswith(f"{name}.")})
            tokens, clipped, error = tokens + count, clipped + cut, error + wrong
    return clipped / tokens, error / tokens, norm
