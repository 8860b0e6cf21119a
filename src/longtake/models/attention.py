"""The attention functions that transformers' classes call instead of their own, and what travels to them.

`register()` puts them under two names of transformers.AttentionInterface. Under neither name is there a mask function,
so transformers builds no mask: who sees whom comes from the context that the caller passes as `attention=`.

T packed tokens, H heads, D head width, B blocks, S tokens of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

from longtake.errors import UserError
from longtake.maths.attention import Context, refuse_unshareable

TEXT = "longtake"
VISION = "longtake_flash_blocks"  # "flash" in the name: transformers hands over cu_seqlens, not a loop over frames
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some families' attention adds to the scores


def register() -> None:
    """Makes both functions known to transformers; again is harmless."""
    AttentionInterface.register(TEXT, attend_text)
    AttentionInterface.register(VISION, attend_blocks)


def check_shareable(config: PreTrainedConfig) -> None:
    """Raises UserError for a network (or decoder) whose answers cannot share a prefix, by its config."""
    said: dict[str, Any] = config.get_text_config().to_dict()
    kinds = said.get("layer_types") or []
    other = sorted({kind for kind in kinds if kind not in ("full_attention", "attention")})
    if other:
        count = sum(kind in other for kind in kinds)
        why = f"{count} of its {len(kinds)} layers are {', '.join(other)}: every answer would need its own copy of them"
        raise UserError("this network's answers cannot share a prefix", why=why, fix="use one whose layers all attend")
    window = said.get("sliding_window")
    if not kinds and window is not None and said.get("use_sliding_window", True):
        why = f"sliding_window is {window} in config.json: later answers would not read the whole prefix"
        raise UserError("this network's answers cannot share a prefix", why=why, fix="set sliding_window to null")
    for name, value in said.items():
        if ("dropout" in name or name.endswith("_pdrop")) and not name.startswith("classifier") and value:
            why = f"{name} is {value} in config.json: answers that share a prefix would share its mask"
            raise UserError("this network's answers cannot share a prefix", why=why, fix=f"set {name} to 0")


def attend_text(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    attention: Context | None = None,
    **other: Any,
) -> tuple[Tensor, None]:
    """Decoder attention over one packed row → ([1, T, H, D], None). Raises ValueError for what it cannot do exactly."""
    if not callable(attention):
        raise ValueError(f"attention= must say who sees whom in the row (see models.attention), got {attention!r}")
    if attention_mask is not None:
        raise ValueError("a packed row takes no attention mask: its layout says who sees whom")
    refuse_unshareable(dropout=other.get("dropout", 0.0), sliding_window=other.get("sliding_window"))
    for name in UNKNOWN:
        if other.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} attends with {name}, which shared-prefix attention does not know"
            )
    layer = module.layer_idx
    assert isinstance(layer, int)
    return attention(layer, query, key, value, scaling).transpose(1, 2), None


def attend_blocks(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    cu_seq_lens_q: Tensor,
    max_length_q: int,
    **other: Any,
) -> tuple[Tensor, None]:
    """Vision attention, every block (frame) on itself alone → ([1, T, H, D], None).

    Blocks of one length go through the kernel together. Raises ValueError for dropout.
    """
    if dropout := other.get("dropout", 0.0):
        raise ValueError(f"attention dropout of the vision tower is {dropout}: features would not repeat; set it to 0")
    q_THD, k_THD, v_THD = (x[0].transpose(0, 1) for x in (query, key, value))
    if (len(cu_seq_lens_q) - 1) * max_length_q == len(q_THD):
        return _one_length(q_THD, k_THD, v_THD, max_length_q, scaling)[None], None
    out_THD = torch.zeros_like(q_THD)
    for length, place in _by_length(cu_seq_lens_q):
        blocks = _one_length(q_THD[place], k_THD[place], v_THD[place], length, scaling)
        out_THD = out_THD.index_copy(0, place, blocks)
    return out_THD[None], None


def _one_length(q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, length: int, scale: float) -> Tensor:
    """[T, H, D] of blocks that all hold `length` tokens, in one call."""
    q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in (q_THD, k_THD, v_THD))  # [B, H, S, D]
    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).flatten(0, 1)


def _by_length(edges: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(length, places of all tokens in blocks of that length), for each length there is."""
    start, length = edges[:-1].long(), edges.diff().long()
    for each in length.unique().tolist():
        first = start[length == each]
        yield each, (first[:, None] + torch.arange(each, device=edges.device)).flatten()
