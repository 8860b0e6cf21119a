"""NVILA's network, put together from transformers' SigLIP and Qwen2: what the rest of longtake calls `model.net`.

F frames or tiles, S patches along an edge of one, C channels of a patch, E model width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn.functional import interpolate
from transformers import PreTrainedConfig

from longtake.models.nvila_files import LLM, PROJECTOR, STALE, TOWER
from longtake.models.nvila_pixels import Size, TilePixels
from longtake.models.nvila_projector import Projector

SLAB = 65536  # patches in one call of the tower: bounds its memory


class Eyes(nn.Module):
    """Vision tower and projector: all that features depend on, with `pixels`."""

    def __init__(self, vision_tower: Any, mm_projector: Projector, pixels: TilePixels) -> None:
        super().__init__()
        self.vision_tower, self.mm_projector, self.pixels = vision_tower, mm_projector, pixels

    def forward(self, pixels_F3HW: Tensor) -> Tensor:
        """Frames → visual tokens [F, N, E]; with scales, a frame stands for all of them."""
        patch_FPC = self.patches(pixels_F3HW)
        tokens: Tensor = self.mm_projector(torch.cat([patch_FPC] * max(1, len(self.pixels.scales)), dim=-1))
        return tokens

    def patches(self, pixels_F3HW: Tensor) -> Tensor:
        """[F, S * S, C] as they are after `depth` layers, before any last norm: the layers behind are not computed."""
        hidden: Tensor = self.vision_tower.embeddings(pixels_F3HW)
        for layer in self.vision_tower.encoder.layers[: self.pixels.depth]:
            hidden = layer(hidden, None)
        return hidden[:, self.pixels.first :]

    def whole(self, scaled: Sequence[tuple[Tensor, Size]]) -> Tensor:
        """One picture at all scales (tiles, their rows and columns) → visual tokens [N, E] of its one map."""
        maps = [join(self.patches(tiles_F3HW), shape) for tiles_F3HW, shape in scaled]
        rows, columns = self.pixels.map(*scaled[-1][1])
        size = rows * self.pixels.grid, columns * self.pixels.grid
        same = [interpolate(one.movedim(-1, 0)[None].float(), size, mode="area")[0].movedim(0, -1) for one in maps]
        map_YXC = torch.cat(same, dim=-1).to(maps[0].dtype)
        tokens = self.mm_projector(split(map_YXC, (rows, columns)))
        return join(tokens, (rows, columns)).flatten(0, 1)


def join(tile_NSC: Tensor, shape: Size) -> Tensor:
    """Tiles' squares [rows * columns, S * S, C] → one map [rows * S, columns * S, C]."""
    side = round(tile_NSC.shape[1] ** 0.5)
    return tile_NSC.unflatten(1, (side, side)).unflatten(0, shape).transpose(1, 2).flatten(2, 3).flatten(0, 1)


def split(map_YXC: Tensor, shape: Size) -> Tensor:
    """The way back."""
    blocks = map_YXC.unflatten(1, (shape[1], -1)).unflatten(0, (shape[0], -1)).transpose(1, 2)
    return blocks.flatten(2, 3).flatten(0, 1)


class Composed(nn.Module):
    """The language model behind its eyes. Parameters are called llm.…, as in the released code, so adapters fit both.

    Example: Composed(llm, Eyes(tower, projector, pixels), root).save_pretrained("model").
    """

    base_model_prefix = ""  # peft asks whatever has a config of transformers' for it

    def __init__(self, llm: Any, eyes: Eyes, root: Mapping[str, Any]) -> None:
        """`root`: the folder's config.json."""
        super().__init__()
        self.llm, self.eyes, self.root = llm, eyes, dict(root)
        self.generation_config, self.name_or_path = llm.generation_config, ""
        vision = eyes.vision_tower.config.to_dict() | {"spatial_merge_size": eyes.mm_projector.edge}
        both: dict[str, Any] = {"text_config": llm.config, "vision_config": vision}
        self.config = PreTrainedConfig(**both)  # where the rest of longtake looks for sizes

    @property
    def lm_head(self) -> Any:
        return self.llm.lm_head

    @property
    def dtype(self) -> torch.dtype:
        return self.llm.dtype

    @property
    def device(self) -> torch.device:
        return self.llm.device

    def save_pretrained(self, folder: Path) -> None:
        """Writes the three folders and the root's config.json, as they were read."""
        tower, projector = self.eyes.vision_tower, self.eyes.mm_projector
        self.llm.save_pretrained(folder / LLM)
        tower.save_pretrained(folder / TOWER)
        (folder / PROJECTOR).mkdir(exist_ok=True)
        said: dict[str, Any] = {"mm_projector_type": projector.kind, "model_type": "v2l_projector"}
        said |= {"column_major": True} if projector.column_major else {}
        if projector.state_dict():
            save_model(projector, str(folder / PROJECTOR / "model.safetensors"), {"format": "pt"})
        _write(said, folder / PROJECTOR)
        parts = {LLM: self.llm.config.to_dict(), TOWER: tower.config.to_dict(), PROJECTOR: said}
        kept = {key: value for key, value in self.root.items() if key not in STALE}
        _write(kept | {f"{name}_cfg": part for name, part in parts.items()}, folder)


def _write(content: Mapping[str, Any], folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")
