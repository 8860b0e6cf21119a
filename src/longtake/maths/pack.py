"""Prompts and their answers into one packed shared-prefix row.

A group is [prefix | answer_1 | … | answer_G]. The first token of every answer is predicted at the prefix's last
place, token i + 1 at the place of token i; an answer's last token is predicted but never fed, so a segment holds one
token less than its answer. Positions of every answer go on at the prefix's largest position + 1, the same in all
three M-RoPE rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from longtake.records import Layout, PrefixRow, Prompt

Nested = Sequence[Sequence[Sequence[float]]]  # [N][G][R], ragged


def pack(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Sequence[int]]],
    weights: Nested,
    old_logprobs: Nested | None = None,
    *,
    dtype: torch.dtype = torch.float32,
) -> PrefixRow:
    """One row of N groups: `answers` are token ids, `weights` and `old_logprobs` one number for each of them
    ([N][G][R]).

    Without `old_logprobs` they are zeros. `dtype` is that of the two float columns. Tensors are on the CPU.
    """
    ids: list[int] = []
    positions: list[torch.Tensor] = []
    visual: list[torch.Tensor] = []
    predict: list[int] = []
    target: list[int] = []
    owner: list[int] = []
    groups: list[tuple[int, tuple[int, ...]]] = []
    index = 0
    for prompt, group in zip(prompts, answers, strict=True):
        if not prompt.ids:
            raise ValueError(f"prompt {prompt.id} is empty: nothing could predict its answers' first token")
        last = len(ids) + len(prompt.ids) - 1
        ids += prompt.ids
        positions.append(prompt.position_3P)
        visual.append(_filled(len(prompt.ids), prompt.visual))
        next_position = int(prompt.position_3P.max()) + 1
        for answer in group:
            fed = answer[:-1]
            predict += [last] * bool(answer) + list(range(len(ids), len(ids) + len(fed)))
            target += answer
            owner += [index] * len(answer)
            ids += fed
            positions.append((next_position + torch.arange(len(fed))).expand(3, -1))
            visual.append(torch.zeros(len(fed), dtype=torch.bool))
            index += 1
        groups.append((len(prompt.ids), tuple(max(len(answer) - 1, 0) for answer in group)))
    return PrefixRow(
        layout=Layout(tuple(groups)),
        ids_T=torch.tensor(ids, dtype=torch.int64),
        position_3T=torch.cat(positions, 1),
        visual_T=torch.cat(visual),
        features=tuple(prompt.features for prompt in prompts),
        predict_R=torch.tensor(predict, dtype=torch.int64),
        target_R=torch.tensor(target, dtype=torch.int64),
        weight_R=_column(weights, answers, "weights", dtype),
        old_logprob_R=torch.zeros(len(target), dtype=dtype)
        if old_logprobs is None
        else _column(old_logprobs, answers, "old_logprobs", dtype),
        answer_R=torch.tensor(owner, dtype=torch.int64),
    )


def _filled(length: int, spans: Sequence[tuple[int, int]]) -> torch.Tensor:
    visual = torch.zeros(length, dtype=torch.bool)
    for start, stop in spans:
        visual[start:stop] = True
    return visual


def _column(numbers: Nested, answers: Sequence[Sequence[Sequence[int]]], name: str, dtype: torch.dtype) -> torch.Tensor:
    flat: list[float] = []
    for group, own in zip(answers, numbers, strict=True):
        for answer, own_numbers in zip(group, own, strict=True):
            if len(own_numbers) != len(answer):
                raise ValueError(f"{name}: an answer of {len(answer)} tokens has {len(own_numbers)} numbers")
            flat += own_numbers
    return torch.tensor(flat, dtype=dtype)
