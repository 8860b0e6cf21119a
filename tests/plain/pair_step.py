"""A pair read out loud: two rows that know nothing of each other, adapters by hand. Float64."""

import torch
from tests.plain import training
from tests.plain.adapters import acting


def states(model, level_LNE, prompt, answers, layers, scale, lead):
    """[R, E] of each answer alone behind its prompt, under adapter {layer: [A, B]}; `lead`: see plain.ppo_step."""
    with acting(model, layers, scale, len(prompt.ids) - lead if lead else 0):
        return [training.states(model, level_LNE, prompt, ids) for ids in answers]


def logprobs(model, answers, found):
    """[R] of each answer, from its states."""
    rows = [
        list(zip(model.head(own).log_softmax(-1), ids, strict=True)) for own, ids in zip(found, answers, strict=True)
    ]
    return [torch.stack([row[token] for row, token in own]) for own in rows]


def loss(of, logprob, old, weight=1.0):
    """Of the pair: `of` is one of plain.preference, old [2][R] the reference's numbers."""
    lengths = torch.tensor([len(own) for own in logprob])
    columns = [torch.cat(logprob), torch.tensor([x for own in old for x in own], dtype=torch.float64)]
    columns += [torch.full((int(lengths.sum()),), weight, dtype=torch.float64)]
    return of(*columns, torch.arange(2).repeat_interleave(lengths))
