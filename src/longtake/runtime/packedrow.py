"""A prompt and its answers as one row for anybody's model, and what its logits say of them.

T packed tokens, P prompt tokens, R tokens of all answers behind one another, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.maths.logprob import Scored, score_tokens
from longtake.maths.pack import pack
from longtake.records import Layout, Prompt


@dataclass(frozen=True, slots=True)
class PackedRow:
    """A prompt and its answers as one row for `model(…)`. Example: pack_row([5, 6, 7], [[1, 2], [3, 4, 2]]).

    An answer's last token is predicted but never fed: the row of the example is 5 6 7 1 3 4.
    """

    layout: Layout
    ids_1T: Tensor  # int64
    position_ids: Tensor  # int64 [1, T], or [3, 1, T] where the prompt's positions have three rows
    predict_R: Tensor  # int64, the place in the row whose logits predict target_R: logits_to_keep
    target_R: Tensor  # int64
    lengths: tuple[int, ...]  # [G] tokens of each answer; they add up to R

    def to(self, device: torch.device | str) -> PackedRow:
        """The same with its tensors there."""
        ids, position = self.ids_1T.to(device), self.position_ids.to(device)
        predict, target = self.predict_R.to(device), self.target_R.to(device)
        return replace(self, ids_1T=ids, position_ids=position, predict_R=predict, target_R=target)

    def score(self, logits_1RV: Tensor, temperature: float = 1.0) -> Scored:
        """logprob_R of the answers' tokens and entropy_R (nats, no gradient) where they stood, in float32 at least.

        Raises ValueError for logits of other places than predict_R.
        """
        if logits_1RV.shape[:2] != (1, len(self.target_R)):
            shape = tuple(logits_1RV.shape[:2])
            raise ValueError(f"logits are {shape}, not (1, {len(self.target_R)}): pass logits_to_keep=row.predict_R")
        target_R = self.target_R.to(logits_1RV.device)
        return score_tokens(_widened, logits_1RV[0], target_R, temperature=temperature)

    def per_answer(self, number_R: Tensor) -> list[Tensor]:
        """[G] tensors: what belongs to each answer of one number for every answer token."""
        return list(number_R.split(self.lengths))


def _widened(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pack_row(
    prompt_ids: Sequence[int] | Tensor,
    answers: Sequence[Sequence[int] | Tensor],
    positions: Tensor | None = None,
) -> PackedRow:
    """One row of a prompt and its answers (token ids, without padding); its tensors are on the CPU.

    positions: int64 [3, P] or [3, 1, P] of the prompt for M-RoPE; answers go on at their largest + 1. Without them the
    prompt counts from 0. Raises UserError.
    """
    prompt, told = _ints(prompt_ids), [_ints(answer) for answer in answers]
    if not prompt:
        raise UserError("nothing to pack", why="the prompt has no tokens")
    count = len(prompt)
    position_3P = torch.arange(count).expand(3, -1)
    if positions is not None:
        if positions.shape not in ((3, count), (3, 1, count)):
            why = f"they are {tuple(positions.shape)}, the prompt has {count} tokens"
            raise UserError("positions do not fit the prompt", why=why, fix=f"pass [3, {count}]")
        position_3P = positions.reshape(3, count).cpu()
    packed = pack([Prompt("row", tuple(prompt), (), position_3P, None, None)], [told], [[[1.0] * len(a) for a in told]])
    position_3T = packed.position_3T
    return PackedRow(
        layout=packed.layout,
        ids_1T=packed.ids_T[None],
        position_ids=position_3T[:1] if positions is None else position_3T[:, None],
        predict_R=packed.predict_R,
        target_R=packed.target_R,
        lengths=tuple(map(len, told)),
    )


def _ints(ids: Sequence[int] | Tensor) -> list[int]:
    if not isinstance(ids, Tensor):
        return list(ids)
    if ids.shape != (ids.numel(),) and ids.shape != (1, ids.numel()):
        raise UserError("token ids of several rows", why=f"they are {tuple(ids.shape)}", fix="pass one row at a time")
    return [int(token) for token in ids.flatten().tolist()]
