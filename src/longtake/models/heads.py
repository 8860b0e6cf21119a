"""Scalar heads on a decoder: a reward of an answer, a value of a state.

T tokens, E model width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import linear

from longtake.errors import UserError
from longtake.models.adapters import NAME
from longtake.protocols import Model

FILE = "scalar_head.safetensors"


class ScalarHead(nn.Module):
    """w · h + b of every token, in float32 at least.

    Example: head = add_head(model, seed=0); head(hidden_TE).shape is (T,).
    """

    def __init__(self, weight_E: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(weight_E), nn.Parameter(bias)

    def forward(self, hidden_TE: Tensor) -> Tensor:
        """[T, E] last hidden states → [T]."""
        return linear(hidden_TE.to(self.weight.dtype), self.weight[None], self.bias[None])[:, 0]


def add_head(model: Model, name: str = NAME, *, seed: int = 0) -> ScalarHead:
    """A new head for the adapter `name` of `model` (or for the model itself), with N(0, 1/(E + 1)) weights and no bias
    (arXiv 2009.01325, as in TRL); the same on every device.
    """
    dtype = torch.promote_types(model.net.dtype, torch.float32)
    width = model.embed(torch.zeros(1, dtype=torch.int64)).shape[1]
    random = torch.Generator().manual_seed(seed)
    weight_E = torch.randn(width, generator=random, dtype=torch.float64) / math.sqrt(width + 1)
    head = ScalarHead(weight_E.to(model.net.device, dtype), torch.zeros((), device=model.net.device, dtype=dtype))
    model.heads[name] = head
    return head


def no_head(head: object, source: str | Path) -> None:
    """Raises UserError if the model of `source` has a `head`: it scores answers where one that gives them is wanted."""
    if head:
        why, fix = "it learned to score answers, not to give them", "name the model that it was trained from"
        raise UserError("this is a reward model", where=str(source), why=why, fix=fix)


def save(heads: Mapping[str, ScalarHead], folder: Path) -> None:
    """Writes what learns, and the model's own: folder/scalar_head.safetensors, others in a folder of their name."""
    for name, head in heads.items():
        if name == NAME or head.weight.requires_grad:
            target = folder if name == NAME else folder / name
            target.mkdir(exist_ok=True)
            state = {key: x.detach().contiguous() for key, x in head.state_dict().items()}
            save_file(state, target / FILE, metadata={"format": "pt"})


def load(model: Model, folder: Path, name: str = NAME, *, trainable: bool = True) -> bool:
    """Puts the head of `folder` on the model under `name`; False if there is none. Raises UserError."""
    if not (folder / FILE).is_file():
        return False
    head = add_head(model, name)
    try:
        head.load_state_dict(load_file(folder / FILE))
    except (SafetensorError, OSError, RuntimeError) as error:
        why = str(error).splitlines()[0][:200]
        raise UserError("the scalar head does not load", where=str(folder / FILE), why=why) from error
    head.requires_grad_(trainable)
    return True
