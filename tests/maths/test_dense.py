"""What cuDNN's attention op would be given and when it is taken, with a stand-in: no test here has a GPU."""

import pytest
import torch
from tests.maths.ragged import normal
from torch.testing import assert_close

from longtake.maths import dense, varlen

EXACT = 1e-12
SCALE = 0.3
H, K, D = 4, 2, 8


class Cudnn:
    """Stands in for aten with cuDNN's ops, on the CPU; `spoil` changes what they give."""

    def __init__(self, spoil=lambda *x: x):
        self.spoil, self.lengths = spoil, []

    def _scaled_dot_product_cudnn_attention(self, q, k, v, bias, log_sum_exp, dropout, causal, debug, *, scale):
        assert (bias, log_sum_exp, dropout, causal, debug) == (None, True, 0.0, True, False)
        assert one_layout(q, k, v)
        self.lengths.append(q.shape[2])
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out, lse = op(q, k, v, 0.0, True, scale=scale)
        return (*self.spoil(out, lse[..., None]), None, None, q.shape[2], k.shape[2], None, None, None)

    def _scaled_dot_product_cudnn_attention_backward(self, *given, scale):
        grad, q, k, v, out, lse, seed, offset, bias, q_ends, k_ends, most_q, most_k, dropout, causal = given
        assert (bias, q_ends, k_ends, dropout, causal) == (None, None, None, 0.0, True)
        assert (most_q, most_k, lse.shape) == (q.shape[2], k.shape[2], (*q.shape[:3], 1))
        assert (seed.dtype, offset.dtype) == (torch.int64, torch.int64)
        assert one_layout(grad, q, k, v, out)
        assert lse.is_contiguous()
        op = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return self.spoil(*op(grad, q, k, v, out, lse[..., 0], 0.0, True, scale=scale))


def one_layout(*tensors):
    return all(x.transpose(1, 2).is_contiguous() for x in tensors)


@pytest.fixture
def hopper(monkeypatch):
    """A device on which cuDNN's op may be taken, from 20 tokens on."""
    monkeypatch.setattr(dense, "aten", Cudnn())
    monkeypatch.setattr(dense, "LONG", 20)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: True)
    dense._right.cache_clear()
    yield monkeypatch
    dense._right.cache_clear()


def queries(length=20, width=D, dtype=torch.bfloat16):
    return torch.zeros(length, H, width, dtype=dtype)


def test_taken_where_the_trial_succeeds(hopper):
    assert dense.takes(queries(), K)
    assert not dense.takes(queries(19), K)
    assert not dense.takes(queries(width=12), K)
    assert not dense.takes(queries(width=136), K)
    assert not dense.takes(queries(dtype=torch.float32), K)
    assert dense.aten.lengths == [dense.TRIAL]  # once


def test_not_taken_on_older_devices_or_where_turned_off(hopper):
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert not dense.takes(queries(), K)
    hopper.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    assert dense.takes(queries(), K)
    hopper.setattr(torch.backends.cuda, "cudnn_sdp_enabled", lambda: False)
    assert not dense.takes(queries(), K)


def wrong(error):
    def spoil(*x):
        raise error

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        wrong(RuntimeError("no execution plan")),
        wrong(TypeError("no such argument")),
        lambda *x: (x[0], x[1] * 1.4427) if len(x) == 2 else x,  # log-sum-exp in base 2
        lambda *x: (x[0] * 1.05, x[1]) if len(x) == 2 else x,
        lambda *x: (x[0] * 1.05, *x[1:]) if len(x) == 3 else x,  # dQ
        lambda *x: (x[0], x[2], x[1]) if len(x) == 3 else x,  # dK and dV exchanged
        lambda *x: (x[0], x[1] * torch.nan, *x[2:]),
    ],
)
def test_not_taken_where_the_trial_fails(hopper, spoil):
    hopper.setattr(dense, "aten", Cudnn(spoil))
    assert not dense.takes(queries(), K)


def test_not_taken_where_the_backward_takes_a_log_sum_exp_of_its_own(hopper):
    class Own(Cudnn):
        def _scaled_dot_product_cudnn_attention_backward(self, grad, q, k, v, out, lse, *other, scale):
            _, own = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True, scale=scale)
            return super()._scaled_dot_product_cudnn_attention_backward(
                grad, q, k, v, out, own[..., None].contiguous(), *other, scale=scale
            )

    hopper.setattr(dense, "aten", Own())
    assert not dense.takes(queries(), K)


def test_one_long_span_goes_there_and_gives_the_same(hopper):
    """A prefix of 30 tokens and two answers; the prefix is long enough."""
    spans = [(0, 30, 0, 30), (30, 5, 30, 5), (35, 4, 35, 4)]
    q, k, v, grad = (normal(i, 39, heads, D).detach() for i, heads in enumerate((H, K, K, H)))
    out, lse = normal(5, 39, H, D).detach(), normal(6, 39, H).detach() + 5
    results = []
    for ragged in (False, True):
        calls = varlen.plan(spans, causal=True, ragged=ragged, device=torch.device("cpu"))
        long = [call for call in calls if call.query.longest == 30]
        assert [call.query.spans for call in long] == ([1] if ragged else [3])
        hopper.setattr(varlen, "takes_ragged", lambda device, dtype, ragged=ragged: ragged)
        hopper.setattr(dense, "takes", lambda q_THD, kv_heads: len(q_THD) == 30)
        made = varlen.forward(q, k, v, long[0], SCALE), varlen.backward(grad, q, k, v, out, lse, long[0], SCALE)
        results.append([x[:30] for pair in made for x in pair])
    assert dense.aten.lengths == [30]
    for got, want in zip(*results, strict=True):
        assert_close(got, want, rtol=EXACT, atol=EXACT)
