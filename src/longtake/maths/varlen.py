"""Attention of ragged spans in few kernel calls, forward and backward: the kernels under shared-prefix attention.

A span is a run of query tokens that reads a run of key tokens, either causally (the runs are equally long) or all of
it. T query tokens, U key tokens, H heads, K key/value heads, D head width; b spans of m queries, n keys share a call.

Long spans are calls of their own, on views: nothing is copied. Short spans of similar length are one batched call;
queries are padded at their end, causal keys too. That is exact: no real query reads a padded key, and a padded query
has LSE = +inf, hence P = exp(S - LSE) = 0. The call is
  on the CPU, any dtype: aten's flash op for the CPU, or for long spans on one thread the backward of `kernels`;
  on CUDA in float16 or bfloat16, the dtypes of its flash kernels: aten's varlen flash op, which needs no padding
  (FlashAttention-3 after torch.nn.attention.activate_flash_attention_impl), or cuDNN's for what `dense` takes;
  elsewhere (CUDA in float32 or float64, MPS in any dtype): the plain matrix products of `kernels`.
Nothing has run on CUDA or MPS yet: no GPU was at hand. The plain products were checked against aten's op on the CPU.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch

from longtake.maths import dense, kernels

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

aten = torch.ops.aten
Span = tuple[int, int, int, int]  # query start, query length, key start, key length
TILED = 512  # keys of a span whose backward is `kernels`' on one thread of a CPU
LONG = 256  # keys of a span that gets a call of its own: there a call costs less than gathering would


@dataclass(frozen=True, slots=True)
class Places:
    """Some places of a row: a run, or any in ascending order. Example: Places(3, 2) are 3 and 4."""

    start: int
    count: int
    index: Tensor | None = None  # [count] int64

    def of(self, x: Tensor) -> Tensor:
        """[count, ...], a view where it can be."""
        return x.narrow(0, self.start, self.count) if self.index is None else x.index_select(0, self.index)

    def put(self, x: Tensor, values: Tensor) -> None:
        """Writes values [count, ...] there."""
        if self.index is None:
            x.narrow(0, self.start, self.count).copy_(values)
        else:
            x.index_copy_(0, self.index, values.to(x.dtype))

    def add(self, x: Tensor, values: Tensor) -> None:
        """Adds values [count, ...] there."""
        if self.index is None:
            x.narrow(0, self.start, self.count).add_(values)
        else:
            x.index_add_(0, self.index, values.to(x.dtype))


@dataclass(frozen=True, slots=True)
class Side:
    """The queries or the keys of one call: where they lie, and how they are stacked as equally long spans."""

    places: Places
    spans: int  # b
    stacked: Places  # [b * m]; padding reads place 0
    real: Tensor | None  # which of them are no padding; None = all
    padding: Tensor | None  # which are; None = none
    ends: Tensor  # [b + 1] int32, cumulative lengths
    longest: int  # m

    def fold(self, x: Tensor) -> Tensor:
        """[T, heads, ...] to [b, heads, m, ...]."""
        return self.stacked.of(x).unflatten(0, (self.spans, self.longest)).transpose(1, 2)

    def unfold(self, x: Tensor) -> Tensor:
        """[b, heads, m, ...] to [count, heads, ...], as `places` has them."""
        flat = x.transpose(1, 2).flatten(0, 1)
        return flat if self.real is None else flat.index_select(0, self.real)

    def fold_lse(self, lse_TH: Tensor) -> Tensor:
        """[T, H] to [b, H, m], +inf for padding."""
        stacked = self.stacked.of(lse_TH)
        if self.padding is not None:
            stacked = stacked.index_fill(0, self.padding, torch.inf)
        return stacked.unflatten(0, (self.spans, self.longest)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Call:
    """Spans that go through a kernel together."""

    causal: bool
    query: Side
    key: Side


def has_flash(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether aten has a flash kernel for it. Otherwise `kernels` computes."""
    return device.type == "cpu" or (device.type == "cuda" and dtype in (torch.float16, torch.bfloat16))


def takes_ragged(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether that kernel takes spans of any lengths in one call."""
    return device.type == "cuda" and has_flash(device, dtype)


def plan(spans: list[Span], *, causal: bool, ragged: bool, device: torch.device) -> tuple[Call, ...]:
    """Sorts spans into calls; `ragged` = the kernel takes any lengths at once. In row order, not overlapping."""
    calls: dict[tuple[bool, int], list[Span]] = defaultdict(list)
    spans = [span for span in spans if span[1] and span[3]]
    sides = [(span[0], span[1]) for span in spans], [(span[2], span[3]) for span in spans]
    whole = ragged and all(places(runs, device).index is None for runs in sides)
    for place, span in enumerate(spans):
        if span[3] >= (dense.LONG if whole else LONG):
            calls[True, place].append(span)
        else:
            calls[False, 0 if ragged else _similar(span[1]) if causal else span[3]].append(span)
    return tuple(_call(members, causal, ragged, device) for members in calls.values())


def _call(spans: list[Span], causal: bool, ragged: bool, device: torch.device) -> Call:
    queries = _side([span[:2] for span in spans], not ragged, device)
    keys = queries if causal and _same(spans) else _side([span[2:] for span in spans], not ragged, device)
    return Call(causal, queries, keys)


def _same(spans: list[Span]) -> bool:
    """Whether keys lie where queries do."""
    return all(span[:2] == span[2:] for span in spans)


def places(runs: list[tuple[int, int]], device: torch.device) -> Places:
    """The places of runs (start, length), which are in order."""
    total = sum(length for _, length in runs)
    if all(start + length == after for (start, length), (after, _) in pairwise(runs)):
        return Places(runs[0][0] if runs else 0, total)
    return Places(0, total, torch.cat([torch.arange(start, start + length) for start, length in runs]).to(device))


def _side(runs: list[tuple[int, int]], pad: bool, device: torch.device) -> Side:
    lengths = [length for _, length in runs]
    longest, where = max(lengths), places(runs, device)
    ends = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
    if not pad or min(lengths) == longest:
        return Side(where, len(runs), where, None, None, ends, longest)
    stacked, is_real = torch.zeros(len(runs), longest, dtype=torch.int64), torch.zeros(len(runs), longest).bool()
    for line, mark, (start, length) in zip(stacked, is_real, runs, strict=True):
        line[:length] = torch.arange(start, start + length)
        mark[:length] = True
    real, padding = (mask.flatten().nonzero()[:, 0].to(device) for mask in (is_real, ~is_real))
    padded = Places(0, stacked.numel(), stacked.flatten().to(device))
    return Side(where, len(runs), padded, real, padding, ends, longest)


def _similar(length: int) -> int:
    """Lengths that may share a call: at most 32 tokens or an eighth apart, so padding costs little."""
    step = max(32, 1 << max(length.bit_length() - 3, 0))
    return -(-length // step) * step


def forward(
    q_THD: Float[Tensor, "T H D"],
    k_UKD: Float[Tensor, "U K D"],
    v_UKD: Float[Tensor, "U K D"],
    call: Call,
    scale: float,
) -> tuple[Float[Tensor, "Tc H D"], Float[Tensor, "Tc H"]]:
    """Output and natural log-sum-exp of scaled scores (float32; float64 for float64) for `call.query.places`."""
    if takes_ragged(q_THD.device, q_THD.dtype):
        if _is_dense(q_THD, k_UKD, call):
            read = call.key.places.of
            return dense.forward(call.query.places.of(q_THD), read(k_UKD), read(v_UKD), scale)
        return _cuda_forward(q_THD, k_UKD, v_UKD, call, scale)
    q, k, v = call.query.fold(q_THD), call.key.fold(k_UKD), call.key.fold(v_UKD)
    if has_flash(q_THD.device, q_THD.dtype):
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, call.causal, scale=scale)
    else:
        out, lse = kernels.forward(q, k, v, causal=call.causal, scale=scale)
    return call.query.unfold(out), call.query.unfold(lse)


def backward(
    grad_THD: Float[Tensor, "T H D"],
    q_THD: Float[Tensor, "T H D"],
    k_UKD: Float[Tensor, "U K D"],
    v_UKD: Float[Tensor, "U K D"],
    out_THD: Float[Tensor, "T H D"],
    lse_TH: Float[Tensor, "T H"],
    call: Call,
    scale: float,
) -> tuple[Float[Tensor, "Tc H D"], Float[Tensor, "Uc K D"], Float[Tensor, "Uc K D"]]:
    """Gradients through this call's keys alone, where `out` and `lse` are those of *all* keys that a query reads; for
    `call.query.places` and `call.key.places`.

    A flash backward uses P = exp(S - LSE) and rowsum(dO ∘ O): given the joined pair, it yields each key block's exact
    share.
    """
    if takes_ragged(q_THD.device, q_THD.dtype):
        if _is_dense(q_THD, k_UKD, call):
            own, read = call.query.places.of, call.key.places.of
            inputs = own(q_THD), read(k_UKD), read(v_UKD)
            return dense.backward(own(grad_THD), *inputs, own(out_THD), own(lse_TH), scale)
        return _cuda_backward(grad_THD, q_THD, k_UKD, v_UKD, out_THD, lse_TH, call, scale)
    query, key = call.query, call.key
    given = (
        query.fold(grad_THD),
        query.fold(q_THD),
        key.fold(k_UKD),
        key.fold(v_UKD),
        query.fold(out_THD),
        query.fold_lse(lse_TH),
    )
    if has_flash(q_THD.device, q_THD.dtype) and not _tiles_are_faster(q_THD, call):
        dq, dk, dv = aten._scaled_dot_product_flash_attention_for_cpu_backward(*given, 0.0, call.causal, scale=scale)
    else:
        dq, dk, dv = kernels.backward(*given, causal=call.causal, scale=scale)
    return query.unfold(dq), key.unfold(dk), key.unfold(dv)


def _tiles_are_faster(q_THD: Tensor, call: Call) -> bool:
    """Measured on one thread against aten's backward: by 10 % at 8192 keys, by 20 % at 2048 where causal. aten computes
    causal blocks of 512 keys whole, but takes heads in parallel.
    """
    exact = q_THD.dtype in (torch.float32, torch.float64)
    return exact and call.key.spans == 1 and call.key.longest >= TILED and torch.get_num_threads() == 1


def _is_dense(q_THD: Tensor, k_UKD: Tensor, call: Call) -> bool:
    return call.causal and call.query.spans == 1 and dense.takes(call.query.places.of(q_THD), k_UKD.shape[1])


def _cuda_forward(q_THD: Tensor, k_UKD: Tensor, v_UKD: Tensor, call: Call, scale: float) -> tuple[Tensor, Tensor]:
    query, key = call.query, call.key
    out, lse_HT, *_ = aten._flash_attention_forward(
        query.places.of(q_THD),
        key.places.of(k_UKD),
        key.places.of(v_UKD),
        query.ends,
        key.ends,
        query.longest,
        key.longest,
        0.0,
        call.causal,
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
    call: Call,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    query, key = call.query, call.key
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=q_THD.device)
    dq, dk, dv = aten._flash_attention_backward(
        query.places.of(grad_THD),
        query.places.of(q_THD),
        key.places.of(k_UKD),
        key.places.of(v_UKD),
        query.places.of(out_THD),
        query.places.of(lse_TH).T.contiguous(),
        query.ends,
        key.ends,
        query.longest,
        key.longest,
        0.0,
        call.causal,
        no_dropout,
        no_dropout,
        scale=scale,
    )
    return dq, dk, dv
