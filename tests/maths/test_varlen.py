"""Ragged spans through every kind of kernel, stacked or alone: values and gradients in float64, and what is copied."""

import pytest
import torch
from tests.maths.ragged import normal
from torch.testing import assert_close

from longtake.maths import varlen

EXACT = 1e-12
SCALE = 0.3
D = 6


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)


class Ragged:
    """Stands in for aten's varlen flash ops of CUDA: float32 and float64, one span at a time."""

    def _flash_attention_forward(self, *given, scale):
        q, k, v, q_ends, k_ends, most_q, most_k, dropout, causal, debug = given
        assert dropout == debug == 0
        query, key = (q_ends, most_q), (k_ends, most_k)
        cuts = [cut(x, *side) for x, side in ((q, query), (k, key), (v, key))]
        outs = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*parts, 0.0, causal, scale=scale)
            for parts in zip(*cuts, strict=True)
        ]
        return torch.cat([o[0].transpose(0, 1) for o, _ in outs]), torch.cat([lse[0] for _, lse in outs], 1), 0, 0, 0

    def _flash_attention_backward(self, *given, scale):
        grad, q, k, v, out, lse, q_ends, k_ends, most_q, most_k, dropout, causal, _, _ = given
        assert dropout == 0
        assert lse.is_contiguous()
        query, key = (q_ends, most_q), (k_ends, most_k)
        sides = ((grad, query), (q, query), (k, key), (v, key), (out, query), (lse.T[..., None], query))
        grads = [
            torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *given, total[..., 0], 0.0, causal, scale=scale
            )
            for *given, total in zip(*(cut(x, *side) for x, side in sides), strict=True)
        ]
        return tuple(torch.cat([x[0].transpose(0, 1) for x in each]) for each in zip(*grads, strict=True))


def cut(x, ends, longest):
    """[T, heads, D] to each span's [1, heads, length, D]."""
    assert ends.dtype == torch.int32
    lengths = ends.diff().tolist()
    assert (int(ends[-1]), max(lengths)) == (len(x), longest)
    return [part.transpose(0, 1)[None] for part in x.split(lengths)]


RAGGED = [(0, 3, 0, 3), (3, 8, 3, 8), (12, 40, 12, 40), (52, 1, 52, 1)]
EVEN = [(2, 5, 2, 5), (7, 5, 7, 5), (12, 5, 12, 5)]
CROSSED = [(30, 4, 3, 8), (34, 9, 12, 8), (50, 2, 0, 3), (55, 5, 20, 21)]


@pytest.mark.parametrize("long", [1, 20, 256])
@pytest.mark.parametrize(
    ("spans", "causal"), [(RAGGED, True), (EVEN, True), (RAGGED, False), (CROSSED, False), ([], True)]
)
def test_ragged_spans_come_out_alike(monkeypatch, spans, causal, long):
    """Through aten's op for the CPU, the same with tiles, plain products, and what CUDA's varlen op would be given."""
    monkeypatch.setattr(varlen, "LONG", long)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    q, k, v, grad = (normal(i, 60, heads, D).detach() for i, heads in enumerate((4, 2, 2, 4)))
    whole_out, whole_lse = normal(5, *q.shape).detach(), normal(6, 60, 4).detach() + 5
    aten, ragged, results = varlen.aten, Ragged(), []
    for has_flash, takes_ragged, op, tiled in (
        (True, False, aten, 512),
        (True, False, aten, 1),
        (False, False, None, 1),
        (True, True, ragged, 1),
    ):
        monkeypatch.setattr(varlen, "TILED", tiled)
        monkeypatch.setattr(varlen, "has_flash", lambda device, dtype, has=has_flash: has)
        monkeypatch.setattr(varlen, "takes_ragged", lambda device, dtype, takes=takes_ragged: takes)
        monkeypatch.setattr(varlen, "aten", op)
        found = [torch.zeros_like(x) for x in (q, whole_lse, q, k, v)]
        for call in varlen.plan(spans, causal=causal, ragged=takes_ragged, device=torch.device("cpu")):
            query, key = call.query.places, call.key.places
            gradients = varlen.backward(grad, q, k, v, whole_out, whole_lse, call, SCALE)
            made = (*varlen.forward(q, k, v, call, SCALE), *gradients)
            for at, total, value in zip((query, query, query, key, key), found, made, strict=True):
                at.put(total, value)
        results.append(found)
    for other in results[1:]:
        same(results[0], other)
    assert int(results[0][0][:, 0, 0].count_nonzero()) == sum(length for _, length, _, _ in spans)


@pytest.mark.parametrize(("threads", "dtype", "tiles"), [(1, "float32", 2), (2, "float32", 0), (1, "bfloat16", 0)])
def test_long_spans_go_in_tiles_on_one_thread(monkeypatch, threads, dtype, tiles):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(varlen, "LONG", 8)
    monkeypatch.setattr(varlen, "TILED", 8)
    calls = []
    tiled = varlen.kernels.backward
    monkeypatch.setattr(varlen.kernels, "backward", lambda *a, **k: calls.append(a) or tiled(*a, **k))
    q, k, v, grad = (normal(i, 60, heads, D).detach().to(getattr(torch, dtype)) for i, heads in enumerate((4, 2, 2, 4)))
    for call in varlen.plan(RAGGED, causal=True, ragged=False, device=torch.device("cpu")):
        out, lse = torch.zeros_like(q), torch.zeros(60, 4)
        varlen.backward(grad, q, k, v, out, lse, call, SCALE)
    assert len(calls) == tiles  # spans of 8 and of 40


def test_long_spans_and_even_neighbours_are_views(monkeypatch):
    monkeypatch.setattr(varlen, "LONG", 30)
    x = normal(0, 60, 4, D).detach()
    (even,) = varlen.plan(EVEN, causal=True, ragged=False, device=torch.device("cpu"))
    assert even.query.fold(x).shape == (3, 4, 5, D)
    calls = varlen.plan(RAGGED, causal=True, ragged=False, device=torch.device("cpu"))
    alone = [call for call in calls if call.query.longest == 40]
    for call in (even, *alone):
        for side in (call.query, call.key):
            assert side.fold(x).data_ptr() == x[side.places.start].data_ptr()
    assert [len(calls), len(alone)] == [2, 1]
    assert {call.query.spans for call in calls} == {1, 3}


def test_ragged_kernels_get_one_call_unless_that_gathers(monkeypatch):
    monkeypatch.setattr(varlen, "LONG", 8)
    behind = [(0, 9, 0, 9), (9, 2, 9, 2), (11, 30, 11, 30)]
    assert len(varlen.plan(behind, causal=True, ragged=True, device=torch.device("cpu"))) == 1
    calls = varlen.plan(CROSSED, causal=False, ragged=True, device=torch.device("cpu"))
    assert sorted(call.key.longest for call in calls) == [3, 8, 8, 21]
    assert all(call.key.places.index is None for call in calls)
