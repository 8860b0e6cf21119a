"""LoRA and activated LoRA on the decoder's linear layers: peft's modules and peft's files, one switch for them all.

LoRA (arXiv 2106.09685) adds B A x · alpha/rank to a frozen layer. Activated LoRA, aLoRA (arXiv 2504.12397), does so
from the assistant header on only: everything before it is the base model's, whatever the adapter learns. Here an aLoRA
is a LoRA that is switched off while the prefix is computed.

T tokens, I/O width in/out of a layer, r rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from longtake.errors import UserError
from longtake.models.quantize import library
from longtake.protocols import Model

NAME = "default"  # of the adapter that is trained, or answers, inside peft's modules
Kind = Literal["lora", "alora"]


class Delta:
    """What every adapted layer adds, in the dtype of its input: the adapter that acts; a peft "variant" of the layer.

    peft's own computes in the adapter's float32: with a bfloat16 base that is a float32 copy of every layer's input and
    output, and float32 products.
    """

    def __init__(self) -> None:
        self.acting: str | None = NAME

    def forward(self, module: Any, active_adapter: str, x: Tensor, result: Tensor, **_: Any) -> Tensor:
        """result [..., O] + B A x [..., I] · scale of the adapter that acts, if this layer has it."""
        name = self.acting
        if name is None or name not in module.lora_A:
            return result
        a_rI, b_Or = (part[name].weight.to(x.dtype) for part in (module.lora_A, module.lora_B))
        low_Tr = linear(x.flatten(0, -2), a_rI) * module.scaling[name]
        return torch.addmm(result.flatten(0, -2), low_Tr, b_Or.t()).view_as(result)


@dataclass(frozen=True, slots=True)
class Adapter:
    """The adapter on a model, and further ones beside it on the same base: PPO's policy, value model, reward model.

    Example: with model.adapter.off(): …  # the base model answers
    with model.adapter.using("reward"): …  # another adapter acts
    """

    kind: Kind
    config: Any  # peft.LoraConfig, as it is saved
    layers: Mapping[str, Any]  # name inside the network → peft LoRA layer
    delta: Delta
    others: dict[str, Any] = field(default_factory=dict)  # name → its peft.LoraConfig

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """That adapter acts, inside; None = the base model alone. May be nested, and costs nothing."""
        if name not in (None, NAME, *self.others):
            raise ValueError(f"no adapter {name!r}: there are {', '.join((NAME, *self.others))}")
        before, self.delta.acting = self.delta.acting, name
        try:
            yield
        finally:
            self.delta.acting = before

    def off(self) -> AbstractContextManager[None]:
        """The base model alone, inside."""
        return self.using(None)

    def weights(self, name: str = NAME) -> dict[str, nn.Parameter]:
        """Parameters of an adapter by their name in adapter_model.safetensors."""
        return {
            f"base_model.model.{layer_name}.{part}.weight": getattr(layer, part)[name].weight
            for layer_name, layer in self.layers.items()
            for part in ("lora_A", "lora_B")
            if name in layer.lora_A
        }

    def add(self, name: str, config: Any, state: Mapping[str, Tensor], *, trainable: bool) -> None:
        """Another adapter of the same kind, with the weights of `state` (names as in `weights`).

        Raises ValueError for a name that is taken, and where `state` adapts a layer that this adapter does not.
        """
        if name in (NAME, *self.others):
            raise ValueError(f"there is an adapter {name!r} already")
        known = {f"base_model.model.{name}.{part}.weight" for name in self.layers for part in ("lora_A", "lora_B")}
        if outside := sorted(set(state) - known):
            raise ValueError(f"it adapts {outside[0]}, which the model's own adapter does not")
        for layer_name, layer in self.layers.items():
            for part in ("lora_A", "lora_B"):
                found = state.get(f"base_model.model.{layer_name}.{part}.weight")
                if found is None:
                    continue
                own, kept = getattr(layer, part), getattr(layer, part)[NAME].weight
                own[name] = nn.Linear(found.shape[1], found.shape[0], bias=False, device=kept.device, dtype=kept.dtype)
                own[name].weight = nn.Parameter(found.to(kept, copy=True), requires_grad=trainable)
                layer.scaling[name] = config.lora_alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
        self.others[name] = config


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
        fix = f"--adapter.kind {model.adapter.kind}, or `longtake merge` it into its base first"
        raise UserError(
            "full fine-tuning of a model that carries an adapter", why="its base would not be saved", fix=fix
        )
    config = model.adapter.config
    names = set(_wanted(model, targets)) == set(model.adapter.layers)
    asked, there = (kind, rank, alpha), (model.adapter.kind, config.r, config.lora_alpha)
    if asked != there or not names:
        why = "kind, rank, alpha are {} there, {} asked for".format(*(", ".join(map(str, x)) for x in (there, asked)))
        there_too = f"--adapter.kind {there[0]} --adapter.rank {there[1]} --adapter.alpha {there[2]:g}"
        fix = f"{there_too if names else 'ask for what is there'}, or `longtake merge` it first"
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
    inject(model, kind, config)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():  # peft's A, but the same on every device and without the global generator
        for layer in model.adapter.layers.values():
            weight_rI = layer.lora_A[NAME].weight
            bound = 1 / math.sqrt(weight_rI.shape[1])
            weight_rI.copy_(torch.empty(weight_rI.shape).uniform_(-bound, bound, generator=random))


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


def inject(model: Model, kind: Kind, config: Any) -> None:
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
