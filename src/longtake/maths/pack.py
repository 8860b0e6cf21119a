"""Prompts and their answers into one packed shared-prefix row, and the row apart again.

A group is [prefix | answer_1 | … | answer_G]; neighbours that ask about the same features share what their prompts
begin with: [film | question_1 | its answers | question_2 | …]. The first token of every answer is predicted at the
prefix's last place, token i + 1 at the place of token i; an answer's last token is predicted but never fed, so a
segment holds one token less than its answer. Positions of every answer go on at the prefix's largest position + 1, the
same in all three M-RoPE rows.

P prompt tokens, C tokens that the prompts on one film share, R answer tokens, A fed answer tokens, S inner segments.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

import torch
from torch import Tensor

from longtake.records import AnswerRow, Layout, Node, PrefixRow, Prompt

Nested = Sequence[Sequence[Sequence[float]]]  # [N][G][R], ragged


def pack(
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[Sequence[int]]],
    weights: Nested,
    old_logprobs: Nested | None = None,
    *,
    lead: int = 0,
    dtype: torch.dtype = torch.float32,
) -> PrefixRow:
    """One row of N groups: `answers` are token ids, `weights` and `old_logprobs` one number for each of them
    ([N][G][R]).

    The last `lead` tokens of every prompt begin each of its answers instead of ending the prefix (the assistant header
    under an activated LoRA). Without `old_logprobs` they are zeros. `dtype` is that of the two float columns. Tensors
    are on the CPU.
    """
    row = _Row(lead)
    groups: list[Node] = []
    handles: list[str | None] = []
    for run in _runs(list(zip(prompts, answers, strict=True)), lead):
        first = run[0][0]
        shared = _shared([prompt for prompt, _ in run], lead) if len(run) > 1 else 0
        row.prefix(first, 0, shared)
        nodes = tuple(row.group(prompt, shared, own) for prompt, own in run)
        groups += [(shared, nodes)] if shared else nodes
        handles.append(first.features)
    return PrefixRow(
        layout=Layout(tuple(groups)),
        ids_T=torch.tensor(row.ids, dtype=torch.int64),
        position_3T=torch.cat(row.positions, 1),
        visual_T=torch.cat(row.visual),
        features=tuple(handles),
        predict_R=torch.tensor(row.predict, dtype=torch.int64),
        target_R=torch.tensor(row.target, dtype=torch.int64),
        weight_R=_column(weights, answers, "weights", dtype),
        old_logprob_R=torch.zeros(len(row.target), dtype=dtype)
        if old_logprobs is None
        else _column(old_logprobs, answers, "old_logprobs", dtype),
        answer_R=torch.tensor(row.owner, dtype=torch.int64),
    )


@dataclass(slots=True)
class _Row:
    """A row that grows."""

    lead: int
    ids: list[int] = field(default_factory=list)
    positions: list[Tensor] = field(default_factory=list)
    visual: list[Tensor] = field(default_factory=list)
    predict: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)
    answers: int = 0

    def prefix(self, prompt: Prompt, start: int, stop: int) -> None:
        """The prompt's tokens from `start` to `stop`."""
        seen_P = torch.zeros(len(prompt.ids), dtype=torch.bool)
        for first, last in prompt.visual:
            seen_P[first:last] = True
        self.ids += prompt.ids[start:stop]
        self.positions.append(prompt.position_3P[:, start:stop])
        self.visual.append(seen_P[start:stop])

    def group(self, prompt: Prompt, start: int, answers: Sequence[Sequence[int]]) -> Node:
        """What a prompt adds to a prefix that holds its first `start` tokens, and its answers."""
        stop = len(prompt.ids) - self.lead
        if stop <= start:
            raise ValueError(f"prompt {prompt.id} of {len(prompt.ids)} tokens has nothing to predict its answers from")
        self.prefix(prompt, start, stop)
        last = len(self.ids) - 1
        return stop - start, tuple(self.answer(prompt, last, answer) for answer in answers)

    def answer(self, prompt: Prompt, last: int, answer: Sequence[int]) -> int:
        """One answer on the prefix that ends at place `last`; returns its length."""
        lead = self.lead if answer else 0
        head = len(prompt.ids) - lead
        fed = [*prompt.ids[head:], *answer[:-1]]
        first = last if lead == 0 else len(self.ids) + lead - 1
        self.predict += [first] * bool(answer) + list(range(len(self.ids) + lead, len(self.ids) + len(fed)))
        self.target += answer
        self.owner += [self.answers] * len(answer)
        self.ids += fed
        next_position = int(prompt.position_3P.max()) + 1
        on = (next_position + torch.arange(len(fed) - lead)).expand(3, -1)
        self.positions.append(torch.cat([prompt.position_3P[:, head:], on], 1))
        self.visual.append(torch.zeros(len(fed), dtype=torch.bool))
        self.answers += 1
        return len(fed)


Group = tuple[Prompt, Sequence[Sequence[int]]]


def _runs(groups: Sequence[Group], lead: int) -> Iterator[list[Group]]:
    """Neighbours on the same features together, where their prompts begin alike beyond all they see."""
    for handle, same in groupby(groups, lambda group: group[0].features):
        run = list(same)
        if handle is not None and _shared([prompt for prompt, _ in run], lead):
            yield run
        else:
            yield from ([group] for group in run)


def _shared(prompts: Sequence[Prompt], lead: int) -> int:
    """C, the tokens that all prompts begin with; 0 unless these hold everything visual. Each keeps one of its own."""
    most = min(len(prompt.ids) for prompt in prompts) - lead - 1
    first = prompts[0].ids[: max(most, 0)]
    for prompt in prompts[1:]:
        same = prompt.ids[: len(first)]
        if first != same:
            first = first[: next(i for i, (a, b) in enumerate(zip(first, same, strict=True)) if a != b)]
    ends = {prompt.visual[-1][1] if prompt.visual else 0 for prompt in prompts}
    return len(first) if len(ends) == 1 and ends.pop() <= len(first) else 0


def stem(row: PrefixRow) -> PrefixRow:
    """The row's prefixes alone, as `pack` makes them of prompts without answers."""
    place_U = _places(row.layout)
    none = row.predict_R[:0]
    return replace(
        row,
        layout=row.layout.stem,
        ids_T=row.ids_T[place_U],
        position_3T=row.position_3T[:, place_U],
        visual_T=row.visual_T[place_U],
        predict_R=none,
        target_R=none,
        weight_R=row.weight_R[:0],
        old_logprob_R=row.old_logprob_R[:0],
        answer_R=none,
    )


def answer_rows(row: PrefixRow, most: int, together: int = 1, dealt: tuple[int, int] = (0, 1)) -> Iterator[AnswerRow]:
    """The row's answers in runs of at most `most` fed tokens, in order; a longer answer stands alone.

    `together` neighbours (2: the answers of a pair) are never parted. dealt: (rank, ranks) gives that rank's answers
    alone, of all ranks' about equally many tokens.
    """
    answers = [segment for segment in row.layout.segments if not segment.inner]
    units = [answers[first : first + together] for first in range(0, len(answers), together)]
    lengths = [sum(segment.length for segment in unit) for unit in units]
    owners, source_T = _dealt(lengths, dealt[1]), _sources(row.layout)
    run: list[int] = []
    for unit, length in enumerate(lengths):
        if owners[unit] != dealt[0]:
            continue
        if run and sum(lengths[one] for one in run) + length > most:
            yield _answers(row, source_T, {first * together + place for first in run for place in range(together)})
            run = []
        run.append(unit)
    if run:
        yield _answers(row, source_T, {first * together + place for first in run for place in range(together)})


def _dealt(lengths: Sequence[int], ranks: int) -> list[int]:
    """Whose each of these is: the longest first, each to whom has least."""
    owners, load = [0] * len(lengths), [(0, 0)] * ranks  # tokens and units
    for unit in sorted(range(len(lengths)), key=lambda one: -lengths[one]):
        rank = min(range(ranks), key=load.__getitem__)
        owners[unit], load[rank] = rank, (load[rank][0] + lengths[unit], load[rank][1] + 1)
    return owners


def _answers(row: PrefixRow, source_T: Tensor, mine: set[int]) -> AnswerRow:
    """Those answers of the row; `source_T` gets their places, which no other part reads."""
    answers = [segment for segment in row.layout.segments if not segment.inner]
    ends = len(row.layout.segments) - len(answers)
    picked = [segment for number, segment in enumerate(answers) if number in mine]
    none = torch.empty(0, dtype=torch.int64)
    here_A = torch.cat([none, *(torch.arange(one.start, one.start + one.length) for one in picked)])
    source_T[here_A] = ends + torch.arange(len(here_A))
    mine_R = torch.isin(row.answer_R, torch.tensor(sorted(mine)))
    return AnswerRow(
        layout=_only(row.layout, mine),
        ids_A=row.ids_T[here_A],
        position_3A=row.position_3T[:, here_A],
        source_R=source_T[row.predict_R[mine_R]],
        target_R=row.target_R[mine_R],
        weight_R=row.weight_R[mine_R],
        old_logprob_R=row.old_logprob_R[mine_R],
        answer_R=row.answer_R[mine_R],
    )


def _places(layout: Layout) -> Tensor:
    """Places in the row of all inner segments, in order."""
    found = [torch.arange(s.start, s.start + s.length) for s in layout.segments if s.inner]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found])


def _sources(layout: Layout) -> Tensor:
    """[T] where the hidden state of a place is found (AnswerRow.source_R); -1 where that is no inner segment's end."""
    source_T = torch.full((layout.total,), -1)
    for number, segment in enumerate(s for s in layout.segments if s.inner):
        source_T[segment.start + segment.length - 1] = number
    return source_T


def _only(layout: Layout, mine: set[int]) -> Layout:
    """The layout with those answers alone."""
    count = 0

    def cut(node: Node) -> Node:
        nonlocal count
        children: list[int | Node] = []
        for child in node[1]:
            if not isinstance(child, int):
                children.append(cut(child))
                continue
            if count in mine:
                children.append(child)
            count += 1
        return node[0], tuple(children)

    return Layout(tuple(cut(node) for node in layout.groups))


def _column(numbers: Nested, answers: Sequence[Sequence[Sequence[int]]], name: str, dtype: torch.dtype) -> Tensor:
    flat: list[float] = []
    for group, own in zip(answers, numbers, strict=True):
        for answer, own_numbers in zip(group, own, strict=True):
            if len(own_numbers) != len(answer):
                raise ValueError(f"{name}: an answer of {len(answer)} tokens has {len(own_numbers)} numbers")
            flat += own_numbers
    return torch.tensor(flat, dtype=dtype)
