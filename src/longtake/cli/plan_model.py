"""How large the model of a plan is: read from its config.json alone, a name of a table, or the user's own sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from longtake.config import Settings, suggest
from longtake.errors import UserError
from longtake.log.files import read_json
from longtake.maths.shapes import PRESETS, Shape, UnknownShape, shape_of
from longtake.models.rope import STATED, reach

PER_FRAME = 70.0  # tokens, where no processor says otherwise (performance.md; about 330 x 330 pixels)
TIME = 4.5  # tokens of marks and times a frame (Qwen3-VL writes them for every two)
FILM = 1280 * 720  # pixels of a film's frame, before a processor makes it smaller
VARIANT = re.compile(r"-(instruct|thinking|chat|base|awq|fp8|bnb|4bit|int[48]|gptq)\b.*", re.IGNORECASE)


class Sizes(Settings):
    """A decoder with gated MLPs that has no checkpoint yet."""

    layers: int = Field(ge=1, description="decoder layers")
    width: int = Field(ge=1, description="hidden size")
    heads: int = Field(ge=1, description="query heads")
    kv_heads: int = Field(ge=1, description="key/value heads")
    head_width: int = Field(ge=1, description="width of a head")
    inner: int = Field(ge=1, description="width of the MLP")
    vocab: int = Field(ge=1, description="tokens of the vocabulary")
    tied: bool = Field(False, description="embedding and head are one matrix")
    tower: int = Field(0, ge=0, description="parameters of the vision tower")

    @model_validator(mode="after")
    def _grouped(self) -> Sizes:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")
        return self


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of a model. Example: known("qwen2.5-vl-7b", None).per_frame(512) == 70.0."""

    name: str
    shape: Shape
    per_frame: Callable[[int], float]  # tokens of a frame where that many are looked at
    notes: tuple[str, ...]  # what was assumed; the last one of tokens a frame
    reach: int = 0  # positions it knows where every token takes one; 0 = unknown, or M-RoPE, which takes fewer


def known(model: str | None, sizes: Sizes | None, per_frame: float | None = None) -> Known:
    """The model's shape; `per_frame` tokens, if given, instead of its processor's.

    Raises UserError for a model that is not here or does not say how large it is.
    """
    found = _found(model, sizes)
    return found if per_frame is None else replace(found, per_frame=lambda _: per_frame, notes=found.notes[:-1])


def _found(model: str | None, sizes: Sizes | None) -> Known:
    if sizes is not None:
        return Known("your sizes", Shape(**sizes.model_dump()), lambda _: PER_FRAME, (_assumed(),))
    assert model is not None
    if model.lower() in PRESETS:
        return Known(model.lower(), PRESETS[model.lower()], lambda _: PER_FRAME, (_assumed(),))
    path = Path(model).expanduser()
    if path.is_dir():
        return _read(model, path)
    if path.is_file():
        raise UserError("a model is a folder, this is a file", where=model, fix="name the folder that holds it")
    if (cached := _cached(model)) is not None:
        return _read(model, cached)
    like = VARIANT.sub("", model.rsplit("/", 1)[-1]).lower()
    if like in PRESETS:
        note = f"no copy of {model} here: sizes are those of {like}"
        return Known(model, PRESETS[like], lambda _: PER_FRAME, (note, _assumed()))
    near = suggest(like, PRESETS)
    meant = f"did you mean '{near}'? Else " if near else ""
    fix = f"{meant}a folder with config.json, a hub id that was downloaded, or one of {', '.join(PRESETS)}"
    raise UserError("no such model", where=f"--model {model}", fix=fix)


def _assumed() -> str:
    return f"{PER_FRAME:.0f} tokens a frame are assumed; set --tokens-per-frame"


def _read(name: str, folder: Path) -> Known:
    """Config and, if there, the constants of the video processor."""
    file = folder / "config.json"
    if not file.is_file():
        raise UserError("not a model: no config.json", where=str(folder), fix="name the folder that holds it")
    read = read_json(file)
    config = _usual(read) if isinstance(read, dict) else {}
    try:
        shape = shape_of(config)
    except UnknownShape as error:
        fix = "give the sizes: --sizes.layers … --sizes.width … (longtake plan --help)"
        raise UserError(f"config.json does not say {error}", where=str(file), fix=fix) from error
    kept = read_json(folder / "context.json") if (folder / "context.json").is_file() else None
    ours = isinstance(kept, dict) and bool(kept.get("rope"))
    longest = _reach({**config, **(config.get("text_config") or {})}, ours)
    if (each := _fixed(config)) is not None:
        return Known(name, shape, lambda _: each, (f"tokens a frame: {each:g}, by config.json",), longest)
    for part in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if (folder / part).is_file() and (found := _per_frame(read_json(folder / part), shape)):
            return Known(name, shape, found, (f"tokens a frame: {part}, films of 1280 x 720",), longest)
    return Known(name, shape, lambda _: PER_FRAME, (_assumed(),), longest)


def _usual(config: dict[str, Any]) -> dict[str, Any]:
    """NVILA's config.json, which names its parts `_cfg`, as transformers would write it; others as they are."""
    parts = {"text_config": config.get("llm_cfg"), "vision_config": config.get("vision_tower_cfg")}
    return config | {key: part for key, part in parts.items() if isinstance(part, dict)}


def _fixed(config: dict[str, Any]) -> float | None:
    """Tokens of a frame where all frames become as many: LLaVA-NeXT-Video, and NVILA with its newline; else None."""
    vision, projector = config.get("vision_config"), config.get("mm_projector_cfg")
    image, patch = (vision.get(key) for key in ("image_size", "patch_size")) if isinstance(vision, dict) else (0, 0)
    if not isinstance(image, int) or not isinstance(patch, int) or patch < 1:
        return None
    if "pool_sizes" in str(config.get("video_encoder")):  # NVILA-8B-Video pools over frames
        return None
    grid = image // patch
    if config.get("model_type") == "llava_next_video":
        return float((grid // int(config.get("spatial_pool_stride", 2))) ** 2)
    kind = str(projector.get("mm_projector_type", "")) if isinstance(projector, dict) else ""
    down = re.fullmatch(r"mlp_downsample(?:_(\d)x\1_fix)?", kind)
    return float((-(-grid // int(down.group(1) or 2))) ** 2 + 1) if down else None


def _reach(text: dict[str, Any], ours: bool) -> int:
    longest = text.get("max_position_embeddings")
    parameters = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if not isinstance(longest, int) or "mrope_section" in parameters:
        return 0
    return reach(parameters, max(longest, text.get(STATED) or 0), ours)


def _per_frame(constants: Any, shape: Shape) -> Callable[[int], float] | None:
    """Tokens a frame, by a processor that bounds the pixels of a whole film; None if it does not say."""
    size = constants.get("size") if isinstance(constants, dict) else None
    names = ("patch_size", "merge_size", "temporal_patch_size")
    numbers = [constants.get(name) for name in names] if isinstance(size, dict) else []
    most = size.get("longest_edge") if isinstance(size, dict) else None
    if not isinstance(most, int) or not all(isinstance(number, int) and number > 0 for number in numbers):
        return None
    patch, merge, temporal = (int(number) for number in numbers)
    marks = TIME if shape.levels else 0.0
    return lambda frames: max(1.0, min(FILM, most / frames) // (patch * merge) ** 2) / temporal + marks


def _cached(model: str) -> Path | None:
    """The folder of a hub repository's config.json in the local cache; nothing is downloaded."""
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", model):
        return None
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:  # it comes with the extra that trains
        return None
    found = try_to_load_from_cache(model, "config.json")
    return Path(found).parent if isinstance(found, str) else None
