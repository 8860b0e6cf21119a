"""LoRA and activated LoRA on the decoder's linear layers: peft's modules and peft's files, one switch for them all.

LoRA (arXiv 2106.09685) adds B A x · alpha/rank to a frozen layer. Activated LoRA, aLoRA (arXiv 2504.12397), does so
from the assistant header on only: everything before it is the base model's, whatever the adapter learns. Here an aLoRA
is a LoRA that is switched off while the prefix is computed.

T tokens, I/O width in/out of a layer, r rank.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from longtake.errors import UserError
from longtake.models.base import write_mark
from longtake.models.quantize import library
from longtake.protocols import Model

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
NAME = "default"  # of the one adapter inside peft's modules
Kind = Literal["lora", "alora"]
OURS = frozenset({"r", "lora_alpha", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}) | {
    "rank_pattern", "alpha_pattern", "use_rslora", "alora_invocation_tokens", "base_model_name_or_path", "task_type",
}  # fmt: skip
ABOUT = frozenset({"peft_type", "peft_version", "auto_mapping", "inference_mode", "lora_dropout", "init_lora_weights"})


class Delta:
    """What every adapted layer adds, in the dtype of its input, while `acting`; a peft "variant" of the layer.

    peft's own computes in the adapter's float32: with a bfloat16 base that is a float32 copy of every layer's input and
    output, and float32 products.
    """

    def __init__(self) -> None:
        self.acting = True

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """result [..., O] + B A x [..., I] · scale."""
        if not self.acting:
            return result
        a_rI, b_Or = (part[active_adapter].weight.to(x.dtype) for part in (module.lora_A, module.lora_B))
        low_Tr = linear(x.flatten(0, -2), a_rI) * module.scaling[active_adapter]
        return torch.addmm(result.flatten(0, -2), low_Tr, b_Or.t()).view_as(result)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter on a model. Example: with model.adapter.off(): …  # the base model answers."""

    kind: Kind
    config: Any  # peft.LoraConfig, as it is saved
    layers: Mapping[str, Any]  # name inside the network → peft LoRA layer
    delta: Delta

    @contextmanager
    def off(self) -> Iterator[None]:
        """The base model alone, inside; may be nested, and costs nothing."""
        before, self.delta.acting = self.delta.acting, False
        try:
            yield
        finally:
            self.delta.acting = before

    def weights(self) -> dict[str, nn.Parameter]:
        """Trainable parameters by their name in adapter_model.safetensors."""
        return {
            f"base_model.model.{name}.{part}.weight": getattr(layer, part)[NAME].weight
            for name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
        }


def prepare(
    model: Model,
    kind: Kind | Literal["full"],
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    seed: int = 0,
) -> None:
    """Makes `model` train as `kind` says: "full" as it is; "lora" and "alora" with the adapter it has, or a new one.

    Raises UserError if the model's adapter is not what is asked for.
    """
    if model.adapter is None:
        if kind != "full":
            add_adapter(model, kind, rank, alpha, targets, seed)
        return
    if kind == "full":
        fix = f"--adapter.kind {model.adapter.kind}, or merge the adapter into its base first"
        raise UserError(
            "full fine-tuning of a model that carries an adapter", why="its base would not be saved", fix=fix
        )
    config = model.adapter.config
    names = set(_wanted(model, targets)) == set(model.adapter.layers)
    asked, there = (kind, rank, alpha), (model.adapter.kind, config.r, config.lora_alpha)
    if asked != there or not names:
        why = "kind, rank, alpha are {} there, {} asked for".format(*(", ".join(map(str, x)) for x in (there, asked)))
        fix = "ask for what is there, or start from the base model"
        raise UserError("the model's adapter is another one", why=why if names else "other layers are adapted", fix=fix)


def add_adapter(
    model: Model, kind: Kind, rank: int, alpha: float, targets: Sequence[str] | None = None, seed: int = 0
) -> None:
    """Puts a new adapter on the decoder layers of `model`; from now on its parameters alone are trainable.

    `targets`: last parts of names of linear layers, as "q_proj" (default: every linear layer of the decoder layers).
    B is 0, so the model is what it was. Raises UserError for targets that are not there.
    """
    names = _wanted(model, targets)
    last = sorted({name.rpartition(".")[2] for name in names})
    everywhere = {name for name, _ in model.net.named_modules() if name.rpartition(".")[2] in last}
    config = library("peft").LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=last if everywhere == set(names) else names,
        task_type="CAUSAL_LM",
        base_model_name_or_path=model.net.name_or_path or None,
    )
    _inject(model, kind, config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # peft's A, but the same on every device and without the global generator
        for layer in model.adapter.layers.values():
            weight_rI = layer.lora_A[NAME].weight
            bound = 1 / math.sqrt(weight_rI.shape[1])
            weight_rI.copy_(torch.empty(weight_rI.shape).uniform_(-bound, bound, generator=random))


def save(adapter: Adapter, folder: Path) -> None:
    """Writes adapter_config.json and adapter_model.safetensors as peft does: plain peft loads them on the base."""
    base = adapter.config.base_model_name_or_path
    if not base:
        raise UserError("the adapter's base has no name", why="the model was not loaded from a folder or the hub")
    content = {key: sorted(x) if isinstance(x, set) else x for key, x in adapter.config.to_dict().items()}
    (folder / CONFIG).write_text(json.dumps(content | {"inference_mode": True}, indent=2, sort_keys=True) + "\n")
    write_mark(folder, base)
    state = {name: x.detach().contiguous() for name, x in adapter.weights().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def load_adapter(model: Model, folder: Path, saved: Mapping[str, Any]) -> None:
    """Puts the adapter of `folder` on its base `model`; `saved` is the content of adapter_config.json.

    Raises UserError if it is not a LoRA or aLoRA of this model's decoder layers.
    """
    _check(saved, folder)
    header = saved.get("alora_invocation_tokens")
    if header and header != list(model.header):
        why = f"it acts from tokens {header} on, the model's assistant header is {list(model.header)}"
        raise UserError("the aLoRA does not belong to this model's chat template", where=str(folder), why=why)
    state = _read(folder)
    another = f"the adapter was not made for {model.net.name_or_path or 'this model'}"
    try:
        config = library("peft").LoraConfig(**{key: value for key, value in saved.items() if key in OURS})
        config.alora_invocation_tokens = None
        config.base_model_name_or_path = model.net.name_or_path or None  # where it was found
        _inject(model, "alora" if header else "lora", config)
    except (ValueError, TypeError) as error:  # no such layer, one of a kind that peft does not know, a rank of "eight"
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


def merge(model: Model) -> None:
    """Adds the LoRA to its base weights and takes it off: `model.save` then writes one plain model.

    Raises UserError for an aLoRA, and for a quantized base.
    """
    adapter = model.adapter
    if adapter is None:
        raise UserError("nothing to merge", why="the model carries no adapter")
    if adapter.kind == "alora":
        raise UserError("an aLoRA cannot be merged", why="it acts from the assistant header on only")
    for name, layer in adapter.layers.items():
        weight_OI = layer.base_layer.weight
        if not weight_OI.is_floating_point():
            raise UserError("a LoRA on a quantized base cannot be merged", fix="load it without quantize, then merge")
        with torch.no_grad():  # summed in the adapter's dtype
            weight_OI.copy_(weight_OI + layer.lora_B[NAME].weight @ layer.lora_A[NAME].weight * layer.scaling[NAME])
        model.net.set_submodule(name, layer.base_layer)
    model.adapter = None
    model.net.requires_grad_(True)


def _wanted(model: Model, targets: Sequence[str] | None) -> list[str]:
    """Names inside the network of the linear layers that `targets` means."""
    linears = _linears(model)
    if targets is None:
        return linears
    kinds = {name.rpartition(".")[2] for name in linears}
    unknown = sorted(set(targets) - kinds)
    if unknown or not targets:
        what = f"no linear layer {unknown[0]!r} in the decoder" if unknown else "no layer to adapt"
        raise UserError(what, fix="adapter.targets: some of " + ", ".join(sorted(kinds)))
    return [name for name in linears if name.rpartition(".")[2] in targets]


def _linears(model: Model) -> list[str]:
    """Names inside the network of all linear layers of the decoder layers, adapted ones by their own name."""
    inside = {module for layer in model.layers for module in layer.modules()}
    adapted = set(model.adapter.layers) if model.adapter else set()
    names = [name for name, module in model.net.named_modules() if module in inside and isinstance(module, nn.Linear)]
    inner = tuple(f"{name}." for name in adapted)
    return sorted(adapted.union(name for name in names if not name.startswith(inner)) if inner else names)


def _inject(model: Model, kind: Kind, config: Any) -> None:
    """Puts peft's layers into the network and the switch into them. Raises ValueError where peft does."""
    peft = library("peft")
    allowed = set(_linears(model))
    peft.inject_adapter_in_model(config, model.net, adapter_name=NAME)
    layers = {name: part for name, part in model.net.named_modules() if isinstance(part, peft.tuners.lora.LoraLayer)}
    if outside := sorted(set(layers) - allowed):
        raise ValueError(f"it adapts {outside[0]}, which is no linear layer of the decoder layers")
    delta = Delta()
    for layer in layers.values():
        layer.lora_variant[NAME] = delta
        layer.cast_input_dtype_enabled = False  # delta takes the input as it is
        for part in (layer.lora_A[NAME], layer.lora_B[NAME]):
            if part.weight.dtype in (torch.bfloat16, torch.float16):
                part.float()  # AdamW's small steps vanish in half precision
    if kind == "alora":  # set only now: peft's own layers would wait for offsets from peft's own forward
        config.alora_invocation_tokens = list(model.header)
    model.adapter = Adapter(kind, config, layers, delta)


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


def _read(folder: Path) -> dict[str, Tensor]:
    try:
        return load_file(folder / WEIGHTS)
    except FileNotFoundError as error:
        raise UserError(f"{WEIGHTS} is missing", where=str(folder), fix="copy the adapter again") from error
    except (SafetensorError, OSError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError("the adapter's weights are damaged", where=str(folder / WEIGHTS), why=why) from error
