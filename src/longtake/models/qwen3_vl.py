"""Qwen3-VL behind the Model protocol: transformers' own class, our pixels, prompt, positions and attention.

T packed tokens, P prompt tokens, L feature levels (merged tokens, then DeepStack), E model width.
Sources: Qwen3-VL technical report (arXiv 2511.21631), DeepStack (arXiv 2406.04334), both as in transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.models.network import Sent
from longtake.models.pixels import processor_files
from longtake.models.qwen_vl import QwenVL
from longtake.records import Prompt, Receipt


class Qwen3VL(QwenVL):
    """A Qwen3-VL network with its tokenizer and the constants of its processor (see protocols.Model).

    Example: model = load_model("Qwen/Qwen3-VL-2B-Instruct"); model.encode([frames_FHWC])[0].level_LNE.
    """

    family = "qwen3_vl"
    classes = "Qwen3VLForConditionalGeneration"

    def film(self, receipt: Receipt, grid: tuple[int, int, int]) -> str:
        """Time and marks of every temporal patch.

        As Qwen's reference processor (transformers 4.57) and vLLM: the whole mark is replaced. transformers 5 replaces
        the pad alone and so leaves a second pair of marks around it all, which the checkpoints never saw in training.
        """
        patch = f"{self.open}{self.video * self.tokens(grid)}{self.close}"
        return "".join(f"<{middle:.1f} seconds>{patch}" for middle in self.middles(receipt))

    def middles(self, receipt: Receipt) -> list[float]:
        """Seconds at which a temporal patch stands: the middle of its frames."""
        seconds, stride = receipt.seconds, self.temporal_patch
        return [(seconds[k] + seconds[k + stride - 1]) / 2 for k in range(0, len(seconds), stride)]

    def block(self, prompt: Prompt, receipt: Receipt, grid: tuple[int, int, int]) -> tuple[int, int]:
        """With the times before each temporal patch and the marks around it."""
        stop = prompt.visual[-1][1] + 1
        return stop - len(self.tokenizer(self.film(receipt, grid), add_special_tokens=False)["input_ids"]), stop

    def timed(self, sent: Sent, receipt: Receipt) -> Sent:
        return replace(sent, timestamps=tuple(self.middles(receipt)))

    def blocks(self, grid: tuple[int, int, int]) -> list[int]:
        """A run for every temporal patch."""
        return [self.tokens(grid)] * grid[0]

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P], rows (time, height, width): text counts on in all three rows; a temporal patch stands still in
        time, spreads over its merged grid, and takes as many positions as its longer side.

        `grids` are patches along (time, height, width) of each film or picture. Raises ValueError if they do not match
        `ids`.
        """
        step_P, places = self.spread(ids, grids)
        spread_3P = np.zeros((3, len(step_P)), np.int64)
        for grid, place_TN in zip(grids, places, strict=True):
            spread_3P[1, place_TN], spread_3P[2, place_TN] = self.plane(grid)
            step_P[place_TN[:, -1]] = max(grid[1:]) // self.pixels.merge
        return torch.from_numpy(spread_3P + (np.cumsum(step_P) - step_P))

    def hidden(
        self, embed_TE: Tensor, position_3T: Tensor, visual_T: Tensor, deepstack: Tensor | None, attention: Any
    ) -> Tensor:
        """Decoder over one packed row → last hidden states [T, E] after the final norm.

        embed_TE already holds the visual features at visual_T (bool); deepstack is [L - 1, visual tokens, E] or None.
        `attention` is what models.attention accepts; it decides who sees whom. Raises ValueError for anything else.
        """
        device = embed_TE.device
        out = self.text(
            inputs_embeds=embed_TE[None],
            position_ids=position_3T[:, None].to(device),
            visual_pos_masks=visual_T[None].to(device),
            deepstack_visual_embeds=deepstack,
            use_cache=False,
            attention=attention,
        )
        return out.last_hidden_state[0]

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        return processor_files(self.pixels, "Qwen3VLProcessor", "Qwen3VLVideoProcessor")
