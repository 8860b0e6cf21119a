"""From the vision tower's patches to visual tokens: NVILA's projectors, and the pooling of films in space and time.

N frames or tiles, S patches along an edge of one, K patches along an edge of a block, C channels of a patch, E model
width. Source: NVILA (arXiv 2412.04468), LongVILA-R1 (arXiv 2507.07966); layers are named as in their checkpoints.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from longtake.errors import UserError

BLOCKS = {"mlp_downsample": 2, "mlp_downsample_2x2_fix": 2, "mlp_downsample_3x3_fix": 3}
MLP = re.compile(r"mlp([1-9]\d*)x_gelu")
Pool = tuple[int, int, int]  # frames, rows, columns of which the mean is taken


class Blocks(nn.Module):
    """K x K neighbouring patches become one: zeros fill the grid at the bottom, then at the right, rows go first.

    Channels of a block lie patch by patch, row by row. `column_major`: tokens go down the columns first, as
    mlp_downsample was until December 2024.
    """

    def __init__(self, edge: int, column_major: bool = False) -> None:
        super().__init__()
        self.edge, self.column_major = edge, column_major

    def forward(self, patch_NPC: Tensor) -> Tensor:
        """[N, S * S, C] → [N, ceil(S / K)², K * K * C]."""
        side, k = math.isqrt(patch_NPC.shape[1]), self.edge
        lack = -side % k
        grid = pad(patch_NPC.unflatten(1, (side, side)), (0, 0, 0, lack, 0, lack))
        blocks = grid.unflatten(2, (-1, k)).unflatten(1, (-1, k)).transpose(2, 3)  # [N, row, column, K, K, C]
        if self.column_major:
            blocks = blocks.transpose(1, 2)
        return blocks.flatten(3).flatten(1, 2)


class Projector(nn.Module):
    """A checkpoint's `mm_projector`. Example: Projector("mlp_downsample", 1152, 3584)(patch_NPC).shape[1] == 256."""

    def __init__(self, kind: str, channels: int, width: int, column_major: bool = False) -> None:
        """`channels` of a patch, model `width`. Raises UserError for a kind that is not known."""
        super().__init__()
        self.kind, self.column_major, self.edge = kind, column_major, edge_of(kind)
        if column_major and kind != "mlp_downsample":
            why = f"{kind} never was: only mlp_downsample was, in checkpoints of before December 2024"
            raise UserError("this projector's tokens cannot be column-major", why=why, fix="take column_major out")
        self.layers = _layers(kind, channels, width, column_major)

    def forward(self, patch_NPC: Tensor) -> Tensor:
        """[N, S * S, C] → visual tokens [N, ceil(S / K)², E], row by row."""
        tokens: Tensor = self.layers(patch_NPC)
        return tokens


def edge_of(kind: str) -> int:
    """Patches along an edge of a block. Raises UserError for a kind of projector that is not known."""
    if kind in BLOCKS:
        return BLOCKS[kind]
    if kind in ("identity", "linear") or MLP.fullmatch(kind):
        return 1
    why = f"mm_projector_type is {kind!r}; longtake has {', '.join(BLOCKS)}, linear, mlpNx_gelu, identity"
    raise UserError("unsupported projector", why=why)


def _layers(kind: str, channels: int, width: int, column_major: bool) -> nn.Module:
    if kind == "identity":
        if channels != width:
            why = f"a patch has {channels} channels, the language model a width of {width}"
            raise UserError("an identity for a projector does not fit", why=why)
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(channels, width)
    if deep := MLP.fullmatch(kind):
        more = [part for _ in range(int(deep[1]) - 1) for part in (nn.GELU(), nn.Linear(width, width))]
        return nn.Sequential(nn.Linear(channels, width), *more)
    wide = channels * BLOCKS[kind] ** 2
    start: list[nn.Module] = [Blocks(BLOCKS[kind], column_major), nn.LayerNorm(wide)]
    if BLOCKS[kind] == 3:
        start += [nn.Linear(wide, 3 * channels), nn.GELU(), nn.LayerNorm(3 * channels)]
        wide = 3 * channels
    return nn.Sequential(*start, nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))


def pooled(token_FNE: Tensor, pools: Sequence[Pool]) -> Tensor:
    """Tokens of all frames [F, N, E] → means over blocks of frames, rows and columns, one pool behind another [., E].

    Raises ValueError unless the blocks fill the film.
    """
    side = math.isqrt(token_FNE.shape[1])
    film_FYXE = token_FNE.unflatten(1, (side, side))
    for sizes in pools:
        if any(whole % part for whole, part in zip(film_FYXE.shape[:3], sizes, strict=True)):
            raise ValueError(f"{len(film_FYXE)} frames of {side} x {side} tokens are no multiple of the pool {sizes}")
    return torch.cat([_mean(film_FYXE, sizes).flatten(0, 2) for sizes in pools])


def _mean(film_FYXE: Tensor, sizes: Pool) -> Tensor:
    for axis, size in enumerate(sizes):
        film_FYXE = film_FYXE.unflatten(axis, (-1, size)).mean(axis + 1)
    return film_FYXE
