"""QLoRA's base: the decoder's linear layers in four bits (NF4, arXiv 2305.14314); everything else as it was loaded."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from longtake.errors import UserError


def check_quantize(kind: str | None) -> None:
    """Raises UserError if `kind` is no way to quantize, or the library for it is missing."""
    if kind not in (None, "nf4"):
        raise UserError(f"no quantization {kind!r}", fix="nf4, or none")
    if kind is not None and find_spec("bitsandbytes") is None:
        raise UserError("quantize nf4 needs bitsandbytes", fix="pip install 'longtake[qlora]'")


def library(name: str) -> Any:
    """peft or bitsandbytes, without the advice about kernels from the hub that the latter logs on some CPUs."""
    advice = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = advice.level
    advice.setLevel(logging.ERROR)
    try:
        return import_module(name)
    finally:
        advice.setLevel(level)


BLOCK = 64  # weights that share a scale


def nf4(layers: nn.ModuleList) -> None:
    """Replaces every linear layer of `layers`, in place. The weights become four-bit when the network is moved to its
    device, one at a time: the device never holds them whole. Raises UserError for widths that bitsandbytes gets wrong.
    """
    bnb = library("bitsandbytes").nn
    for layer in layers:
        for name, old in [(name, part) for name, part in layer.named_modules() if type(part) is nn.Linear]:
            if old.in_features % BLOCK:  # its CPU kernel then takes the scales of other blocks (0.50.2), silently
                raise UserError(
                    f"nf4 needs layers whose width is a multiple of {BLOCK}", why=f"{name}: {old.in_features}"
                )
            with torch.device("meta"):
                new = bnb.Linear4bit(
                    old.in_features, old.out_features, old.bias is not None, old.weight.dtype, quant_type="nf4"
                )
            new.weight = bnb.Params4bit(old.weight.data, requires_grad=False, quant_type="nf4", module=new)
            new.bias = old.bias
            new.support_avx512bf16_for_cpu = False  # it packs weights in evaluation mode; no backward can follow
            layer.set_submodule(name, new)
