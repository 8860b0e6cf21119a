"""Shared-prefix attention against one row per answer: value and gradient in float64."""

import pytest
import torch
from hypothesis import given
from tests.maths.ragged import layouts, normal, quick, trees
from tests.plain import attention as plain
from torch.testing import assert_close

from longtake.maths import attention, kernels, spans, varlen
from longtake.records import Layout

EXACT = 1e-12
HALF = 2e-2  # bfloat16 against float64, whose numbers are of size 1
SCALE = 0.3
H, K, D = 4, 2, 6


def row(layout, seed=0):
    """q, k, v of a packed row and the gradient of its output."""
    q, k, v, grad = (normal(seed + i, 1, heads, layout.total, D) for i, heads in enumerate((H, K, K, H)))
    return q, k, v, grad.detach()


def compare(got, want, leaves, grad):
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    sides = [torch.autograd.grad(x, leaves, grad, retain_graph=True) for x in (got, want)]
    for a, b in zip(*sides, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)


@quick
@given(layouts | trees)
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
    """Places of inner segments and of answers in the row."""
    found = plain.paths(layout)
    return [
        [place for is_answer, own, _ in found if is_answer == answers for place in own] for answers in (False, True)
    ]


@quick
@given(layouts | trees)
def test_extending_kept_prefixes_equals_the_row(layout):
    q, k, v, grad = row(layout)
    prefix, answers = split(layout)
    whole = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)[:, :, answers]
    own = (q[:, :, answers], k[:, :, answers], v[:, :, answers])
    got = attention.extend_attention(*own, k[:, :, prefix], v[:, :, prefix], layout, scale=SCALE)
    compare(got, whole, (q, k, v), grad[:, :, answers])


DEEP = Layout(  # films of one and two questions (one of no tokens, one without answers), some of them answers' parents
    ((9, ((4, (3, 5)), (2, ((2, (2,)), 4)), 6, (0, (2, 1)), (3, ()))), (5, (7,)), (40, ((33, (2, 31)),)))
)


@pytest.mark.parametrize("long", [1, 30, 256])
def test_a_deep_tree(monkeypatch, long):
    """Spans of `long` tokens and more go alone."""
    monkeypatch.setattr(varlen, "LONG", long)
    spans.plan_row.cache_clear()
    q, k, v, grad = row(DEEP)
    want = plain.shared_prefix(q, k, v, DEEP, SCALE)
    compare(attention.shared_prefix_attention(q, k, v, DEEP, scale=SCALE), want, (q, k, v), grad)
    prefix, answers = split(DEEP)
    own, kept = [x[:, :, answers] for x in (q, k, v)], [x[:, :, prefix] for x in (k, v)]
    got = attention.extend_attention(*own, *kept, DEEP, scale=SCALE)
    compare(got, want[:, :, answers], (q, k, v), grad[:, :, answers])
    spans.plan_row.cache_clear()


@quick
@given(layouts | trees)
def test_ends_equal_those_of_the_row(layout):
    q, k, v, grad = row(layout)
    places = [place for is_answer, own, _ in plain.paths(layout) for place in (own if is_answer else own[-1:])]
    whole = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    got = attention.ends_attention(q[:, :, places], k, v, layout, scale=SCALE)
    compare(got, whole[:, :, places], (q, k, v), grad[:, :, places])


@quick
@given(layouts | trees)
def test_gradients_of_kept_prefixes_add_up_in_buffers(layout):
    q, k, v, grad = row(layout)
    prefix, answers = split(layout)
    own = [x[:, :, answers] for x in (q, k, v)]
    kept = [x[:, :, prefix].detach().requires_grad_() for x in (k, v)]
    want = attention.extend_attention(*own, *kept, layout, scale=SCALE)
    buffers = [normal(seed, len(prefix), K, D).detach() for seed in (7, 8)]
    into = tuple(x.clone() for x in buffers)
    got = attention.extend_attention(*own, *kept, layout, scale=SCALE, into=into)
    inner = torch.autograd.grad(want, kept, grad[:, :, answers], retain_graph=True)
    none = torch.autograd.grad(got, kept, grad[:, :, answers], retain_graph=True, allow_unused=True)
    assert none == (None, None)
    for before, after, share in zip(buffers, into, inner, strict=True):
        assert_close(after - before, share[0].transpose(0, 1), rtol=EXACT, atol=EXACT)
    compare(got, want, (q, k, v), grad[:, :, answers])


def test_buffers_fill_although_the_answers_learn_nothing():
    layout = Layout(((4, (3, 2)),))
    q, k, v, grad = (x.detach() for x in row(layout))
    own, kept = [x[:, :, 4:] for x in (q, k, v)], [x[:, :, :4].requires_grad_() for x in (k, v)]
    want = torch.autograd.grad(attention.extend_attention(*own, *kept, layout, scale=SCALE), kept, grad[:, :, 4:])
    into = (torch.zeros(4, K, D, dtype=torch.float64), torch.zeros(4, K, D, dtype=torch.float64))
    kept = [x.detach() for x in kept]
    got = attention.extend_attention(*own, *kept, layout, scale=SCALE, into=into)
    assert got.requires_grad
    got.backward(grad[:, :, 4:])
    for total, share in zip(into, want, strict=True):
        assert_close(total, share[0].transpose(0, 1), rtol=EXACT, atol=EXACT)
    with torch.no_grad():
        assert not attention.extend_attention(*own, *kept, layout, scale=SCALE, into=into).requires_grad


def test_a_forward_that_was_kept_is_not_computed_again(monkeypatch):
    q, k, v, grad = row(DEEP)
    want = attention.shared_prefix_attention(q, k, v, DEEP, scale=SCALE)
    out, known = attention.shared_prefix_forward(q, k, v, DEEP, scale=SCALE)
    assert not out.requires_grad
    assert [x.shape for x in known] == [(DEEP.total, H, D), (DEEP.total, H)]
    calls, forward = [], varlen.forward
    monkeypatch.setattr(varlen, "forward", lambda *a: calls.append(a) or forward(*a))
    got = attention.shared_prefix_attention(q, k, v, DEEP, scale=SCALE, known=known)
    assert not calls
    assert_close(got, out, rtol=0, atol=0)
    compare(got, want, (q, k, v), grad)


def test_a_broadcast_gradient_and_strided_inputs():
    """`out.sum().backward()` gives a gradient of no strides; heads may lie behind one another or not."""
    layout = Layout(((5, (2, 3)),))
    q, k, v, _ = row(layout)
    odd = [x.detach().mT.contiguous().mT.requires_grad_() for x in (q, k, v)]
    sides = []
    for leaves in ((q, k, v), odd):
        out = attention.shared_prefix_attention(*leaves, layout, scale=SCALE)
        sides.append(torch.autograd.grad(out.sum(), leaves))
    want = torch.autograd.grad(plain.shared_prefix(q, k, v, layout, SCALE).sum(), (q, k, v))
    for got in sides:
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, rtol=EXACT, atol=EXACT)


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
    with pytest.raises(ValueError, match="the row holds 5 tokens, its layout 3"):
        attention.ends_attention(q, k, v, Layout(((3, (2,)),)), scale=SCALE)
    with pytest.raises(ValueError, match=r"tokens are \(5, 5\), the layout has \(2, 3\)"):
        attention.extend_attention(q, k, v, k, v, Layout(((3, (2,)),)), scale=SCALE)


def test_what_a_prefix_cannot_share_is_refused():
    attention.refuse_unshareable(dropout=0.0, sliding_window=None)
    with pytest.raises(ValueError, match=r"dropout is 0\.1"):
        attention.refuse_unshareable(dropout=0.1, sliding_window=None)
    with pytest.raises(ValueError, match="sliding window is 128"):
        attention.refuse_unshareable(dropout=0.0, sliding_window=128)


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
