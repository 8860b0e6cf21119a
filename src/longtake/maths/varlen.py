"""Attention of ragged spans in few kernel calls, forward and backward: the kernels under shared-prefix attention.

A span is a run of query tokens that reads a run of key tokens, either causally (the runs are equally long) or all of
it. T query tokens, U key tokens, H heads, K key/value heads, D head width; b spans of m queries, n keys share a call.

Spans of similar length are one batched call; queries are padded at their end, causal keys too. That is exact: no real
query reads a padded key, and a padded query has LSE = +inf, hence P = exp(S - LSE) = 0. The call is
  on the CPU, any dtype: aten's flash op for the CPU;
  on CUDA in float16 or bfloat16, the dtypes of its flash kernels: instead one call of aten's varlen flash op for all;
  elsewhere (CUDA in float32 or float64, MPS in any dtype): the plain matrix products of `kernels`.
Nothing has run on CUDA or MPS yet: no GPU was at hand. The plain products were checked against aten's op on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch

from longtake.maths import kernels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

aten = torch.ops.aten
Span = tuple[int, int, int, int]  # query start, query length, key start, key length


@dataclass(frozen=True, slots=True)
class Block:
    """Spans of one batched kernel call, as places (int64) to gather."""

    spans: int  # b
    query: Tensor  # [b * m] places in T; padding reads place 0
    padded: Tensor  # [b * m] the same with padding at place T, one past the end
    key: Tensor  # [b * n] places in U; padding (causal only) reads place 0


@dataclass(frozen=True, slots=True)
class Spans:
    """All spans of one kind on one device. Results come for the places that have a span, in their order."""

    causal: bool
    query: Tensor  # [Tc] places in T that have a span
    key: Tensor  # [Uc] places in U that have one
    blocks: tuple[Block, ...]
    query_at: Tensor  # [Tc] where each lies in the blocks' queries behind one another
    key_at: Tensor  # [Uc]
    query_ends: Tensor  # [spans + 1] int32, cumulative lengths
    key_ends: Tensor  # [spans + 1]
    longest_query: int
    longest_key: int


def plan(spans: list[Span], *, causal: bool, queries: int, keys: int, device: torch.device) -> Spans:
    """Sorts spans into kernel calls; `queries` is T, `keys` is U. Spans in row order, not overlapping, no length 0."""
    calls: dict[int, list[Span]] = defaultdict(list)
    for span in spans:
        calls[_similar(span[1]) if causal else span[3]].append(span)
    blocks, query_places, key_places = [], [], []
    for members in calls.values():
        longest = max(length for _, length, _, _ in members)
        query = _places([span[:2] for span in members], longest, padding=queries)
        key = _places([span[2:] for span in members], longest if causal else members[0][3], padding=keys)
        query_places.append(query)
        key_places.append(key)
        readable = torch.where(query < queries, query, 0).to(device)
        blocks.append(Block(len(members), readable, query.to(device), torch.where(key < keys, key, 0).to(device)))
    query, query_at = _inverse(query_places, queries)
    key, key_at = _inverse(key_places, keys)
    return Spans(
        causal,
        query.to(device),
        key.to(device),
        tuple(blocks),
        query_at.to(device),
        key_at.to(device),
        _ends([span[1] for span in spans], device),
        _ends([span[3] for span in spans], device),
        max((span[1] for span in spans), default=0),
        max((span[3] for span in spans), default=0),
    )


def _similar(length: int) -> int:
    """Lengths that may share a call: at most 32 tokens or an eighth apart, so padding costs little."""
    step = max(32, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def _places(runs: list[tuple[int, int]], width: int, *, padding: int) -> Tensor:
    """[runs * width] the places of each run, filled up to `width` with `padding`."""
    places = torch.full((len(runs), width), padding)
    for line, (start, length) in zip(places, runs, strict=True):
        line[:length] = torch.arange(start, start + length)
    return places.flatten()


def _inverse(places: list[Tensor], total: int) -> tuple[Tensor, Tensor]:
    """Which of `total` places occur, in order, and where each occurs."""
    flat = torch.cat([torch.empty(0, dtype=torch.int64), *places])
    order = flat.argsort(stable=True)[: int((flat < total).sum())]
    return flat[order], order


def _ends(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether aten has a flash kernel for it. Otherwise `kernels` computes."""
    return device.type == "cpu" or (device.type == "cuda" and dtype in (torch.float16, torch.bfloat16))


def forward(
    q_THD: Float[Tensor, "T H D"],
    k_UKD: Float[Tensor, "U K D"],
    v_UKD: Float[Tensor, "U K D"],
    spans: Spans,
    scale: float,
) -> tuple[Float[Tensor, "Tc H D"], Float[Tensor, "Tc H"]]:
    """Output and natural log-sum-exp of scaled scores (float32; float64 for float64) for the places `spans.query`."""
    flash = has_flash(q_THD.device, q_THD.dtype)
    if flash and q_THD.is_cuda:
        return _cuda_forward(q_THD, k_UKD, v_UKD, spans, scale)
    width = torch.promote_types(q_THD.dtype, torch.float32)
    outs, lses = [q_THD.new_empty(0, *q_THD.shape[1:])], [q_THD.new_empty(0, q_THD.shape[1], dtype=width)]
    for block in spans.blocks:
        q, k, v = _fold(q_THD, block.query, block), _fold(k_UKD, block.key, block), _fold(v_UKD, block.key, block)
        if flash:
            out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, spans.causal, scale=scale)
        else:
            out, lse = kernels.forward(q, k, v, causal=spans.causal, scale=scale)
        outs.append(_unfold(out))
        lses.append(_unfold(lse))
    return torch.cat(outs).index_select(0, spans.query_at), torch.cat(lses).index_select(0, spans.query_at)


def backward(
    grad_THD: Float[Tensor, "T H D"],
    q_THD: Float[Tensor, "T H D"],
    k_UKD: Float[Tensor, "U K D"],
    v_UKD: Float[Tensor, "U K D"],
    out_THD: Float[Tensor, "T H D"],
    lse_TH: Float[Tensor, "T H"],
    spans: Spans,
    scale: float,
) -> tuple[Float[Tensor, "Tc H D"], Float[Tensor, "Uc K D"], Float[Tensor, "Uc K D"]]:
    """Gradients through these spans' keys alone, where `out` and `lse` are those of *all* keys that a query reads.

    A flash backward uses P = exp(S - LSE) and rowsum(dO ∘ O): given the joined pair, it yields each key block's exact
    share.
    """
    flash = has_flash(q_THD.device, q_THD.dtype)
    if flash and q_THD.is_cuda:
        return _cuda_backward(grad_THD, q_THD, k_UKD, v_UKD, out_THD, lse_TH, spans, scale)
    lse_padded = torch.cat([lse_TH, lse_TH.new_full((1, lse_TH.shape[1]), torch.inf)])
    dqs, dks, dvs = (
        [q_THD.new_empty(0, *q_THD.shape[1:])],
        [k_UKD.new_empty(0, *k_UKD.shape[1:])],
        [v_UKD.new_empty(0, *v_UKD.shape[1:])],
    )
    for block in spans.blocks:
        given = (
            _fold(grad_THD, block.query, block),
            _fold(q_THD, block.query, block),
            _fold(k_UKD, block.key, block),
            _fold(v_UKD, block.key, block),
            _fold(out_THD, block.query, block),
            _fold(lse_padded, block.padded, block),
        )
        if flash:
            dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *given, 0.0, spans.causal, scale=scale
            )
        else:
            dq, dk, dv = kernels.backward(*given, causal=spans.causal, scale=scale)
        for gathered, gradient in ((dqs, dq), (dks, dk), (dvs, dv)):
            gathered.append(_unfold(gradient))
    return (
        torch.cat(dqs).index_select(0, spans.query_at),
        torch.cat(dks).index_select(0, spans.key_at),
        torch.cat(dvs).index_select(0, spans.key_at),
    )


def _fold(x: Tensor, places: Tensor, block: Block) -> Tensor:
    """[T, heads, ...] gathered to [b, heads, m, ...]."""
    return x.index_select(0, places).unflatten(0, (block.spans, -1)).transpose(1, 2)


def _unfold(x: Tensor) -> Tensor:
    """[b, heads, m, ...] to [b * m, heads, ...]."""
    return x.transpose(1, 2).flatten(0, 1)


def _cuda_forward(q_THD: Tensor, k_UKD: Tensor, v_UKD: Tensor, spans: Spans, scale: float) -> tuple[Tensor, Tensor]:
    out, lse_HT, *_ = aten._flash_attention_forward(
        q_THD[spans.query],
        k_UKD[spans.key],
        v_UKD[spans.key],
        spans.query_ends,
        spans.key_ends,
        spans.longest_query,
        spans.longest_key,
        0.0,
        spans.causal,
        False,
        scale=scale,
    )
    return out, lse_HT.T


def _cuda_backward(
    grad_THD: Tensor,
    q_THD: Tensor,
    k_UKD: Tensor,
    v_UKD: Tensor,
    out_THD: Tensor,
    lse_TH: Tensor,
    spans: Spans,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)
    dq, dk, dv = aten._flash_attention_backward(
        grad_THD[spans.query],
        q_THD[spans.query],
        k_UKD[spans.key],
        v_UKD[spans.key],
        out_THD[spans.query],
        lse_TH[spans.query].T.contiguous(),
        spans.query_ends,
        spans.key_ends,
        spans.longest_query,
        spans.longest_key,
        0.0,
        spans.causal,
        no_dropout,
        no_dropout,
        scale=scale,
    )
    return dq, dk, dv
