"""A row of prefixes on one rank, or shared out over the ranks of a sequence: who holds what, and who reads what.

Over several ranks each computes its own tokens (maths.share) and reads everybody's keys and values, which every layer
gathers once: for attention, and kept, for decoding. They are as few as the network's key/value heads; queries and
outputs stay where they are. Where the number of ranks fits the heads, attention may go by heads instead ("ulysses",
arXiv 2309.14509): every rank then has all queries of some heads, and reads those heads of the keys gathered.

U prefix tokens, S of them on this rank, H heads, K key/value heads, D head width, E model width, n segments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from longtake.maths.attention import Known, ends_attention, share_attention, shared_prefix_attention
from longtake.maths.attention import shared_prefix_forward as forward
from longtake.maths.share import Share
from longtake.parallel.axis import Axis
from longtake.parallel.exchange import gathered, swapped
from longtake.parallel.ranks import How, Ranks
from longtake.records import Layout

KV = tuple[Tensor, Tensor]  # [1, K, U, D]
LEAST = 2  # tokens of a rank: a shorter row is computed whole on each


@dataclass(frozen=True)
class Whole:
    """All of it is here. Example: Whole(layout).attend(q, k, v, (k, v), scale, None)."""

    layout: Layout

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's tokens."""
        return x

    def any(self, here: bool) -> bool:
        """Whether it is so on any of the ranks."""
        return here

    def keys(self, k: Tensor, v: Tensor, known: KV | None = None) -> KV:
        """The row's keys and values, of those of this rank; `known`: their values, if they were here before."""
        return k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, whole: KV, scale: float, known: Known | None, *, note: bool = False
    ) -> tuple[Tensor, Known | None]:
        """[1, H, S, D] of this rank's queries; with `note` also what a later call takes as `known`, no gradient."""
        if note:
            return forward(q, k, v, self.layout, scale=scale)
        return shared_prefix_attention(q, k, v, self.layout, scale=scale, known=known), None

    @cached_property
    def places(self) -> list[int]:
        """[n] where among this rank's tokens its segments end."""
        return [segment.start + segment.length - 1 for segment in self.layout.segments]

    def ends(self, q: Tensor, whole: KV, scale: float) -> Tensor:
        """Attention of the tokens at `places`."""
        return ends_attention(q, *whole, self.layout, scale=scale)

    def gathered(self, ends_nE: Tensor) -> Tensor:
        """[n, E] of all segments, of those at `places`."""
        return ends_nE


@dataclass(frozen=True)
class Shared(Whole):
    """A share is here. Example: Shared(layout, ranks.sequence, "ulysses")."""

    axis: Axis
    how: How = "gather"

    @cached_property
    def share(self) -> Share:
        return Share(self.layout.total, self.axis.index, self.axis.size)

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        return self.share.cut(x, dim)

    def any(self, here: bool) -> bool:
        return self.axis.any(here)

    def keys(self, k: Tensor, v: Tensor, known: KV | None = None) -> KV:
        before = None if known is None else self.share.part(_flat(*known))
        every = self.share.join(gathered(_flat(k, v), self.share.counts, self.axis, before))
        sides = every.split([k.shape[1] * k.shape[3], v.shape[1] * v.shape[3]], 1)
        whole_k, whole_v = (x.unflatten(1, (k.shape[1], -1)).transpose(0, 1)[None] for x in sides)
        return whole_k, whole_v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, whole: KV, scale: float, known: Known | None, *, note: bool = False
    ) -> tuple[Tensor, Known | None]:
        if self.how == "ulysses" and fits(q.shape[1], k.shape[1], self.axis.size):
            return self._by_heads(q, whole, scale, known, note=note)
        return share_attention(q, k, v, whole, self.layout, self.share.own, scale=scale, known=known)

    def _by_heads(
        self, q: Tensor, whole: KV, scale: float, known: Known | None, *, note: bool
    ) -> tuple[Tensor, Known | None]:
        ranks, counts = self.axis.size, self.share.counts
        own = [counts[self.axis.index]] * ranks
        q_by_rank = q[0].unflatten(0, (ranks, -1)).transpose(1, 2).flatten(0, 1)  # [ranks S, H / ranks, D]
        q_U = self.share.join(swapped(q_by_rank, own, counts, self.axis))
        heads = whole[0].shape[1]
        first, count = self.axis.index * heads // ranks, max(1, heads // ranks)
        k, v = (x[:, first : first + count] for x in whole)
        out, known = super().attend(q_U.transpose(0, 1)[None], k, v, whole, scale, known, note=note)
        out_U = self.share.part(out[0].transpose(0, 1))
        out_S = swapped(out_U, counts, own, self.axis).unflatten(0, (ranks, -1))  # [ranks, S, H / ranks, D]
        return out_S.transpose(1, 2).flatten(0, 1)[None], known

    @cached_property
    def _mine(self) -> tuple[int, ...]:
        """Numbers of the segments that end on this rank."""
        return self._owned[self.axis.index]

    @cached_property
    def _owned(self) -> list[tuple[int, ...]]:
        shares = [Share(self.layout.total, rank, self.axis.size) for rank in range(self.axis.size)]
        ends = [segment.start + segment.length - 1 for segment in self.layout.segments]
        return [tuple(n for n, place in enumerate(ends) if share.held(place) is not None) for share in shares]

    @cached_property
    def places(self) -> list[int]:
        """A rank on which none ends computes its first token for nothing: networks take no empty row."""
        ends = [segment.start + segment.length - 1 for segment in self.layout.segments]
        found = [self.share.held(ends[number]) for number in self._mine]
        return [place for place in found if place is not None] or [0]

    def ends(self, q: Tensor, whole: KV, scale: float) -> Tensor:
        if not self._mine:
            return q * 0  # in the graph: ranks sum the same gradients
        return ends_attention(q, *whole, self.layout, scale=scale, mine=self._mine)

    def gathered(self, ends_nE: Tensor) -> Tensor:
        every = gathered(ends_nE[: len(self._mine)], [len(own) for own in self._owned], self.axis)
        order = [number for own in self._owned for number in own]
        back = sorted(range(len(order)), key=order.__getitem__)
        return every[torch.tensor(back, device=every.device)]


def over(layout: Layout, ranks: Ranks) -> Whole:
    """A row of prefixes on a sequence of ranks; one too short to be shared is computed by each."""
    axis = ranks.sequence
    return Whole(layout) if axis.size == 1 or layout.total < LEAST * axis.size else Shared(layout, axis, ranks.how)


def fits(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether attention can go by heads: equally many on each rank, none of keys and values twice on one."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 or ranks % kv_heads == 0)


def _flat(k: Tensor, v: Tensor) -> Tensor:
    """[U, K D + K D], keys and values of a token behind one another."""
    return torch.cat([x[0].transpose(0, 1).flatten(1) for x in (k, v)], 1)
