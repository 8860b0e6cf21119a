"""What the Qwen vision-language families share: a tower over merged patches, and prompts with visual marks.

T packed tokens, P prompt tokens, N visual tokens, L feature levels (merged tokens, then DeepStack), E model width, C
numbers of one patch.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longtake.errors import UserError
from longtake.models import attention as registered
from longtake.models.checkpoint import network, read_tokenizer
from longtake.models.network import Network, Sent, runs, token_of
from longtake.models.pixels import Pixels, read_pixels
from longtake.records import Features, Prompt, Question, Receipt

SLAB = 65536  # patches in one call of the tower: bounds its memory; frames never see each other, so cuts are exact
_FILM, _PICTURE = {"type": "video", "video": ""}, {"type": "image", "image": ""}  # parts of a turn


class PatchEmbed(nn.Module):
    """transformers' Conv3d whose stride is its kernel, as the matrix product it is; the weights stay where they are.

    On CPU the convolution takes three (forward) to five times (backward) as long.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches_NC: Tensor) -> Tensor:
        return linear(patches_NC.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class QwenVL(Network):
    """A Qwen-VL network; a family says how a film stands in the text and which positions it has."""

    classes: ClassVar[str]  # transformers' class

    def __init__(self, net: Any, tokenizer: Any, pixels: Pixels) -> None:
        config = net.config
        vision: Any = config.vision_config
        shape = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        if shape != (pixels.patch, pixels.temporal_patch, pixels.merge):
            why = f"patch, temporal patch and merge are {shape} in config.json, else in the video processor's file"
            raise UserError("video processor and network do not belong together", why=why)
        super().__init__(net, net.model.language_model, tokenizer, pixels, rope_rows=3)
        net.model.visual.patch_embed = PatchEmbed(net.model.visual.patch_embed.proj)
        net.set_attn_implementation({"text_config": registered.TEXT, "vision_config": registered.VISION})
        self.temporal_patch = pixels.temporal_patch
        self.pads = config.video_token_id, config.image_token_id
        self.video, self.image = (token_of(tokenizer, pad) for pad in self.pads)
        ends = (config.vision_start_token_id, config.vision_end_token_id)
        self.open, self.close = (token_of(tokenizer, mark) for mark in ends)

    @classmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Self:
        """Weights of `base`; tokenizer and processor of `folder` where it has them. Raises UserError."""
        import transformers

        net = network(getattr(transformers, cls.classes), base, dtype)
        words = folder if (folder / "tokenizer.json").is_file() else base
        constants = folder if (folder / "video_preprocessor_config.json").is_file() else base
        return cls(net, read_tokenizer(words), cls.constants(constants))

    @staticmethod
    def constants(folder: Path) -> Pixels:
        """The processor's, as its files say."""
        return read_pixels(folder)

    @property
    def tower(self) -> nn.Module:
        """The vision tower: all that features depend on, with `pixels`."""
        return self.net.model.visual

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized; None = a picture. Raises UserError."""
        return self.pixels.fit(width, height, frames, max_pixels)

    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """[N, L, E] of each of these films, or parts of films, of uint8 [F, H, W, 3], those of one size together.

        A frame attends to itself only and positions do not know the time, so films may be joined and cut between
        temporal patches: every film gives the same as alone, to float tolerance.
        """
        rows: list[Tensor] = []
        for _, same in groupby(films, key=lambda frames_FHWC: frames_FHWC.shape[1:]):
            group = list(same)
            grids = [self.pixels.grid(film.shape[2], film.shape[1], len(film)) for film in group]
            row_NLE = self._tower(group[0] if len(group) == 1 else np.concatenate(group))
            rows += row_NLE.split([grid[0] * self.tokens(grid) for grid in grids])
        return rows

    def read(self, seen: Tensor, shape: tuple[int, ...]) -> Features:
        return Features(seen.transpose(0, 1))

    def _tower(self, frames_FHWC: np.ndarray) -> Tensor:
        """[N, L, E] of frames of one size, in slabs of whole temporal patches."""
        _, h, w = self.pixels.grid(frames_FHWC.shape[2], frames_FHWC.shape[1], len(frames_FHWC))
        step = max(1, SLAB // (h * w)) * self.temporal_patch
        slabs = []
        for start in range(0, len(frames_FHWC), step):
            slab = frames_FHWC[start : start + step]
            patches = self.pixels.patchify(slab, self.net.device).to(self.net.dtype)
            grid = torch.tensor([[len(slab) // self.temporal_patch, h, w]], device=self.net.device)
            out = self.tower(patches, grid_thw=grid)
            slabs.append(torch.stack([out.pooler_output, *getattr(out, "deepstack_features", ())], dim=1))
        return torch.cat(slabs) if len(slabs) > 1 else slabs[0]

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header. Text only when receipt is None.

        A picture's receipt makes it one, not a film of one frame. Raises UserError if the question's own text holds a
        visual token.
        """
        part = [] if receipt is None else [_PICTURE if receipt.image else _FILM]
        message = {"role": "user", "content": [*part, {"type": "text", "text": question.text}]}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        grid, expected = None, []
        if receipt is not None:
            grid = self.pixels.grid(receipt.width, receipt.height, len(receipt.indices))
            text, expected = self._shown(text, receipt, grid), self.blocks(grid)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        visual = runs(np.isin(ids, self.pads))
        if [stop - start for start, stop in visual] != expected:
            what = f"question {question.id}: its text holds {self.video} or {self.image}"
            raise UserError(what, fix="take that token out of the row")
        seen = receipt and replace(receipt, tokens=sum(expected))
        return Prompt(question.id, tuple(ids), visual, self.placed(ids, grid, receipt), features, seen)

    def _shown(self, text: str, receipt: Receipt, grid: tuple[int, int, int]) -> str:
        """The template's one visual mark, filled. Raises UserError where there is none."""
        kind, pad = ("image", self.image) if receipt.image else ("video", self.video)
        mark = f"{self.open}{pad}{self.close}"
        if mark not in text:
            raise UserError(f"the chat template shows no {kind}", why=f"it never writes {mark}")
        if receipt.image:
            return text.replace(mark, f"{self.open}{pad * self.tokens(grid)}{self.close}", 1)
        return text.replace(mark, self.film(receipt, grid), 1)

    def sent(self, prompt: Prompt) -> Sent:
        """The film or picture as one visual token, with what the engine needs to place it as we did."""
        receipt = prompt.receipt
        assert receipt is not None
        grid = self.pixels.grid(receipt.width, receipt.height, len(receipt.indices))
        start, stop = prompt.visual[0]
        if receipt.image:
            return Sent("image", (*prompt.ids[:start], self.pads[1], *prompt.ids[stop:]), grid)
        start, stop = self.block(prompt, receipt, grid)
        return self.timed(Sent("video", (*prompt.ids[:start], self.pads[0], *prompt.ids[stop:]), grid), receipt)

    def block(self, prompt: Prompt, receipt: Receipt, grid: tuple[int, int, int]) -> tuple[int, int]:
        """(start, stop) of all tokens of the prompt that an engine puts for a film."""
        return prompt.visual[0]

    @abstractmethod
    def timed(self, sent: Sent, receipt: Receipt) -> Sent:
        """With the film's times, as an engine reads them."""

    def tokens(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens of one temporal patch."""
        return grid[1] * grid[2] // self.pixels.merge**2

    @abstractmethod
    def film(self, receipt: Receipt, grid: tuple[int, int, int]) -> str:
        """What stands for a film in the text, marks and all."""

    @abstractmethod
    def blocks(self, grid: tuple[int, int, int]) -> list[int]:
        """Lengths of the runs of visual tokens that a film or picture becomes."""

    def placed(self, ids: Sequence[int], grid: tuple[int, int, int] | None, receipt: Receipt | None) -> Tensor:
        """Positions of a prompt, int64 [3, P]; see the family's `positions`."""
        return self.positions(ids, [grid] if grid else [])

    def spread(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> tuple[np.ndarray, list[np.ndarray]]:
        """(steps [P], places): by how much each token moves on what follows, 1 for text and 0 for what is seen; and
        where each film's or picture's tokens stand, [t, tokens].

        Raises ValueError if the grids do not match `ids`.
        """
        is_visual_P = np.isin(ids, self.pads)
        place_N = np.flatnonzero(is_visual_P)
        counts = [grid[0] * self.tokens(grid) for grid in grids]
        if len(place_N) != sum(counts):
            raise ValueError(f"{len(place_N)} visual tokens do not fill the grids {list(grids)}")
        parts = np.split(place_N, np.cumsum(counts)[:-1]) if counts else []
        places = [part.reshape(grid[0], -1) for part, grid in zip(parts, grids, strict=True)]
        return (~is_visual_P).astype(np.int64), places

    def plane(self, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """(row, column) of the visual tokens of one temporal patch, from 0."""
        high, wide = grid[1] // self.pixels.merge, grid[2] // self.pixels.merge
        return np.repeat(np.arange(high), wide), np.tile(np.arange(wide), high)
