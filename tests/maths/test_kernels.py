"""Plain attention of equally long spans against aten's flash op for the CPU: value and gradient in float64."""

import pytest
import torch
from tests.maths.ragged import normal
from torch.testing import assert_close

from longtake.maths import kernels

EXACT = 1e-12
ROUNDED = 2**-8  # of float64 results to bfloat16, relative
SCALE = 0.3
D = 6
SHAPES = [  # spans, heads, key heads, queries, keys, causal
    (3, 4, 2, 7, 7, True),
    (3, 4, 2, 7, 11, False),
    (1, 6, 1, 9, 9, True),
    (2, 6, 1, 5, 1, False),
    (2, 3, 3, 1, 1, True),
    (0, 4, 2, 3, 3, True),
    (0, 4, 2, 3, 5, False),
]


def block(spans, heads, kv_heads, queries, keys, _causal):
    """q, k, v and the gradient of the output."""
    shapes = ((heads, queries), (kv_heads, keys), (kv_heads, keys), (heads, queries))
    return [normal(i, spans, *shape, D).detach() for i, shape in enumerate(shapes)]


def flash(q, k, v, causal):
    if not len(q):
        return torch.zeros_like(q), q.new_zeros(q.shape[:3])
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=SCALE)


def flash_backward(grad, q, k, v, out, lse, causal):
    if not len(q):
        return q, k, v
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad, q, k, v, out, lse, 0.0, causal, scale=SCALE
    )


def same(got, want):
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(("scores", "tile"), [(1, (1, 1)), (100, (4, 100)), (2**26, (3, 2**18)), (60, (1024, 60))])
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_atens_kernel_however_it_is_sliced(monkeypatch, shape, scores, tile):
    monkeypatch.setattr(kernels, "SCORES", scores)
    monkeypatch.setattr(kernels, "TILE", tile)
    q, k, v, grad = block(*shape)
    out, lse = flash(q, k, v, shape[-1])
    same(kernels.forward(q, k, v, causal=shape[-1], scale=SCALE), (out, lse))
    got = kernels.backward(grad, q, k, v, out, lse, causal=shape[-1], scale=SCALE)
    same(got, flash_backward(grad, q, k, v, out, lse, shape[-1]))


@pytest.mark.parametrize("tile", [(1024, 2**18), (3, 100)])
@pytest.mark.parametrize("shape", SHAPES)
def test_backward_of_a_joined_pair_with_padded_queries(monkeypatch, shape, tile):
    """As in shared-prefix attention: output and log-sum-exp of more keys than these, and queries that are padding."""
    monkeypatch.setattr(kernels, "TILE", tile)
    q, k, v, grad = block(*shape)
    out, lse = flash(q, k, v, shape[-1])
    out, lse = out * 0.5 + grad.flip(-1), lse + normal(9, *lse.shape).detach().abs()
    lse[1:, :, -1] = torch.inf
    got = kernels.backward(grad, q, k, v, out, lse, causal=shape[-1], scale=SCALE)
    same(got, flash_backward(grad, q, k, v, out, lse, shape[-1]))
    assert not got[0][1:, :, -1].any()


def test_no_slice_has_more_scores_than_allowed(monkeypatch):
    sizes = []
    scores = kernels._scores
    monkeypatch.setattr(kernels, "SCORES", 200)
    monkeypatch.setattr(kernels, "_scores", lambda *a: sizes.append((x := scores(*a)).numel()) or x)
    q, k, v, _ = block(2, 4, 2, 10, 10, False)
    kernels.forward(q, k, v, causal=False, scale=SCALE)
    assert sizes == [160] * 5  # two queries of 2 spans × 4 heads × 10 keys


@pytest.mark.parametrize("causal", [True, False])
def test_tiles_cover_every_score_once_and_are_small(monkeypatch, causal):
    monkeypatch.setattr(kernels, "TILE", (4, 64))
    q, k, _, _ = block(2, 4, 2, 10, 10, causal)
    count = torch.zeros(10, 10, dtype=torch.int64)
    for rows, keys, later in kernels._tiles(q, k, causal):
        assert 4 * (rows.stop - rows.start) * (keys.stop - keys.start) <= 64  # 2 spans × 2 key heads
        places = slice(rows.start // 2, rows.stop // 2)
        read = torch.ones(keys.stop - keys.start, places.stop - places.start, dtype=torch.int64)
        if later is not None:
            read[-len(later) :][later] = 0
        count[places, keys] += read.T
    assert torch.equal(count, torch.ones_like(count).tril() if causal else torch.ones_like(count))


def test_a_score_that_overflows_although_it_is_masked():
    """A later key that would have an infinite power."""
    q = torch.full((1, 1, 3, 2), 60.0, dtype=torch.float64)
    k = q * torch.arange(3.0, dtype=torch.float64)[:, None]
    v = grad = torch.ones_like(q)
    out, lse = flash(q, k, v, True)
    got = kernels.backward(grad, q, k, v, out, lse, causal=True, scale=SCALE)
    assert torch.exp((q @ k.mT * SCALE)[0, 0, 0, 2] - lse[0, 0, 0]) == torch.inf
    same(got, flash_backward(grad, q, k, v, out, lse, True))


def test_half_precision_is_computed_in_float32():
    *inputs, grad = (x.bfloat16() for x in block(*SHAPES[0]))
    out, lse = kernels.forward(*inputs, causal=True, scale=SCALE)
    exact, exact_lse = flash(*(x.double() for x in inputs), True)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    assert_close(out.double(), exact, rtol=ROUNDED, atol=1e-6)
    assert_close(lse.double(), exact_lse, rtol=1e-6, atol=1e-6)
    got = kernels.backward(grad, *inputs, out, lse, causal=True, scale=SCALE)
    want = flash_backward(*(x.double() for x in (grad, *inputs, out, lse)), True)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.bfloat16
        assert_close(a.double(), b, rtol=ROUNDED, atol=1e-6)
