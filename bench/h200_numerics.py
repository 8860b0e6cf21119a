"""Numbers of the kernels on this device against plain products in float64, and gradients in half precision.

    attention   shared-prefix and extending attention: groups, ragged answers, trees, a long prefix; values, gradients
    kernels     the log-sum-exp that aten's varlen flash op gives (shape, strides, base), cuDNN against flash, speed
    decode      one new token of every answer
    gradients   a few layers of the size: one row per answer, and a prefix computed once, in bfloat16 and float32,
                against one row per answer in float32 on the same weights

Errors are relative, |got - wanted| / |wanted| over all numbers. T tokens, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from bench.h200_net import TINY, Clock, Net, Scene, Size, network, scene
from bench.h200_step import compute, learn_answers, rows
from longtake.maths import dense, varlen
from longtake.maths.attention import extend_attention, shared_prefix_attention
from longtake.maths.decode import Level, Readers, decode_attention
from longtake.records import Features, Layout
from longtake.runtime.prefix import Keep, finish

Found = dict[str, Any]
NEAR = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
LAYOUTS = {
    "one group": Layout(((700, (96,) * 8),)),
    "ragged": Layout(((300, (5, 0, 1, 33, 64)), (128, (7,)), (1, (2, 2)))),
    "tree": Layout(((600, ((40, (16, 8)), (17, (30,)), (9, ()))), (50, (4, 4)))),
    "long prefix": Layout(((3000, (64,) * 4),)),
}
SMALL = {name: LAYOUTS[name] for name in ("ragged", "tree")}
LONG = (16384, 65536, 131072)
aten = torch.ops.aten


def attention(size: Size, device: str) -> Iterator[Found]:
    for name, layout in (SMALL if size is TINY else LAYOUTS).items():
        for dtype, near in NEAR.items():
            q, k, v, grad = _noise(size, layout.total, device, dtype)
            inner_T = _inner(layout, device)
            for way in ("shared", "extend"):
                seen = grad if way == "shared" else grad.masked_fill(inner_T[:, None], 0)
                wanted = _plain(q, k, v, seen, layout)
                got = _shared(q, k, v, seen, layout) if way == "shared" else _extended(q, k, v, seen, layout, inner_T)
                if way == "extend":  # prefix queries ask nothing there
                    wanted = (wanted[0][:, :, ~inner_T], wanted[1][:, :, ~inner_T], *wanted[2:])
                error = {part: _error(x, y) for part, x, y in zip(("out", "q", "k", "v"), got, wanted, strict=True)}
                about = {"check": way, "layout": name, "dtype": _name(dtype), "error": error}
                yield about | {"ok": max(error.values()) <= near}


def _noise(size: Size, tokens: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Queries, keys, values and a gradient of the output, [1, heads, T, D]."""
    noise = torch.Generator(device).manual_seed(0)
    heads = (size.heads, size.kv_heads, size.kv_heads, size.heads)
    width = size.width // size.heads
    return [torch.randn(1, n, tokens, width, generator=noise, device=device).to(dtype) for n in heads]


def _inner(layout: Layout, device: str) -> Tensor:
    """[T] what is no answer."""
    found = [torch.full((s.length,), s.inner) for s in layout.segments]
    return torch.cat(found).to(device)


def _plain(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    """Output and gradients of q, k, v in float64, by a mask over the whole row."""
    leaves = [x.double().requires_grad_() for x in (q, k, v)]
    mask = torch.zeros(layout.total, layout.total, dtype=torch.bool)
    for segment in layout.segments:
        own = slice(segment.start, segment.start + segment.length)
        mask[own.start : segment.stop, own] = True
        mask[own, own] = torch.ones(segment.length, segment.length).tril().bool()
    keys, values = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in leaves[1:])
    score = (leaves[0] @ keys.mT * _scale(q)).masked_fill(~mask.to(q.device), -torch.inf)
    out = score.softmax(-1) @ values
    return out.detach(), *torch.autograd.grad(out, leaves, grad.double())


def _shared(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, layout: Layout) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = shared_prefix_attention(*leaves, layout, scale=_scale(q))
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def _extended(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, layout: Layout, inner_T: Tensor) -> tuple[Tensor, ...]:
    """The answers alone, on keys and values of the rest; gradients of all keys and values in row order."""
    leaves = [x[:, :, ~inner_T].clone().requires_grad_() for x in (q, k, v)]
    kept = [x[:, :, inner_T] for x in (k, v)]
    into = tuple(torch.zeros(x.shape[2], x.shape[1], x.shape[3], device=q.device) for x in kept)
    out = extend_attention(*leaves, *kept, layout, scale=_scale(q), into=(into[0], into[1]))
    found = torch.autograd.grad(out, leaves, grad[:, :, ~inner_T])
    whole = []
    for own, added, like in zip(found[1:], into, (k, v), strict=True):
        both = torch.zeros_like(like, dtype=torch.float32)
        both[:, :, ~inner_T], both[:, :, inner_T] = own.float(), added.transpose(0, 1)[None]
        whole.append(both)
    return out.detach(), found[0], *whole


def kernels(size: Size, device: str) -> Iterator[Found]:
    spans = [(0, 37, 0, 37), (37, 300, 37, 300)]
    for dtype, near in NEAR.items():
        q, k, v, _ = (x[0].transpose(0, 1) for x in _noise(size, 337, device, dtype))
        ragged = varlen.takes_ragged(q.device, dtype)
        wanted = torch.cat([_lse(q[i : i + n], k[i : i + n]) for i, n, _, _ in spans])
        found = torch.empty_like(wanted)
        for call in varlen.plan(spans, causal=True, ragged=ragged, device=q.device):
            call.query.places.put(found, varlen.forward(q, k, v, call, _scale(q))[1].double())
        about = {"check": "log-sum-exp", "dtype": _name(dtype), "error": {"lse": _error(found, wanted)}}
        yield about | {"ok": _error(found, wanted) <= near} | (_raw(q, k, v) if ragged else {})
    if device == "cuda":
        yield from _long(size)


def _raw(q: Tensor, k: Tensor, v: Tensor) -> Found:
    """What aten's op gives for one span of all tokens."""
    ends = torch.tensor([0, len(q)], dtype=torch.int32, device=q.device)
    lse = aten._flash_attention_forward(q, k, v, ends, ends, len(q), len(q), 0.0, True, False, scale=_scale(q))[1]
    return {"lse_shape": list(lse.shape), "lse_strides": list(lse.stride()), "lse_dtype": _name(lse.dtype)}


def _lse(q: Tensor, k: Tensor) -> Tensor:
    """[T, H] of causal scores."""
    keys = k.double().repeat_interleave(q.shape[1] // k.shape[1], 1)
    score = torch.einsum("thd,shd->hts", q.double(), keys) * _scale(q)
    past = torch.ones(len(q), len(q), device=q.device).tril().bool()
    return score.masked_fill(~past, -torch.inf).logsumexp(-1).T


def _long(size: Size) -> Iterator[Found]:
    """One causal segment in bfloat16 by cuDNN where `dense` takes it, by flash, and how far they are apart."""
    for tokens in LONG:
        q, k, v, grad = _noise(size, tokens, "cuda", torch.bfloat16)
        taken = dense.takes(q[0].transpose(0, 1), size.kv_heads)
        found = {}
        for cudnn in (True, False) if taken else (False,):
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
            clock, layout = Clock(torch.device("cuda")), Layout(((tokens, ()),))
            for run in ("first", "second"):
                leaves = [x.clone().requires_grad_() for x in (q, k, v)]
                with clock(f"{run} forward"):
                    out = shared_prefix_attention(*leaves, layout, scale=_scale(q))
                with clock(f"{run} backward"):
                    gradients = torch.autograd.grad(out, leaves, grad)
            found[cudnn] = (out.detach(), *gradients)
            work = 2e-12 * tokens**2 * size.width  # of one causal product forward, two of them
            speed = {part: work / clock.seconds[f"second {part}"] for part in ("forward", "backward")}
            speed["backward"] *= 2.5
            about = {"check": "speed", "kernel": "cudnn" if cudnn else "flash", "tokens": tokens}
            yield about | {"seconds": clock.seconds, "tflops": speed, "ok": True}
        torch.backends.cuda.enable_cudnn_sdp(True)
        if taken:
            pairs = zip(("out", "q", "k", "v"), found[True], found[False], strict=True)
            error = {part: _error(x, y) for part, x, y in pairs}
            ok = max(error.values()) <= NEAR[torch.bfloat16]
            yield {"check": "cudnn against flash", "tokens": tokens, "error": error, "ok": ok}


def decode(size: Size, device: str) -> Iterator[Found]:
    for dtype, near in NEAR.items():
        group, own, prefix = size.group, 37, 1000
        _, k, v, _ = _noise(size, prefix, device, dtype)
        q, own_k, own_v, _ = (
            torch.cat([x.roll(n, 2)[:, :, :own] for n in range(group)]) for x in _noise(size, own, device, dtype)
        )
        q = q[:, :, :1]
        level = Level(k, v, None, Readers.of([0] * group, q.device))
        got = decode_attention(q, [level], own_k, own_v, scale=_scale(q))
        keys, values = (
            torch.cat([x.expand(group, -1, -1, -1), y], 2).double().repeat_interleave(size.heads // size.kv_heads, 1)
            for x, y in ((k, own_k), (v, own_v))
        )
        wanted = (q.double() @ keys.mT * _scale(q)).softmax(-1) @ values
        error = _error(got, wanted)
        yield {"check": "decode", "dtype": _name(dtype), "error": {"out": error}, "ok": error <= near}


def gradients(size: Size, device: str) -> Iterator[Found]:
    few = replace(size, layers=3, vocab=min(size.vocab, 32768))
    for kind in ("full", "lora"):
        half, wide = (network(few, device, dtype, adapter=kind == "lora") for dtype in (torch.bfloat16, torch.float32))
        wide.text.load_state_dict(half.text.state_dict())
        wide.lm_head.load_state_dict(half.lm_head.state_dict())
        for frames in (4,) if size is TINY else (8, 64):
            here = scene(half, few, frames, group=4, answer=min(64, few.answer))
            exact = replace(scene(wide, few, frames), features=Features(here.features.level_LNE.float()))
            exact = replace(exact, answers=here.answers, weights=here.weights)
            wanted = _gradient(exact, None)
            about = {"check": "gradient", "kind": kind, "layers": 3, "prefix": few.tokens(frames), "G": 4}
            limit = 0.0
            for dtype, way, keep in (
                ("float32", "exact", "graph"),
                ("bfloat16", "per_answer", None),
                ("bfloat16", "exact", "graph"),
                ("bfloat16", "exact_layers", "layers"),
            ):
                told = _told(_gradient(exact if dtype == "float32" else here, keep), wanted)
                limit = 2 * told["error"] if way == "per_answer" else limit
                ok = told["error"] <= (1e-4 if dtype == "float32" else limit)
                yield about | {"answer": len(here.answers[0]), "dtype": dtype, "way": way} | told | {"ok": ok}


def _gradient(here: Scene, keep: Keep | None) -> dict[str, Tensor]:
    """Of all that learns; `keep` None: a row of its own for every answer."""
    if keep is None:
        rows(here, Clock(here.net.device))
    else:
        made = compute(here, keep)
        learn_answers(here, made, 10**9)
        finish(here.net, made)
    return _taken(here.net)


def _taken(net: Net) -> dict[str, Tensor]:
    found = {name: p.grad.float() for name, p in net.text.named_parameters() if p.grad is not None}
    net.text.zero_grad(set_to_none=True)
    return found


def _told(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> Found:
    """Errors over all parameters, and of the worst of them."""
    assert got.keys() == wanted.keys()
    each = {name: _error(got[name], x) for name, x in wanted.items()}
    worst = max(each, key=each.__getitem__)
    off = sum(float((got[name] - x).double().square().sum()) for name, x in wanted.items())
    norm = sum(float(x.double().square().sum()) for x in wanted.values())
    return {"error": (off / norm) ** 0.5, "worst": [worst, each[worst]]}


def _error(x: Tensor, y: Tensor) -> float:
    return float((x.double() - y.double()).norm() / y.double().norm())


def _scale(q: Tensor) -> float:
    return q.shape[-1] ** -0.5


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


CHECKS = {"attention": attention, "kernels": kernels, "decode": decode, "gradients": gradients}
