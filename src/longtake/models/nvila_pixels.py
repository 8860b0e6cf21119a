"""How an NVILA checkpoint looks at films and pictures: sizes, tiles, normalisation, and how many tokens come out.

F frames, H height, W width (pixels), N tiles.
Source: NVILA (arXiv 2412.04468) and its released code; PS3/S2 scales: arXiv 2403.13043.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longtake.errors import UserError
from longtake.models.nvila_projector import Pool

Size = tuple[int, int]


@dataclass(frozen=True, slots=True)
class TilePixels:
    """All that features depend on beside the weights.

    Example: TilePixels(448, 32, 16, (0.5,) * 3, (0.5,) * 3, "resize", depth=26).size.
    """

    size: int  # pixels along an edge of a frame, or of a tile of a picture
    grid: int  # patches along it
    side: int  # visual tokens along it, before any pooling
    mean: tuple[float, ...]
    std: tuple[float, ...]
    aspect: str  # of pictures: "resize" | "dynamic" (tiles) | "dynamic_s2" (one map of three scales)
    depth: int  # layers of the tower that patches go through
    first: int = 0  # patches left out at the start ("patch" takes them for a CLS token)
    min_tiles: int = 1
    max_tiles: int = 12
    pools: tuple[Pool, ...] = ()  # of a film; () = every frame as it is
    scales: tuple[int, ...] = ()  # of dynamic_s2, ascending, in pixels
    onto: int = 0  # which of them gives the map its size
    column_major: bool = False  # the order of the projector's tokens

    @property
    def frames(self) -> int:
        """Frames that a film must be a multiple of."""
        return math.lcm(*(pool[0] for pool in self.pools))

    @property
    def least(self) -> int:
        """Tiles of a picture, at least."""
        if self.aspect == "resize":
            return 1
        return (self.scales[-1] // self.scales[0]) ** 2 if self.aspect == "dynamic_s2" else self.min_tiles

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> Size:
        """Size in pixels (width, height) that frames are resized to, whatever their aspect; None = a picture, to whole
        tiles of the nearest aspect. Raises UserError where `max_pixels` leaves no room for that.
        """
        least, most = 1, 1
        if frames is None and self.aspect != "resize":
            least, most = self.least, self.max_tiles
        if max_pixels is not None:
            most = min(most, max_pixels // self.size**2)
        if most < least:
            why = f"this model sees at least {least * self.size**2} pixels, in squares of {self.size} x {self.size}"
            raise UserError(f"max_pixels {max_pixels} is too small", why=why, fix="raise max_pixels, or leave it out")
        across, down = self._tiles(width, height, least, most)
        return across * self.size, down * self.size

    def _tiles(self, width: int, height: int, least: int, most: int) -> Size:
        """The (columns, rows) whose aspect is nearest; of two as near, the later and larger one for large pictures."""
        ways = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1) if least <= i * j <= most]
        best, apart = (1, 1), math.inf
        for i, j in sorted(ways, key=lambda way: way[0] * way[1]):
            off = abs(width / height - i / j)
            if off < apart or (off == apart and width * height > 0.5 * self.size**2 * i * j):
                best, apart = (i, j), off
        return best

    def patches(self, width: int, height: int, frames: int | None) -> tuple[int, int, int]:
        """Patches along (time, height, width); a picture (frames None) has no time, 0. Raises ValueError for what `fit`
        does not give.
        """
        down, across = height // self.size, width // self.size
        whole = (across * self.size, down * self.size) == (width, height) and down * across > 0
        if not whole or (frames is not None and (down * across > 1 or frames % self.frames)):
            rule = f"films are a multiple of {self.frames} frames of {self.size} x {self.size}, pictures whole tiles"
            raise ValueError(f"{rule}: got {frames} frames of {width} x {height}")
        return frames or 0, down * self.grid, across * self.grid

    def tokens(self, patches: tuple[int, int, int]) -> list[list[int]]:
        """Visual tokens of each frame after pooling, one list for each pool; of a picture, one for each tile."""
        frames, down, across = patches[0], patches[1] // self.grid, patches[2] // self.grid
        each = self.side**2 - self.first
        if frames == 0 and self.aspect == "dynamic_s2":
            rows, columns = self.map(down, across)
            return [[each * rows * columns]]
        if frames == 0:
            return [[each]] * self.shots(down, across)
        if not self.pools:
            return [[each] * frames]
        return [[(self.side // rows) * (self.side // columns)] * (frames // t) for t, rows, columns in self.pools]

    def shots(self, down: int, across: int) -> int:
        """Tiles of a picture, with the whole of it as the last where there are several."""
        return down * across + (down * across > 1)

    def map(self, down: int, across: int) -> Size:
        """(rows, columns) of tiles whose map all scales are brought onto."""
        last = self.onto % len(self.scales) == len(self.scales) - 1
        edge = self.scales[self.onto] // self.scales[0]
        return (down, across) if last else (edge, edge)

    def cut(self, picture_HWC: np.ndarray) -> np.ndarray:
        """A picture's tiles row by row and, behind several, the whole of it: uint8 [N, size, size, 3].

        The whole is made of the tiles' pixels, where the released code makes it of the file's: PIL's bicubic twice
        instead of once.
        """
        tiles_NHWC = self._chess(picture_HWC)
        if len(tiles_NHWC) == 1:
            return tiles_NHWC
        return np.concatenate([tiles_NHWC, self._to(picture_HWC, self.size)[None]])

    def scaled(self, picture_HWC: np.ndarray) -> list[tuple[np.ndarray, Size]]:
        """Tiles of a picture at every scale, with their (rows, columns); the last scale is the picture's own."""
        smaller = [self._to(picture_HWC, scale) for scale in self.scales[:-1]]
        at_HWC = [*smaller, picture_HWC]
        return [(self._chess(x), (x.shape[0] // self.size, x.shape[1] // self.size)) for x in at_HWC]

    def _chess(self, picture_HWC: np.ndarray) -> np.ndarray:
        s = self.size
        down, across = picture_HWC.shape[0] // s, picture_HWC.shape[1] // s
        return picture_HWC.reshape(down, s, across, s, 3).swapaxes(1, 2).reshape(-1, s, s, 3)

    def _to(self, picture_HWC: np.ndarray, edge: int) -> np.ndarray:
        return np.asarray(Image.fromarray(picture_HWC).resize((edge, edge), Image.Resampling.BICUBIC))

    def normal(self, frames_FHWC: np.ndarray, device: torch.device) -> Tensor:
        """uint8 [F, H, W, 3] → float32 [F, 3, H, W]."""
        owned = np.require(frames_FHWC, requirements=["C", "W"])  # a read-only memory map is copied
        pixels = torch.from_numpy(owned).to(device).permute(0, 3, 1, 2).float() / 255.0
        mean, std = (torch.tensor(x, device=device)[:, None, None] for x in (self.mean, self.std))
        return (pixels - mean) / std
