"""NVILA's folder: `llm`, `vision_tower` and `mm_projector` under one config.json, read and written without its code.

Keys of config.json that are read: mm_vision_select_layer, mm_vision_select_feature, image_aspect_ratio, min_tiles,
max_tiles, dynamic_s2, s2_scales, s2_resize_output_to_scale_idx, image_encoder, video_encoder, chat_template, and the
parts' own configs where a part's folder has none. One key is ours: "column_major": true in mm_projector/config.json
says that mm_downsample's tokens go down the columns first, as the code did before December 2024 (VILA 1.5, LongVILA);
nothing in a checkpoint says which it was trained with, so row-major is taken where the key is absent. What
video_encoder says is done, also where the code released with LongVILA-R1 does not look at it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from longtake.errors import UserError
from longtake.models.checkpoint import AGAIN, Colour, check_weights, colours, first_line, network, read_json
from longtake.models.nvila_pixels import TilePixels
from longtake.models.nvila_projector import Pool, Projector

LLM, TOWER, PROJECTOR = "llm", "vision_tower", "mm_projector"
STALE = ("resume_path", "_name_or_path", "auto_map")  # paths of whoever trained it, and code that does not come along
PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True, slots=True)
class Encoder:
    """What stands around the features of a frame, as text, and how a film is pooled. Example: Encoder(end="\\n")."""

    start: str = ""
    end: str = "\n"
    between: str = ""  # behind every pool
    pools: tuple[Pool, ...] = ()


def read_encoder(root: Mapping[str, Any], key: str) -> Encoder:
    """`image_encoder` or `video_encoder` of config.json: a dict, or one in JSON. Raises UserError."""
    said = root.get(key)
    try:
        found = json.loads(said) if isinstance(said, str) else said or {"_target_": "Basic"}
        name = str(found["_target_"]).rpartition(".")[2]
        pools = tuple(_pool(sizes) for sizes in found["pool_sizes"]) if name.startswith("TSP") else ()
        if not name.startswith(("Basic", "TSP")):
            raise ValueError(f"there is no {name} here, only Basic and TSP")
        marks = (found.get("start_tokens") or "", found.get("end_tokens", "\n") or "", found.get("sep_tokens") or "")
        if not all(isinstance(mark, str) for mark in marks):
            raise ValueError("start_tokens, end_tokens and sep_tokens are text")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"unsupported {key} in config.json", why=f"{said!r}: {error}"[:200]) from error
    return Encoder(*marks, pools=pools)


def _pool(sizes: Any) -> Pool:
    frames, rows, columns = (int(size) for size in sizes)
    if min(frames, rows, columns) < 1:
        raise ValueError(f"pool sizes are 1 or more, got {sizes}")
    return frames, rows, columns


def part_config(base: Path, root: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A part's config: its folder's, else the copy in the root's. Raises UserError if neither is there."""
    if not (base / name).is_dir():
        what, fix = f"{name}/ is missing", "copy or download the whole model again"
        raise UserError(what, where=str(base), why="an NVILA folder has llm, vision_tower and mm_projector", fix=fix)
    if (base / name / "config.json").is_file():
        return read_json(base / name / "config.json")
    inside = root.get(f"{name}_cfg")
    if not isinstance(inside, dict):
        raise UserError("config.json is missing", where=str(base / name), fix="copy or download it again")
    return dict(inside)


def read_llm(base: Path, root: Mapping[str, Any], dtype: torch.dtype | str) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    said = part_config(base, root, LLM)
    if said.get("model_type") != "qwen2":
        raise UserError("unsupported language model", where=str(base / LLM), why=_kind(said, "qwen2"))
    if not isinstance(said.get("hidden_size"), int):
        raise UserError("config.json is incomplete", where=str(base / LLM), why="no hidden_size", fix=AGAIN)
    return network(Qwen2ForCausalLM, base / LLM, dtype, Qwen2Config.from_dict(said))


def read_tower(base: Path, root: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    said = part_config(base, root, TOWER)
    said = said.get("vision_config", said)
    if said.get("model_type", "siglip_vision_model") != "siglip_vision_model":
        raise UserError("unsupported vision tower", where=str(base / TOWER), why=_kind(said, "siglip_vision_model"))
    return network(SiglipVisionModel, base / TOWER, dtype, SiglipVisionConfig.from_dict(said))


def _kind(said: Mapping[str, Any], ours: str) -> str:
    return f"model_type is {said.get('model_type')!r}; longtake composes NVILA with {ours}"


def read_projector(base: Path, root: Mapping[str, Any], channels: int, width: int, dtype: torch.dtype) -> Projector:
    """`channels` of a patch that go in. Raises UserError for weights that are not those of the kind."""
    said, folder = part_config(base, root, PROJECTOR), base / PROJECTOR
    made = Projector(str(said.get("mm_projector_type")), channels, width, bool(said.get("column_major"))).to(dtype)
    needs = {name: tuple(x.shape) for name, x in made.state_dict().items()}
    if needs:
        check_weights(folder)
    state = {name: x for file in sorted(folder.glob("*.safetensors")) for name, x in load_file(file).items()}
    there = {name: tuple(x.shape) for name, x in state.items()}
    if there != needs:
        name = min(name for name in there.keys() | needs.keys() if there.get(name) != needs.get(name))
        why = f"{name} is {there.get(name, 'not there')}, {made.kind} of {channels} channels has {needs.get(name)}"
        raise UserError("weights and config.json do not belong together", where=str(folder), why=why)
    made.load_state_dict(state)
    return made


def channels_of(root: Mapping[str, Any], tower: Any) -> int:
    """Channels of a patch as the projector reads them: the tower's, as often as there are scales."""
    return int(tower.config.hidden_size) * max(1, len(_scales(root, tower.config.image_size)))


def read_pixels(folder: Path, root: Mapping[str, Any], tower: Any, projector: Projector) -> TilePixels:
    """How this checkpoint looks at things; `folder` holds the vision tower's processor. Raises UserError."""
    vision, scaled = tower.config, bool(root.get("dynamic_s2"))
    size, grid, edge = int(vision.image_size), vision.image_size // vision.patch_size, projector.edge
    mean, std = _colours(folder / TOWER / PROCESSOR, size)
    aspect = str(root.get("image_aspect_ratio") or "resize")
    several = aspect == "dynamic_s2" or root.get("s2")
    if aspect not in ("resize", "dynamic", "dynamic_s2") or (several and not scaled):
        why = f"image_aspect_ratio is {aspect!r}, s2 {root.get('s2')!r}, dynamic_s2 {scaled}"
        fix = "longtake has resize and dynamic, and with dynamic_s2 true dynamic_s2"
        raise UserError("unsupported way to look at pictures", why=why, fix=fix)
    pools, side, scales = read_encoder(root, "video_encoder").pools, -(-grid // edge), _scales(root, size)
    for pool in pools:
        if side % pool[1] or side % pool[2]:
            why = f"a frame is {side} x {side} tokens, video_encoder's pool is {pool[1]} x {pool[2]}"
            raise UserError("the pools do not fill a frame", why=why, fix="correct pool_sizes in config.json")
    first = 0 if root.get("mm_vision_select_feature", "patch") == "cls_patch" else 1
    if first and (edge > 1 or pools or aspect == "dynamic_s2"):
        why = 'mm_vision_select_feature is "patch" or absent: that leaves out a real patch of SigLIP, and no square'
        raise UserError("config.json is wrong", why=why, fix='set it to "cls_patch"')
    try:
        made = TilePixels(
            size, grid, side, mean, std, aspect, depth=_depth(root, vision.num_hidden_layers), first=first,
            min_tiles=int(root.get("min_tiles") or 1), max_tiles=int(root.get("max_tiles") or 12), pools=pools,
            scales=scales, onto=int(root.get("s2_resize_output_to_scale_idx") or 0),
            column_major=projector.column_major,
        )  # fmt: skip
        if aspect != "resize" and made.least > made.max_tiles:
            raise ValueError(f"a picture is at least {made.least} tiles, max_tiles is {made.max_tiles}")
        return made
    except (TypeError, ValueError) as error:
        raise UserError("config.json is wrong", why=str(error)[:200]) from error


def _colours(file: Path, size: int) -> tuple[Colour, Colour]:
    """Mean and deviation, of a processor that makes squares of `size`. Raises UserError."""
    if not file.is_file():
        raise UserError(f"{TOWER}/{PROCESSOR} is missing", where=str(file.parent.parent), fix=AGAIN)
    said = read_json(file)
    for name in ("size", "crop_size"):
        if said.get(name) not in (None, {"height": size, "width": size}):
            why = f"image_size is {size} in config.json, the processor's {name} is {said[name]}"
            raise UserError("processor and vision tower do not belong together", where=str(file), why=why)
    try:
        return colours({"image_mean": [0.5] * 3, "image_std": [0.5] * 3} | said)  # SigLIP's, where none are said
    except (TypeError, ValueError) as error:
        raise UserError("the processor's file is wrong", where=str(file), why=first_line(error)) from error


def _depth(root: Mapping[str, Any], layers: int) -> int:
    """Of hidden_states[mm_vision_select_layer]: how many layers it has been through."""
    named = int(root.get("mm_vision_select_layer", -2))
    if not -layers - 1 <= named <= layers:
        raise ValueError(f"mm_vision_select_layer is {named}, the tower has {layers} layers")
    return named % (layers + 1)


def _scales(root: Mapping[str, Any], size: int) -> tuple[int, ...]:
    if not root.get("dynamic_s2"):
        return ()
    said = root.get("s2_scales") or "448,896,1344"
    try:
        scales = tuple(sorted(int(scale) for scale in (said.split(",") if isinstance(said, str) else said)))
    except (TypeError, ValueError):
        scales = ()
    if not scales or scales[0] != size or any(scale % size for scale in scales):
        why = f"s2_scales are {said!r}, the tower sees {size} x {size} pixels: the first is {size}, the rest multiples"
        raise UserError("config.json is wrong", why=why)
    return scales
