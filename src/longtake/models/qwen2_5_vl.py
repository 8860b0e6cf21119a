"""Qwen2.5-VL behind the Model protocol: one block of tokens for a film, whose positions tell the time.

T packed tokens, P prompt tokens.
Source: Qwen2.5-VL technical report (arXiv 2502.13923), Qwen's own code (as in transformers 4 and vLLM).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.models.network import Sent
from longtake.models.pixels import FramePixels, Pixels, processor_files, read_pixels
from longtake.models.qwen_vl import QwenVL
from longtake.records import Receipt


class Qwen25VL(QwenVL):
    """A Qwen2.5-VL network with its tokenizer and the constants of its processor (see protocols.Model).

    Example: model = load_model("Qwen/Qwen2.5-VL-7B-Instruct"); model.encode([frames_FHWC])[0].level_LNE.
    """

    family = "qwen2_5_vl"
    classes = "Qwen2_5_VLForConditionalGeneration"

    @staticmethod
    def constants(folder: Path) -> Pixels:
        """The processor's, as its files say."""
        return read_pixels(folder, FramePixels)

    def film(self, receipt: Receipt, grid: tuple[int, int, int]) -> str:
        """All temporal patches in one pair of marks."""
        return f"{self.open}{self.video * (grid[0] * self.tokens(grid))}{self.close}"

    def blocks(self, grid: tuple[int, int, int]) -> list[int]:
        """One run."""
        return [grid[0] * self.tokens(grid)]

    def placed(self, ids: Sequence[int], grid: tuple[int, int, int] | None, receipt: Receipt | None) -> Tensor:
        return self.positions(ids, [grid] if grid else [], [self.seconds(receipt)] if receipt else [])

    def seconds(self, receipt: Receipt) -> float:
        """From one temporal patch to the next, as the processor's second_per_grid_ts; 0 of a picture."""
        shown = receipt.seconds
        return self.temporal_patch * (shown[-1] - shown[0]) / max(1, len(shown) - 1) if not receipt.image else 0.0

    def timed(self, sent: Sent, receipt: Receipt) -> Sent:
        """With seconds between temporal patches whose multiples in float64, as vLLM takes them, fall on the whole
        positions that ours in float32 fall on; where there are none, most do.
        """
        rate, count = self.net.config.vision_config.tokens_per_second, sent.grid[0]
        time_T, k_T = self.times(count, self.seconds(receipt)), np.arange(count)
        least, most = (time_T[1:] / k_T[1:]).max(initial=0.0), ((time_T[1:] + 1) / k_T[1:]).min(initial=np.inf)
        seconds = float(least + most) / 2 / rate if count > 1 else 0.0
        moved = int(((k_T * (seconds * rate)).astype(np.int64) != time_T).sum())
        return replace(sent, seconds=seconds, moved=moved)

    def times(self, count: int, apart: float) -> np.ndarray:
        """int64 [count]: positions in time of temporal patches that lie `apart` seconds apart, from 0."""
        rate = self.net.config.vision_config.tokens_per_second
        return (torch.arange(count) * (torch.tensor(apart, dtype=torch.float32) * rate)).long().numpy()

    def positions(
        self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]], seconds: Sequence[float] | None = None
    ) -> Tensor:
        """int64 [3, P], rows (time, height, width): text counts on in all three rows; a film spreads over its merged
        grid and moves on in time by tokens_per_second; what follows it begins behind all of its positions.

        `grids` are patches along (time, height, width) of each film or picture, `seconds` from one temporal patch to
        the next (default: 1). Raises ValueError if the grids do not match `ids`.

        transformers 5.3 and later begin what follows behind the longer side of the grid alone, and so inside a long
        film (its issue 45325); the checkpoints were trained with this rule.
        """
        step_P, places = self.spread(ids, grids)
        spread_3P = np.zeros((3, len(step_P)), np.int64)
        for grid, place_TN, apart in zip(grids, places, seconds or [1.0] * len(grids), strict=True):
            spread_3P[0, place_TN] = self.times(grid[0], apart)[:, None]
            spread_3P[1, place_TN], spread_3P[2, place_TN] = self.plane(grid)
            step_P[place_TN[-1, -1]] = spread_3P[:, place_TN].max() + 1
        return torch.from_numpy(spread_3P + (np.cumsum(step_P) - step_P))

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        return processor_files(self.pixels, "Qwen2_5_VLProcessor", "Qwen2VLVideoProcessor")
