"""Prefills of real models: from prompts and handles of features to keys and values, the adapter on or off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from hashlib import blake2b

import torch
from torch import Tensor

from longtake.maths.pack import pack
from longtake.parallel.ranks import ONE, Ranks
from longtake.protocols import Model
from longtake.records import Features, PrefixRow, Prompt
from longtake.runtime.inputs import fill
from longtake.runtime.load import base_version
from longtake.runtime.prefix import Keep, Prefill, prefill
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.shared import Whole, over

FeaturesOf = Callable[[Sequence[str]], list[Features]]  # handles in row order → features


def lead(model: Model) -> int:
    """Tokens at the end of a prompt that begin each answer: under an activated LoRA the assistant header, else none."""
    return len(model.header) if model.adapter is not None and model.adapter.kind == "alora" else 0


def bare(model: Model, prompts: Sequence[Prompt]) -> PrefixRow:
    """A row of these prompts without answers."""
    none: list[list[list[int]]] = [[] for _ in prompts]
    return pack(prompts, none, none, lead=lead(model))


def compute(model: Model, row: PrefixRow, features: FeaturesOf, keep: Keep, ranks: Ranks = ONE) -> Prefill:
    """The prefixes of a row without answers; by the base model alone under an activated LoRA."""
    device, shared = model.net.device, over(row.layout, ranks)
    row = replace(row, position_3T=row.position_3T.to(device), visual_T=row.visual_T.to(device))
    handles = [handle for handle in row.features if handle is not None]
    inputs = partial(_filled, model, row, shared, features, handles)
    with model.adapter.off() if model.adapter is not None and lead(model) else nullcontext():
        return prefill(model, row, inputs, keep, shared)


def cached(model: Model, row: PrefixRow, features: FeaturesOf, kept: PrefixCache, ranks: Ranks = ONE) -> Prefill:
    """`compute` for answers under an activated LoRA: each prefix once in a run, whichever adapter acts on answers."""
    key = prefix_key(model, row)
    kv = kept.get(key)
    if not ranks.sequence.any(kv is None):
        assert kv is not None
        return given(model, row, kv)
    made = compute(model, row, features, "nothing", ranks)
    kept.put(key, made.kv, writes=ranks.sequence.leads)
    return made


def prefix_key(model: Model, row: PrefixRow) -> str:
    """Names all that keys and values of a row without answers depend on, while the adapter is off."""
    seen = (row.ids_T.tolist(), row.features, row.layout, base_version(model), str(model.net.dtype))
    return blake2b(repr(seen).encode(), digest_size=16).hexdigest()


def given(model: Model, row: PrefixRow, kv: Sequence[tuple[Tensor, Tensor]]) -> Prefill:
    """A prefill of keys and values that were computed before; nothing is predicted at its ends."""
    device = model.net.device
    ends_SE = model.embed(torch.zeros(len(row.layout.segments), dtype=torch.int64)).detach()
    return Prefill(Whole(row.layout), [(k.to(device), v.to(device)) for k, v in kv], ends_SE, "nothing")


def _filled(
    model: Model, row: PrefixRow, shared: Whole, features: FeaturesOf, handles: Sequence[str]
) -> tuple[Tensor, Tensor | None]:
    """This rank's tokens of the row, with their part of the features."""
    visual_U = shared.cut(row.visual_T)
    some = len(visual_U) < len(row.visual_T)
    mine_N = shared.cut(row.visual_T.cumsum(0) - 1)[visual_U] if some else None
    return fill(model, shared.cut(row.ids_T), visual_U, features(handles), mine_N)
