"""What a checkpoint's folder holds, read with sentences for what is wrong: JSON, weights, tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longtake.errors import UserError

AGAIN = "copy or download the model again"
GENERATION = "generation_config.json"
BICUBIC = 3  # as pillow numbers it
Colour = tuple[float, float, float]  # red, green, blue


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("not a JSON file", where=str(path), why=first_line(error), fix="copy it again") from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=str(path), why=f"it is a {type(content).__name__}")
    return content


def colours(processor: Mapping[str, Any]) -> tuple[Colour, Colour]:
    """(mean, deviation) of a processor's file that treats pixels as all families here do. Raises ValueError."""
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if processor.get(name) not in (None, True):
            raise ValueError(f"{name} is off")
    factor, how = processor.get("rescale_factor"), processor.get("resample")
    if factor is not None and abs(factor * 255 - 1) > 1e-6:
        raise ValueError(f"rescale_factor is {factor}, not 1/255")
    if how not in (None, BICUBIC):
        raise ValueError(f"resample is {how}, not {BICUBIC} (bicubic)")
    mean, std = (_three(name, processor.get(name)) for name in ("image_mean", "image_std"))
    if not min(std) > 0:
        raise ValueError(f"image_std is {list(std)}: a number is not above 0")
    return mean, std


def _three(name: str, values: Any) -> Colour:
    if not isinstance(values, list | tuple) or len(values) != len("RGB"):
        raise ValueError(f"{name} is {values}, not three numbers")
    red, green, blue = map(float, values)
    return red, green, blue


def check_weights(folder: Path) -> None:
    """Every weight file is there and as long as its header says."""
    index = folder / "model.safetensors.index.json"
    named = read_json(index).get("weight_map") if index.exists() else {"": "model.safetensors"}
    if not isinstance(named, dict):
        raise UserError("the list of weight files is damaged", where=str(index), why="no weight_map", fix=AGAIN)
    names = sorted(map(str, set(named.values())))
    for name in names:
        if not (folder / name).is_file():
            raise UserError(f"{name} is missing", where=str(folder), fix=AGAIN)
        try:
            (folder / name).open("rb").close()  # safetensors calls every refusal "No such file"
            with safe_open(folder / name, framework="pt"):
                pass
        except PermissionError as error:
            raise UserError("weights cannot be read", where=str(error.filename), why="permission denied") from error
        except (SafetensorError, OSError) as error:
            why = first_line(error)
            raise UserError("weights are damaged", where=str(folder / name), why=why, fix=AGAIN) from error


def check_size(file: Path) -> None:
    """A config.json that describes no language model: transformers would build one of its own default size."""
    said = read_json(file)
    if not said.get("text_config") and "hidden_size" not in said:
        raise UserError("config.json is incomplete", where=str(file), why="no text_config", fix=AGAIN)


def network(
    kind: Any,
    folder: Path,
    dtype: torch.dtype | str,
    config: Any = None,
    weights: dict[str, torch.Tensor] | None = None,
) -> Any:
    """`kind.from_pretrained`, refusing what transformers would make up or leave out: sizes, end tokens, weights.

    With `weights`, by the names of transformers' checkpoints, `folder` is where they came from.
    """
    if (folder / GENERATION).is_file():
        read_json(folder / GENERATION)  # which transformers passes over where it is damaged
    if config is None:
        check_size(folder / "config.json")
    if weights is None:
        check_weights(folder)
    given = {"config": config, "dtype": dtype, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        net, info = kind.from_pretrained(None if weights else folder, state_dict=weights, **given)
    except Exception as error:  # checks of config.json raise what they like, so does a device without memory
        raise UserError("the model does not load", where=str(folder), why=first_line(error)) from error
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            keys = sorted(
                str(key[0] if isinstance(key, tuple) else key) for key in info[problem]
            )  # mismatched: with sizes
            some = ", ".join(keys[:3])
            why = f"{len(info[problem])} {problem.replace('_', ' ')}: {some}"
            raise UserError("weights and config.json do not belong together", where=str(folder), why=why)
    return net


def read_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise UserError(
            "the model has no tokenizer", where=str(folder), why="no tokenizer.json", fix="copy it from its base"
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # a broken tokenizer.json raises bare Exception from Rust, with the reason in it
        raise UserError("the tokenizer does not load", where=str(folder), why=first_line(error)) from error
    legacy = (
        folder / "chat_template.json"
    )  # where checkpoints of 2025 keep it; transformers reads it for processors only
    if not tokenizer.chat_template and legacy.is_file():
        tokenizer.chat_template = read_json(legacy).get("chat_template")
    return tokenizer


def first_line(error: BaseException) -> str:
    """An error of somebody else's in one line: its first, and the next if that announces it."""
    head, _, rest = str(error).strip().partition("\n")
    said = f"{head} {rest.strip().partition(chr(10))[0]}" if head.endswith(":") else head
    return said[:200] or type(error).__name__
