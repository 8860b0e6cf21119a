"""Tokens over ranks: none is lost, none is there twice, and attention cut so is attention."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import normal, quick, trees
from torch.testing import assert_close

from longtake.maths import attention
from longtake.maths.share import Share
from longtake.records import Layout

EXACT = 1e-12
SCALE = 0.3
D = 6


def test_ten_thousand_layouts_have_every_token_on_one_rank() -> None:
    random = np.random.default_rng(0)
    for _ in range(10_000):
        total, ranks = int(random.integers(1, 4000)), int(random.integers(1, 65))
        shares = [Share(total, rank, ranks) for rank in range(ranks)]
        row = torch.arange(total)
        cut = [share.cut(row) for share in shares]
        assert torch.equal(torch.cat(cut).sort().values, row)
        assert [len(own) for own in cut] == shares[0].counts
        assert max(shares[0].counts) - min(shares[0].counts) <= 2
        assert torch.equal(shares[0].part(row), torch.cat(cut))
        assert torch.equal(shares[-1].join(torch.cat(cut)), row)
        for own in cut:
            assert all(a < b for a, b in pairwise(own.tolist()))


@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_causal_work_is_alike(ranks: int) -> None:
    work = [
        sum(place + 1 for start, stop in Share(8000, r, ranks).own for place in range(start, stop))
        for r in range(ranks)
    ]
    assert max(work) <= 1.001 * min(work)


def test_held_is_the_place_among_ones_own() -> None:
    for rank in range(3):
        share = Share(20, rank, 3)
        own = share.cut(torch.arange(20)).tolist()
        assert [share.held(place) for place in range(20)] == [
            own.index(place) if place in own else None for place in range(20)
        ]


def stems(layouts):
    return layouts.map(lambda layout: layout.stem).filter(lambda stem: stem.total > 0)


@quick
@given(stems(trees), st.integers(1, 5), st.sampled_from([(4, 2), (3, 1), (5, 5), (7, 1)]))
def test_shares_of_a_row_are_the_row(layout: Layout, ranks: int, heads: tuple[int, int]) -> None:
    q, k, v, grad = (normal(i, 1, n, layout.total, D) for i, n in enumerate((*heads, heads[1], heads[0])))
    want = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    parts = []
    for rank in range(ranks):
        share = Share(layout.total, rank, ranks)
        own = [share.cut(x, 2) for x in (q, k, v)]
        part, known = attention.share_attention(*own, (k, v), layout, share.own, scale=SCALE)
        again, _ = attention.share_attention(*own, (k, v), layout, share.own, scale=SCALE, known=known)
        assert torch.equal(part, again)
        parts.append(part if rank % 2 else again)
    whole = Share(layout.total, 0, ranks)
    got = whole.join(torch.cat([part[0].transpose(0, 1) for part in parts])).transpose(0, 1)[None]
    assert_close(got, want, rtol=EXACT, atol=EXACT)
    sides = [torch.autograd.grad(x, (q, k, v), grad.detach()) for x in (got, want)]
    for a, b in zip(*sides, strict=True):
        assert_close(a, b, rtol=EXACT, atol=EXACT)


@quick
@given(stems(trees), st.integers(1, 4))
def test_some_ends_of_a_row_are_the_rows(layout: Layout, every: int) -> None:
    segments = [number for number, s in enumerate(layout.segments) if s.length]
    q, k, v = (normal(i, 1, n, layout.total, D) for i, n in enumerate((4, 2, 2)))
    want = attention.shared_prefix_attention(q, k, v, layout, scale=SCALE)
    for mine in (tuple(segments[::every]), tuple(segments[1::every])):
        place = [layout.segments[n].start + layout.segments[n].length - 1 for n in mine]
        got = attention.ends_attention(q[:, :, place], k, v, layout, scale=SCALE, mine=mine)
        assert_close(got, want[:, :, place], rtol=EXACT, atol=EXACT)
        if not mine:
            continue
        grad = normal(7, *got.shape).detach()
        sides = [torch.autograd.grad(x, (q, k, v), grad, retain_graph=True) for x in (got, want[:, :, place])]
        for a, b in zip(*sides, strict=True):
            assert_close(a, b, rtol=EXACT, atol=EXACT)
