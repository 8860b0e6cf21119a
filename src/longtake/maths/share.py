"""Which tokens of a prefix lie on which rank: a head and a tail each, so that causal attention is work for all alike.

The row is cut into two times as many pieces as there are ranks, equally long but for one token; rank r has piece r from
the front and piece r from the back (Llama 3, arXiv 2407.21783 §3.3.2). No token is left out, none is padded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

Run = tuple[int, int]  # start and stop in the row


@dataclass(frozen=True, slots=True)
class Share:
    """A row of `total` tokens on `ranks` ranks, as rank `rank` sees it.

    Example: Share(10, 0, 2).runs(0) == ((0, 2), (7, 10)), Share(10, 0, 2).counts == [5, 5].
    """

    total: int
    rank: int
    ranks: int

    def _border(self, piece: int) -> int:
        return piece * self.total // (2 * self.ranks)

    def _pieces(self, rank: int) -> tuple[Run, Run]:
        last = 2 * self.ranks - 1 - rank
        return (self._border(rank), self._border(rank + 1)), (self._border(last), self._border(last + 1))

    def runs(self, rank: int) -> tuple[Run, ...]:
        """What a rank has, in row order; the middle is one run."""
        head, tail = self._pieces(rank)
        return ((head[0], tail[1]),) if head[1] == tail[0] else (head, tail)

    @property
    def own(self) -> tuple[Run, ...]:
        """What this rank has."""
        return self.runs(self.rank)

    @property
    def counts(self) -> list[int]:
        """Tokens of every rank."""
        return [sum(stop - start for start, stop in self.runs(rank)) for rank in range(self.ranks)]

    def cut(self, x: Tensor, dim: int = 0) -> Tensor:
        """This rank's tokens of a row."""
        return torch.cat([x.narrow(dim, start, stop - start) for start, stop in self.own], dim)

    def part(self, x: Tensor) -> Tensor:
        """A row's tokens [total, …] rank by rank."""
        return torch.cat([x[start:stop] for rank in range(self.ranks) for start, stop in self._pieces(rank)])

    def join(self, x: Tensor) -> Tensor:
        """Tokens rank by rank [total, …] as a row; undoes `part`."""
        lengths = [stop - start for rank in range(self.ranks) for start, stop in self._pieces(rank)]
        pieces = x.split(lengths)
        return torch.cat([*pieces[::2], *reversed(pieces[1::2])])

    def held(self, place: int) -> int | None:
        """Where among this rank's tokens a place of the row is, None if it is another's."""
        before = 0
        for start, stop in self.own:
            if start <= place < stop:
                return before + place - start
            before += stop - start
        return None
