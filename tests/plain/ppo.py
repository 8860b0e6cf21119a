"""PPO's numbers token by token for one answer at a time, and VLM-RLAIF's own algebra on padded answers."""

import torch


def gae(rewards, values, discount, lam):
    """Of one answer, as the sum that defines it: A_t = Σ (γλ)^k δ_{t+k}; V behind the last token is 0."""
    steps = len(rewards)
    following = [*values[1:], 0.0]
    delta = [rewards[t] + discount * following[t] - values[t] for t in range(steps)]
    advantage = [sum((discount * lam) ** (k - t) * delta[k] for k in range(t, steps)) for t in range(steps)]
    return advantage, [a + v for a, v in zip(advantage, values, strict=True)]


def kl(new, reference, kind):
    if kind == "k3":
        return torch.exp(reference - new) - 1 - (reference - new)
    return max(new - reference, 0 * new) if kind == "k1-positive" else new - reference


def rewards(score, new, reference, finished, beta, shaping):
    """Of one answer."""
    found = [-beta * kl(p, q, shaping.kl) for p, q in zip(new, reference, strict=True)]
    found[-1] = found[-1] + score
    if not finished:
        found[-1] = found[-1] - shaping.unfinished
    if shaping.length:
        found[-1] = found[-1] - shaping.length * len(found) / shaping.max_tokens
    return [shaping.scale * x for x in found]


def value_loss(values, old, returns, clip):
    total = torch.tensor(0.0).double()
    for v, o, r in zip(values, old, returns, strict=True):
        held = v if o - clip <= v <= o + clip else (o - clip if v < o else o + clip)
        total = total + 0.5 * max((v - r) ** 2, (held - r) ** 2)
    return total


def vlm_rlaif_rewards(score_A, new_AT, reference_AT, finished_A, length_A):
    """Released code: everything × 10, penalties -8 and -10 × share of the T slots, the score on slot T of all."""
    reward_AT = -0.1 * torch.clamp(new_AT - reference_AT, min=0)
    reward_AT[:, -1] += score_A - 8.0 * (~finished_A) - 10.0 * length_A / new_AT.shape[1]
    return reward_AT * 10


def vlm_rlaif_gae(reward_AT, value_AT, discount, lam):
    """(advantage, return) of padded rows, as TRL and the released code loop: backwards, padding like tokens."""
    last, found = 0.0, []
    for t in reversed(range(reward_AT.shape[1])):
        following = value_AT[:, t + 1] if t + 1 < reward_AT.shape[1] else 0.0
        last = reward_AT[:, t] + discount * following - value_AT[:, t] + discount * lam * last
        found.append(last)
    advantage_AT = torch.stack(found[::-1], 1)
    return advantage_AT, advantage_AT + value_AT


def vlm_rlaif_losses(new_AT, old_AT, advantage_AT, value_AT, old_value_AT, return_AT):
    """(policy, value) means over all slots, whitened over all slots; clips 0.2. The value's weight 0.1 is left out."""
    white_AT = (advantage_AT - advantage_AT.mean()) / (advantage_AT.std(unbiased=False) + 1e-8)
    ratio_AT = torch.exp(new_AT - old_AT)
    policy = torch.max(-white_AT * ratio_AT, -white_AT * torch.clamp(ratio_AT, 0.8, 1.2)).mean()
    held_AT = torch.clamp(value_AT, min=old_value_AT - 0.2, max=old_value_AT + 0.2)
    value = torch.max((value_AT - return_AT) ** 2, (held_AT - return_AT) ** 2).mean() / 2
    return policy, value
