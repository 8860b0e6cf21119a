"""Attention of one new token of every answer, on prefixes that are read once for all who share them.

Every part (a level of prefixes, the answers' own tokens) is attended to by itself, and the parts are joined by their
log-sum-exp (Hydragen, arXiv 2402.05099): no answer copies its prefix, no score is moved.

M prefixes of a level, N·G = A answers, W answers on one prefix (at most), P prefix tokens, t own tokens, H heads,
K key/value heads, h = H / K, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

LOW = -1e30  # is added to the scores of what must not be read; finite, so that a part without anything is no nan


@dataclass(frozen=True, slots=True)
class Readers:
    """Which answers read which prefix of a level. Example: Readers.of([0, 0, 1], device)."""

    row_MW: Int[Tensor, "M W"]  # answers of each prefix, filled up with answer 0
    at_A: Int[Tensor, " A"]  # where each answer lies in row_MW, flat
    even: bool  # every prefix has W, in order: nothing need be moved

    @staticmethod
    def of(owner_A: Sequence[int], device: torch.device) -> Readers:
        """`owner_A`: the prefix that each answer reads, rising from 0 without gaps."""
        counts = [owner_A.count(m) for m in range(max(owner_A) + 1)]
        widest = max(counts)
        row, answer = torch.zeros(len(counts), widest, dtype=torch.int64), 0
        at: list[int] = []
        for m, count in enumerate(counts):
            row[m, :count] = torch.arange(answer, answer + count)
            at += range(m * widest, m * widest + count)
            answer += count
        return Readers(row.to(device), torch.tensor(at, device=device), min(counts) == widest)

    def gathered(self, x: Tensor) -> Tensor:
        """[A, K, h, n] to [M, K, W * h, n]."""
        rows, most = self.row_MW.shape
        moved = x if self.even else x[self.row_MW.flatten()]
        return moved.unflatten(0, (rows, most)).transpose(1, 2).flatten(2, 3)

    def spread(self, x: Tensor) -> Tensor:
        """[M, K, W * h, n] to [A, K, h, n]."""
        back = x.unflatten(2, (self.row_MW.shape[1], -1)).transpose(1, 2).flatten(0, 1)
        return back if self.even else back[self.at_A]


@dataclass(frozen=True, slots=True)
class Level:
    """Prefixes of one depth (films, or questions on them) in one layer; shorter ones are filled up at the end.

    P is at least 1: a depth at which nobody has anything is none.
    """

    k: Float[Tensor, "M K P D"]
    v: Float[Tensor, "M K P D"]
    beyond: Tensor | None  # [M, 1, 1, P], added to the scores: LOW where a prefix is filled up; None where none is
    readers: Readers

    def read(self, q: Float[Tensor, "A K h D"]) -> tuple[Float[Tensor, "A K h D"], Float[Tensor, "A K h 1"]]:
        """What every answer finds here, and the log-sum-exp of its scores."""
        out, lse = _read(self.readers.gathered(q), self.k, self.v, self.beyond)
        return self.readers.spread(out), self.readers.spread(lse)


def beyond(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """Level.beyond of prefixes of these lengths: float32 [M, 1, 1, P], or None."""
    if min(lengths) == max(lengths):
        return None
    filling_MP = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return torch.where(filling_MP, LOW, 0.0)[:, None, None].to(device)


def decode_attention(
    q: Float[Tensor, "A H 1 D"],
    levels: Sequence[Level],
    own_k: Float[Tensor, "A K t D"],
    own_v: Float[Tensor, "A K t D"],
    *,
    scale: float,
    unseen: Float[Tensor, " t"] | None = None,
) -> Float[Tensor, "A H 1 D"]:
    """One new token of every answer, on its prefixes and its own t tokens, itself included. No gradient is needed.

    `unseen` is added to the scores of own tokens: LOW where there is room for a token but none yet (of finite numbers).
    Half precision: scores, softmax and the join are in float32, the shares rounded again to meet the values, as in
    flash kernels.
    """
    answers, heads, _, width = q.shape
    own_q = q.reshape(answers, own_k.shape[1], -1, width) * scale
    found = [level.read(own_q) for level in levels]
    found.append(_read(own_q, own_k, own_v, unseen))
    share = torch.stack([lse for _, lse in found]).softmax(0)
    out, *others = (part * own for (part, _), own in zip(found, share, strict=True))
    for other in others:
        out += other
    return out.to(q.dtype).reshape(answers, heads, 1, width)


def _read(q: Tensor, k: Tensor, v: Tensor, added: Tensor | None) -> tuple[Tensor, Tensor]:
    """[B, K, n, D] on [B, K, P, D]: the mixed values [B, K, n, D], and the log-sum-exp of the scores [B, K, n, 1]."""
    score = _scores(q, k)
    if added is not None:
        score += added
    share = score.softmax(-1)
    lse = score.amax(-1, keepdim=True) - share.amax(-1, keepdim=True).log()  # the largest share is exp(largest - lse)
    return share.to(v.dtype) @ v, lse


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """[…, n, D] on […, P, D] in float32 at least; on CUDA half precision keys are not widened for it."""
    if q.dtype in (torch.float32, torch.float64):
        return q @ k.mT
    if q.is_cuda:
        flat = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT, out_dtype=torch.float32)
        return flat.unflatten(0, q.shape[:2])
    return q.float() @ k.float().mT
