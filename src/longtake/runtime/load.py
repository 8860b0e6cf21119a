"""From a folder or a hub id to a Model, and short names for its weights."""

from __future__ import annotations

import difflib
import json
import os
import re
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from longtake.errors import UserError
from longtake.models import adapter_files, adapters, context_file, heads
from longtake.models.base import check_mark
from longtake.models.checkpoint import read_json
from longtake.models.llava_next_video import LlavaNext, LlavaNextVideo
from longtake.models.llava_original import LlavaOriginal
from longtake.models.network import Network
from longtake.models.nvila import NVILA
from longtake.models.quantize import check_quantize, nf4
from longtake.models.quiet import quiet
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3 import Qwen3
from longtake.models.qwen3_vl import Qwen3VL
from longtake.protocols import Model
from longtake.runtime.hub import download

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_model(
    name_or_path: str | Path,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    quantize: str | None = None,
    rope: str | None = None,
    reduce: str | None = None,
) -> Network:
    """The model of a folder or hub id, in evaluation mode on `device` (default: CUDA where there is one).

    An adapter's folder is its base with the adapter on. `dtype` is "auto" (as saved) or one of DTYPES; `quantize` is
    "nf4" for decoder layers in four bits; `rope` scales positions (models.rope), `reduce` makes visual tokens fewer
    (default for both: as in training). Raises UserError.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"no dtype {dtype!r}", fix="one of auto, " + ", ".join(DTYPES))
    check_quantize(quantize)
    folder = find_folder(name_or_path)
    saved = read_json(folder / adapter_files.CONFIG) if (folder / adapter_files.CONFIG).is_file() else None
    name, base = (str(name_or_path), folder) if saved is None else base_of(folder, saved)
    family = _family(read_json(base / "config.json"), base)
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet():
            model = family.load(base, folder, DTYPES.get(dtype, "auto"))
            context_file.settle(model, folder, base, rope, reduce)
            if quantize:
                nf4(model.layers)
            model.net.to(where).eval()
    except UserError as error:
        raise UserError(error.what, where=error.where or str(base), why=error.why, fix=error.fix) from error
    model.net.name_or_path = str(base.resolve()) if Path(name).expanduser().exists() else name  # an adapter's base
    if saved is not None:
        adapter_files.load_adapter(model, folder, saved)
    heads.load(model, folder)
    return model


def base_of(folder: Path, saved: dict[str, Any]) -> tuple[str, Path]:
    """Name and folder of the model that the adapter in `folder` was trained on."""
    if any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise UserError("both a model and an adapter", where=str(folder), fix="keep them in a folder each")
    name = str(saved.get("base_model_name_or_path") or "")
    beside = folder / name
    fix = f"put it there, or correct base_model_name_or_path in {folder / adapter_files.CONFIG}"
    if not name:
        raise UserError("the adapter names no base model", where=str(folder), fix="add base_model_name_or_path")
    here = Path(name).expanduser()
    path = here if os.path.exists(here) else beside if os.path.exists(beside) else None
    if path is None and not HUB_ID.fullmatch(name):
        raise UserError("the adapter's base model is missing", where=name, fix=fix)
    base = find_folder(path or name)
    if (base / adapter_files.CONFIG).is_file():
        raise UserError("the adapter's base is an adapter itself", where=str(base), fix="`longtake merge` that one")
    if path is not None:
        check_mark(folder, base)
    return str(path or name), base


OF_TOWER = ("vision_config", "vision_feature_layer", "vision_feature_select_strategy")
NO_NUMBER = {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"}
FAMILIES: tuple[type[Network], ...] = (Qwen3VL, Qwen25VL, Qwen3, NVILA, LlavaNextVideo, LlavaNext, LlavaOriginal)


def _family(config: dict[str, Any], folder: Path) -> type[Network]:
    for family in FAMILIES:
        if family.reads(config):
            return family
    from transformers import CONFIG_MAPPING

    kind, names = str(config.get("model_type", "")), [family.family for family in FAMILIES]
    another = kind in CONFIG_MAPPING  # no typo, however near
    near = [] if another else difflib.get_close_matches(kind, names, 1, cutoff=0.85)
    why = f"model_type is {kind!r}{', another family' * another}; longtake has " + ", ".join(names)
    raise UserError("unsupported model", where=str(folder), why=why, fix=f"did you mean {near[0]}?" if near else "")


def find_folder(name_or_path: str | Path) -> Path:
    """The folder itself, or the local copy of a hub repository."""
    path = Path(name_or_path).expanduser()
    if os.path.isfile(path):  # not Path's: it raises where a folder above is closed to us
        raise UserError("a model is a folder, this is a file", where=str(path), fix="name the folder that holds it")
    if not os.path.exists(path):
        if not HUB_ID.fullmatch(str(name_or_path)):
            raise UserError(
                "no such model",
                where=str(path),
                fix="a folder with config.json, or a hub id like Qwen/Qwen3-VL-2B-Instruct",
            )
        path = download(str(name_or_path))
    if not any((path / name).is_file() for name in ("config.json", adapter_files.CONFIG)):
        names = sorted(entry.name for entry in path.iterdir())
        there = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"
        fix = f"name its {path / 'model'}" if "model" in names else ""
        raise UserError("not a model: no config.json", where=str(path), why=f"the folder holds {there}", fix=fix)
    return path


def weights_version(model: Model) -> str:
    """16 hex digits that change whenever a parameter does, or what config.json says of the decoder."""
    return _fingerprint(model.net, _decoder(model))


def base_version(model: Model) -> str:
    """16 hex digits of the network without its adapter."""
    own = model.adapter
    aside = () if own is None else (id(x) for name in (adapters.NAME, *own.others) for x in own.weights(name).values())
    return _fingerprint(model.net, _decoder(model), frozenset(aside))


def tower_fingerprint(model: Model) -> str:
    """16 hex digits of all that features depend on: the tower, its dtype and what config.json says of it, the
    processor's constants, the reduction.
    """
    config = model.net.config.to_dict()
    said = _told({name: config[name] for name in OF_TOWER if name in config})
    return _fingerprint(model.tower, repr(model.pixels) + said + (repr(model.reduction) if model.reduction else ""))


def _decoder(model: Model) -> str:
    """What decides, beside weights, what the decoder computes."""
    return _told(model.net.config.get_text_config().to_dict()) + (model.context.rope or "")


def _told(config: dict[str, Any]) -> str:
    """A config without what says nothing of the numbers."""
    kept = {name: _told(own) if isinstance(own, dict) else own for name, own in config.items() if name not in NO_NUMBER}
    return json.dumps(kept, sort_keys=True, default=str)


def _fingerprint(module: nn.Module, extra: str, aside: frozenset[int] = frozenset()) -> str:
    """Hash of names, dtypes, shapes and bytes. A parameter is read again only after it was replaced or written in
    place, so that an adapter on a frozen base costs the adapter."""
    known, now = _KNOWN.get(module, {}), {}
    digest = blake2b(extra.encode(), digest_size=8)
    for name, x in module.named_parameters():
        if id(x) in aside:
            continue
        state = (id(x), x.data_ptr(), x._version)
        before = known.get(name)
        now[name] = before if before and before[0] == state else (state, _digest(x))
        digest.update(name.encode() + now[name][1])
    _KNOWN[module] = known | now
    return digest.hexdigest()


def _digest(x: torch.Tensor) -> bytes:
    digest = blake2b(f"{x.dtype} {tuple(x.shape)}".encode(), digest_size=16)
    digest.update(x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.digest()


_KNOWN: WeakKeyDictionary[nn.Module, dict[str, tuple[tuple[int, int, int], bytes]]] = WeakKeyDictionary()
