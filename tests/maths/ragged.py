"""Ragged inputs for hypothesis, and the settings that keep its tests quick and the same on every run."""

import torch
from hypothesis import settings
from hypothesis import strategies as st

from longtake.records import Layout

quick = settings(max_examples=20, deadline=None, derandomize=True, database=None)

lengths = st.lists(st.one_of(st.integers(0, 5), st.integers(30, 36)), max_size=4).map(tuple)
layouts = st.lists(st.tuples(st.integers(1, 7), lengths), min_size=1, max_size=4).map(
    lambda groups: Layout(tuple(groups))
)
leaf = st.integers(0, 6)
twig = st.tuples(st.integers(0, 5), st.lists(leaf, max_size=3).map(tuple))
branch = st.tuples(st.integers(0, 5), st.lists(leaf | twig, max_size=3).map(tuple))
trees = (
    st.lists(
        st.tuples(st.integers(0, 7), st.lists(leaf | twig | branch, max_size=3).map(tuple)), min_size=1, max_size=3
    )
    .map(lambda groups: Layout(tuple(groups)))
    .filter(lambda layout: layout.total)
)


def normal(seed, *shape):
    """Float64 normal numbers that take a gradient."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()
