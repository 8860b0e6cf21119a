"""Adapters on disk: peft's files, read and written; further adapters in folders of their own name beside the first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from longtake.errors import UserError
from longtake.models.adapters import Adapter, Kind, inject
from longtake.models.base import write_mark
from longtake.models.quantize import library
from longtake.protocols import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
OURS = frozenset({"r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}) | {
    "rank_pattern", "alpha_pattern", "use_rslora", "alora_invocation_tokens", "base_model_name_or_path", "task_type",
}  # fmt: skip
ABOUT = frozenset({"peft_type", "peft_version", "auto_mapping", "inference_mode", "lora_dropout", "init_lora_weights"})


def save(adapter: Adapter, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as peft does: plain peft loads them on the base.

    Other adapters beside it that learn go to folders of their names inside.
    """
    base = adapter.config.base_model_name_or_path
    if not base:
        raise UserError("the adapter's base has no name", why="the model was not loaded from a folder or the hub")
    _write(adapter.config, adapter.weights(), folder)
    for name, config in adapter.others.items():
        weights = adapter.weights(name)
        if any(x.requires_grad for x in weights.values()):
            (folder / name).mkdir()
            _write(config, weights, folder / name)


def _write(config: Any, weights: Mapping[str, Tensor], folder: Path) -> None:
    content = {key: sorted(x) if isinstance(x, set) else x for key, x in config.to_dict().items()}
    (folder / CONFIG).write_text(json.dumps(content | {"inference_mode": True}, indent=2, sort_keys=True) + "\n")
    write_mark(folder, config.base_model_name_or_path)
    save_file({name: x.detach().contiguous() for name, x in weights.items()}, folder / WEIGHTS, {"format": "pt"})


def load_adapter(model: Model, folder: Path, saved: Mapping[str, Any]) -> None:
    """Puts the adapter of `folder` on its base `model`; `saved` is the content of adapter_config.json.

    Raises UserError if it is not a LoRA or aLoRA of this model's decoder layers.
    """
    kind, config, state = _read(model, folder, saved)
    another = f"the adapter was not made for {model.net.name_or_path or 'this model'}"
    try:
        inject(model, kind, config)
    except (ValueError, TypeError) as error:  # no such layer
        raise UserError(another, where=str(folder), why=str(error).splitlines()[0][:200]) from error
    here = {name: tuple(x.shape) for name, x in model.adapter.weights().items()}
    there = {name: tuple(x.shape) for name, x in state.items()}
    if here != there:
        name = min(name for name in here.keys() | there.keys() if here.get(name) != there.get(name))
        why = f"{name} is {there.get(name, 'not there')}, the model needs {here.get(name, 'none')}"
        raise UserError(another, where=str(folder), why=why)
    with torch.no_grad():
        for name, x in model.adapter.weights().items():
            x.copy_(state[name])


def add_saved(model: Model, name: str, folder: Path, saved: Mapping[str, Any], *, trainable: bool) -> None:
    """Puts the adapter of `folder` beside the model's own one, as `name`; both were trained on the same base.

    Raises UserError if they do not go together.
    """
    kind, config, state = _read(model, folder, saved)
    if kind != model.adapter.kind:
        own = model.adapter.kind
        why, fix = f"it is {kind}, the model's own is {own}", f"--adapter.kind {kind}, or train that one as {own}"
        raise UserError("adapters of two kinds do not share prefixes", where=str(folder), why=why, fix=fix)
    if config.rank_pattern or config.alpha_pattern:
        raise UserError(
            "unsupported adapter beside another", where=str(folder), why="its layers differ in rank or alpha"
        )
    try:
        model.adapter.add(name, config, state, trainable=trainable)
    except (ValueError, RuntimeError) as error:
        what = "the adapter does not fit beside the model's own"
        raise UserError(what, where=str(folder), why=str(error).splitlines()[0][:200]) from error


def _read(model: Model, folder: Path, saved: Mapping[str, Any]) -> tuple[Kind, Any, dict[str, Tensor]]:
    """(kind, peft's config, weights by name). Raises UserError."""
    _check(saved, folder)
    header = saved.get("alora_invocation_tokens")
    if header and header != list(model.header):
        why = f"it acts from tokens {header} on, the model's assistant header is {list(model.header)}"
        raise UserError("the aLoRA does not belong to this model's chat template", where=str(folder), why=why)
    try:
        config = library("peft").LoraConfig(**{key: value for key, value in saved.items() if key in OURS})
    except (ValueError, TypeError) as error:  # of a kind that peft does not know, a rank of "eight"
        another = f"the adapter was not made for {model.net.name_or_path or 'this model'}"
        raise UserError(another, where=str(folder), why=str(error).splitlines()[0][:200]) from error
    config.alora_invocation_tokens = None
    config.base_model_name_or_path = model.net.name_or_path or None  # where it was found
    return ("alora" if header else "lora"), config, _weights(folder)


def _check(saved: Mapping[str, Any], folder: Path) -> None:
    """Refuses what would not act here as it acted where it was trained."""
    kind = saved.get("peft_type")
    if kind != "LORA":
        raise UserError("unsupported adapter", where=str(folder), why=f"peft_type is {kind!r}; longtake has LORA")
    usual = library("peft").LoraConfig().to_dict()
    odd = {key: value for key, value in saved.items() if key not in OURS | ABOUT and value and value != usual.get(key)}
    if saved.get("init_lora_weights", True) not in (True, False, "gaussian"):
        odd["init_lora_weights"] = saved["init_lora_weights"]  # such as PiSSA, which changes the base
    if odd:
        why = ", ".join(f"{key} is {value!r}" for key, value in sorted(odd.items()))[:200]
        raise UserError("unsupported adapter", where=str(folder), why=why)


def _weights(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{WEIGHTS} is missing", where=str(folder), fix="copy the adapter again") from error
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError("the adapter's weights are damaged", where=str(folder / WEIGHTS), why=why) from error
