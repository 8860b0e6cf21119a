"""Shared-prefix attention against one row per answer: value and gradient in float64."""

import pytest
import torch
from hypothesis import given
from tests.maths.ragged import layouts, normal, quick
from tests.plain import attention as plain
from torch.testing import assert_close

from longtake.maths import attention, kernels, varlen
from longtake.records import Layout

EXACT = 1e-12
HALF = 2e-2  # bfloat16 against float64, whose numbers are of size 1
DECODED = 1.6e-2  # a few roundings to bfloat16 of numbers up to 3; it is 0.12 with rounded scores
SCALE = 0.3
H, K, D = 4, 2, 6


def row(layout, seed=0):
    """q, k, v of a packed row and the gradient of its output."""
    q, k, v, grad = (normal(seed + i, 1, heads, layout.total, D) for i, heads in enumerate((H, K, K, H)))
    return q, k, v, grad.detach()


def compare(got, want, leaves, grad):
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    sides = [torch.autograd.grad(x, leaves, grad) for x in (got, want)]
    for a, b in zip(*sides, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)


@quick
@given(layouts)
def test_row_equals_one_row_per_answer(layout):
    q, k, v, grad = row(layout)
    got = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    compare(got, plain.shared_prefix(q, k, v, layout, SCALE), (q, k, v), grad)


def test_the_demos_shape():
    """Several groups, two prefix lengths, ragged answers, one of a single token (empty segment), one pure prefill."""
    layout = Layout(((20, (3, 7, 0, 5)), (20, (9,)), (31, (1, 1)), (6, ()), (31, (40, 2, 33))))
    q, k, v, grad = row(layout)
    got = attention.Row(layout)(0, q, k, v, SCALE)
    compare(got, plain.shared_prefix(q, k, v, layout, SCALE), (q, k, v), grad)


@pytest.mark.parametrize("groups", [((5, ()),), ((4, (0, 0)),), ((1, (1,)),), ((0, (3, 2)),)])
def test_corners(groups):
    layout = Layout(groups)
    q, k, v, grad = row(layout)
    got = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    compare(got, plain.shared_prefix(q, k, v, layout, SCALE), (q, k, v), grad)


def split(layout):
    """Places of prefixes and of answers in the row."""
    prefix, answers, at = [], [], 0
    for p, lengths in layout.groups:
        prefix += range(at, at + p)
        answers += range(at + p, at + p + sum(lengths))
        at += p + sum(lengths)
    return prefix, answers


@quick
@given(layouts)
def test_extending_kept_prefixes_equals_the_row(layout):
    q, k, v, grad = row(layout)
    prefix, answers = split(layout)
    whole = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)[:, :, answers]
    own = (q[:, :, answers], k[:, :, answers], v[:, :, answers])
    got = attention.extend_attention(*own, k[:, :, prefix], v[:, :, prefix], layout, scale=SCALE)
    compare(got, whole, (q, k, v), grad[:, :, answers])


def test_bfloat16_sums_of_many_answers_stay_near():
    layout = Layout(((6, (3,) * 24),))
    q, k, v, grad = row(layout)
    exact = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    low = [x.detach().bfloat16().requires_grad_() for x in (q, k, v)]
    rough = attention.shared_prefix_attention(*low, layout, scale=SCALE)
    assert rough.dtype == torch.bfloat16
    assert_close(rough.double(), exact, rtol=HALF, atol=HALF)
    got = torch.autograd.grad(rough, low, grad.bfloat16())
    for a, b in zip(got, torch.autograd.grad(exact, (q, k, v), grad), strict=True):
        assert a.dtype == torch.bfloat16
        assert float((a.double() - b).norm() / b.norm()) < HALF


def test_many_ragged_answers_need_few_kernel_calls(monkeypatch):
    calls = []
    kernel = varlen.aten._scaled_dot_product_flash_attention_for_cpu
    backward = varlen.aten._scaled_dot_product_flash_attention_for_cpu_backward

    class Counted:
        def _scaled_dot_product_flash_attention_for_cpu(self, *a, **k):
            calls.append("forward")
            return kernel(*a, **k)

        def _scaled_dot_product_flash_attention_for_cpu_backward(self, *a, **k):
            calls.append("backward")
            return backward(*a, **k)

    monkeypatch.setattr(varlen, "aten", Counted())
    layout = Layout(tuple((40, tuple(range(15 + i, 23 + i))) for i in range(8)))
    q, k, v, grad = row(layout)
    attention.shared_prefix_attention(q, k, v, layout, scale=SCALE).backward(grad)
    assert calls.count("forward") == calls.count("backward") == 3  # prefixes, answers, answers on prefixes


def test_a_flash_kernel_runs_where_torch_has_one():
    half = {torch.float16, torch.bfloat16}
    for dtype in (*half, torch.float32, torch.float64):
        assert varlen.has_flash(torch.device("cpu"), dtype)
        assert varlen.has_flash(torch.device("cuda", 1), dtype) == (dtype in half)
        assert not varlen.has_flash(torch.device("mps"), dtype)


@pytest.mark.parametrize("scores", [1, 500, 2**26])
def test_the_row_without_a_flash_kernel(monkeypatch, scores):
    monkeypatch.setattr(varlen, "has_flash", lambda device, dtype: False)
    monkeypatch.setattr(varlen, "aten", None)
    monkeypatch.setattr(kernels, "SCORES", scores)
    layout = Layout(((20, (3, 7, 0, 5)), (20, (9,)), (31, (1, 1)), (6, ()), (0, (3, 2)), (31, (40, 2, 33))))
    q, k, v, grad = row(layout)
    compare(
        attention.shared_prefix_attention(q, k, v, layout, scale=SCALE),
        plain.shared_prefix(q, k, v, layout, SCALE),
        (q, k, v),
        grad,
    )
    prefix, answers = split(layout)
    whole = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    own, kept = [x[:, :, answers] for x in (q, k, v)], [x[:, :, prefix] for x in (k, v)]
    got = attention.extend_attention(*own, *kept, layout, scale=SCALE)
    compare(got, whole[:, :, answers], (q, k, v), grad[:, :, answers])


@pytest.mark.parametrize("flash", [True, False])
def test_a_row_of_no_tokens(monkeypatch, flash):
    monkeypatch.setattr(varlen, "has_flash", lambda device, dtype: flash)
    q, k, v, grad = row(Layout(((0, ()),)))
    got = attention.shared_prefix_attention(q, k, v, Layout(((0, ()),)), scale=SCALE)
    assert got.shape == (1, H, 0, D)
    assert [x.shape for x in torch.autograd.grad(got, (q, k, v), grad)] == [x.shape for x in (q, k, v)]


def test_a_wrong_layout_is_refused():
    q, k, v, _ = row(Layout(((3, (2,)),)))
    with pytest.raises(ValueError, match="the row holds 5 tokens, its layout 6"):
        attention.shared_prefix_attention(q, k, v, Layout(((3, (3,)),)), scale=SCALE)
    with pytest.raises(ValueError, match=r"tokens are \(5, 5\), the layout has \(2, 3\)"):
        attention.extend_attention(q, k, v, k, v, Layout(((3, (2,)),)), scale=SCALE)


def test_what_a_prefix_cannot_share_is_refused():
    attention.refuse_unshareable(dropout=0.0, sliding_window=None)
    with pytest.raises(ValueError, match=r"dropout is 0\.1"):
        attention.refuse_unshareable(dropout=0.1, sliding_window=None)
    with pytest.raises(ValueError, match="sliding window is 128"):
        attention.refuse_unshareable(dropout=0.0, sliding_window=128)


@pytest.mark.parametrize("own", [1, 4])
def test_decode_equals_the_last_row_of_causal_attention(own):
    lengths, answers = (3, 7, 5), 4
    prefix_k, prefix_v = normal(0, 3, K, 7, D), normal(1, 3, K, 7, D)
    q, own_k, own_v = normal(2, 12, H, 1, D), normal(3, 12, K, own, D), normal(4, 12, K, own, D)
    got = attention.decode_attention(q, prefix_k, prefix_v, torch.tensor(lengths), own_k, own_v, scale=SCALE)
    for i in range(12):
        n = i // answers
        k, v = (
            torch.cat([prefix[n, :, : lengths[n]], mine[i]], 1).transpose(0, 1)
            for prefix, mine in ((prefix_k, own_k), (prefix_v, own_v))
        )
        queries = torch.cat([torch.zeros(len(k) - 1, H, D, dtype=torch.float64), q[i].transpose(0, 1)])
        assert_close(got[i, :, 0], plain.causal(queries, k, v, SCALE)[-1], rtol=EXACT, atol=EXACT)


def test_decode_takes_half_precision_to_float32_scores():
    """Scores of size 50 rounded to bfloat16 would be off by up to an eighth, and shares by that factor."""
    prefix_k, prefix_v, own_k, own_v = (
        normal(i, n, K, t, 64).detach().bfloat16() for i, (n, t) in enumerate(((2, 90), (2, 90), (6, 5), (6, 5)))
    )
    q, lengths = normal(4, 6, H, 1, 64).detach().bfloat16(), torch.tensor([90, 41])
    parts = (q, prefix_k, prefix_v, own_k, own_v)
    got, exact = (
        attention.decode_attention(a, b, c, lengths, d, e, scale=2.0)
        for a, b, c, d, e in (parts, [x.double() for x in parts])
    )
    assert got.dtype == torch.bfloat16
    assert float((got.double() - exact).abs().max()) < DECODED


def test_decode_refuses_uneven_questions():
    x = torch.zeros(5, K, 1, D)
    with pytest.raises(ValueError, match="do not share 3 questions evenly"):
        attention.decode_attention(
            torch.zeros(5, H, 1, D), x[:3], x[:3], torch.ones(3, dtype=torch.int64), x, x, scale=SCALE
        )


def test_gradcheck():
    layout = Layout(((3, (2, 1)), (2, (2,))))
    q, k, v, _ = row(layout)
    assert torch.autograd.gradcheck(
        lambda *x: attention.shared_prefix_attention(*x, layout, scale=SCALE), (q, k, v), raise_exception=False
    )
    prefix, answers = split(layout)
    parts = [x[:, :, places].detach().requires_grad_() for x, places in ((q, answers), (k, answers), (v, answers))]
    parts += [x[:, :, prefix].detach().requires_grad_() for x in (k, v)]
    assert torch.autograd.gradcheck(
        lambda *x: attention.extend_attention(*x, layout, scale=SCALE), parts, raise_exception=False
    )
