"""Attention of one new token of every answer, on prefixes that are read once for all who share them.

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


@dataclass(frozen=True, slots=True)
class Readers:
    """Which answers read which prefix of a level. Example: Readers.of([0, 0, 1]): two on one, one on the next."""

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
    """Prefixes of one depth (films, or questions on them) in one layer; shorter ones are filled up at the end."""

    k: Float[Tensor, "M K P D"]
    v: Float[Tensor, "M K P D"]
    beyond: Tensor | None  # bool [M, 1, 1, P], what is filling; None where nothing is
    readers: Readers

    def scores(self, q: Float[Tensor, "A K h D"]) -> Float[Tensor, "A K h P"]:
        found = _scores(self.readers.gathered(q), self.k)
        return self.readers.spread(found if self.beyond is None else found.masked_fill(self.beyond, -torch.inf))

    def mixed(self, share: Float[Tensor, "A K h P"]) -> Float[Tensor, "A K h D"]:
        return self.readers.spread(self.readers.gathered(share) @ self.v)


def beyond(lengths: Sequence[int], device: torch.device) -> Tensor | None:
    """What fills up prefixes of these lengths: bool [M, 1, 1, P], or None."""
    if min(lengths) == max(lengths):
        return None
    length_M = torch.tensor(lengths, device=device)
    return (torch.arange(max(lengths), device=device) >= length_M[:, None])[:, None, None]


def decode_attention(
    q: Float[Tensor, "A H 1 D"],
    levels: Sequence[Level],
    own_k: Float[Tensor, "A K t D"],
    own_v: Float[Tensor, "A K t D"],
    *,
    scale: float,
) -> Float[Tensor, "A H 1 D"]:
    """One new token of every answer, on its prefixes and its own t tokens, itself included. No gradient is needed.

    No answer copies its prefix. Half precision: scores and softmax are in float32, the shares rounded again to meet the
    values, as in flash kernels.
    """
    answers, heads, _, width = q.shape
    own_q = q.reshape(answers, own_k.shape[1], -1, width) * scale
    scores = [level.scores(own_q) for level in levels]
    scores.append(_scores(own_q, own_k))
    share = torch.cat(scores, -1).softmax(-1).to(q.dtype)
    *shares, own_share = share.split([score.shape[-1] for score in scores], -1)
    out = own_share @ own_v
    for level, part in zip(levels, shares, strict=True):
        out += level.mixed(part)
    return out.reshape(answers, heads, 1, width)


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """[…, n, D] on […, P, D] in float32 at least; on CUDA half precision keys are not widened for it."""
    if q.dtype in (torch.float32, torch.float64):
        return q @ k.mT
    if q.is_cuda:
        flat = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT, out_dtype=torch.float32)
        return flat.unflatten(0, q.shape[:2])
    return q.float() @ k.float().mT
