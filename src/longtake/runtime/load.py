"""From a folder or a hub id to a Model, and short names for its weights."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from longtake.errors import UserError
from longtake.models import adapter_files, adapters, heads
from longtake.models.base import check_mark
from longtake.models.pixels import Pixels
from longtake.models.quantize import check_quantize, nf4
from longtake.models.quiet import quiet
from longtake.models.qwen3_vl import Qwen3VL
from longtake.protocols import Model
from longtake.runtime.hub import download, first_line

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
AGAIN = "copy or download the model again"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load_model(
    name_or_path: str | Path,
    dtype: str = "auto",
    device: str | torch.device | None = None,
    quantize: str | None = None,
) -> Qwen3VL:
    """The model of a folder or hub id, in evaluation mode on `device` (default: CUDA where there is one).

    An adapter's folder is its base with the adapter on. `dtype` is "auto" (as saved) or one of DTYPES; `quantize` is
    "nf4" for decoder layers in four bits. Raises UserError.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise UserError(f"no dtype {dtype!r}", fix="one of auto, " + ", ".join(DTYPES))
    check_quantize(quantize)
    folder = find_folder(name_or_path)
    saved = read_json(folder / adapter_files.CONFIG) if (folder / adapter_files.CONFIG).is_file() else None
    name, base = (str(name_or_path), folder) if saved is None else base_of(folder, saved)
    family = _family(read_json(base / "config.json"), base)
    _check_weights(base)
    where = torch.device(device if device is not None else "cuda" if torch.cuda.is_available() else "cpu")
    try:
        with quiet():
            model = family(base, folder, DTYPES.get(dtype, "auto"), where, quantize)
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


def _qwen3_vl(
    base: Path, folder: Path, dtype: torch.dtype | str, device: torch.device, quantize: str | None
) -> Qwen3VL:
    """Weights of `base`; tokenizer and processor of `folder` where it has them."""
    from transformers import Qwen3VLForConditionalGeneration

    net = _network(Qwen3VLForConditionalGeneration, base, dtype)
    if quantize:
        nf4(net.model.language_model.layers)
    words = folder if (folder / "tokenizer.json").is_file() else base
    constants = folder if (folder / "video_preprocessor_config.json").is_file() else base
    return Qwen3VL(net.to(device).eval(), _tokenizer(words), _pixels(constants))


Family = Callable[[Path, Path, "torch.dtype | str", torch.device, "str | None"], Qwen3VL]
FAMILIES: dict[str, Family] = {"qwen3_vl": _qwen3_vl}


def _family(config: dict[str, Any], folder: Path) -> Family:
    kind = str(config.get("model_type", ""))
    if kind in FAMILIES:
        return FAMILIES[kind]
    near = difflib.get_close_matches(kind, FAMILIES, 1)
    why = f"model_type is {kind!r}; longtake has " + ", ".join(FAMILIES)
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


def _check_weights(folder: Path) -> None:
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


def _network(kind: Any, folder: Path, dtype: torch.dtype | str) -> Any:
    """`kind.from_pretrained`, refusing weights that transformers would make up or leave out."""
    try:
        net, info = kind.from_pretrained(folder, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True)
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


def _tokenizer(folder: Path) -> Any:
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


def _pixels(folder: Path) -> Pixels:
    """The processor's constants, from wherever this version of transformers or an earlier one has put them."""
    nested = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    image, video = (nested.get(f"{kind}_processor") or _first(folder, kind) for kind in ("image", "video"))
    if video is None:
        fix = "copy video_preprocessor_config.json from its base model"
        raise UserError("the model has no video processor", where=str(folder), fix=fix)
    try:
        size = video["size"]
        optional = {"max_video_tokens": int(video["max_video_tokens"])} if "max_video_tokens" in video else {}
        edges = (image or {}).get("size", {})
        optional |= {f"image_{edge}": int(edges[edge]) for edge in ("shortest_edge", "longest_edge") if edge in edges}
        return Pixels(
            patch=int(video["patch_size"]),
            temporal_patch=int(video["temporal_patch_size"]),
            merge=int(video["merge_size"]),
            mean=_rgb(video["image_mean"]),
            std=_rgb(video["image_std"]),
            shortest_edge=int(size["shortest_edge"]),
            longest_edge=int(size["longest_edge"]),
            cap_pixels_per_frame=bool(video.get("cap_pixels_per_frame")),
            **optional,
        )
    except KeyError as error:
        raise UserError("the video processor's file is incomplete", where=str(folder), why=f"no {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError("the video processor's file is wrong", where=str(folder), why=first_line(error)) from error


def _rgb(values: Any) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _first(folder: Path, kind: str) -> dict[str, Any] | None:
    names = ("preprocessor_config.json", "video_preprocessor_config.json")
    for name in names if kind == "image" else names[::-1]:
        if (folder / name).is_file():
            return read_json(folder / name)
    return None


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError("not a JSON file", where=str(path), why=first_line(error), fix="copy it again") from error
    if not isinstance(content, dict):
        raise UserError("not a JSON object", where=str(path), why=f"it is a {type(content).__name__}")
    return content


def weights_version(model: Model) -> str:
    """16 hex digits that change whenever a parameter does."""
    return _fingerprint(model.net, "")


def base_version(model: Model) -> str:
    """16 hex digits of the network without its adapter."""
    own = model.adapter
    aside = () if own is None else (id(x) for name in (adapters.NAME, *own.others) for x in own.weights(name).values())
    return _fingerprint(model.net, "", frozenset(aside))


def tower_fingerprint(model: Model) -> str:
    """16 hex digits of all that features depend on: the tower's weights and dtype, and the processor's constants."""
    return _fingerprint(model.tower, repr(model.pixels))


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
