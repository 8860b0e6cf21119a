"""Fewer visual tokens against plain loops, values and gradients; counts; specs that say nothing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.plain import reduce as plain
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models.reduce import NEWLINES, Reduction, joined, reduce

EXACT = 1e-12
quick = settings(max_examples=60, deadline=None, derandomize=True, database=None)
SPECS = [
    "pool:2", "pool:2,before", "pool:4:max", "pool:3:max,before", "pool:2:bilinear", "pool:3:bilinear,before,grid",
    "pool:2:bilinear,grid", "pool:1,frame", "pool:2,one_token", "slowfast:3", "slowfast:2,pool:1:bilinear,frame",
    "slowfast:3,pool:1:max,grid", "temporal+spatial", "temporal+spatial,one_token,before", "temporal+spatial,time:2",
    "time:4", "time:3,pool:2,grid,before", "merge:3", "merge:0.5,pool:2:max,frame", "merge:0.3,before",
    "merge:100,frame",
]  # fmt: skip


def inputs(frames=7, h=5, w=6, seed=0):
    """Tokens whose neighbouring frames are alike in pairs, a projector that is not linear, a newline."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(-(-frames // 2), h, w, 4, generator=generator, dtype=torch.float64)
    noise = torch.randn(frames, h, w, 4, generator=generator, dtype=torch.float64)
    z_FhwE = (base.repeat_interleave(2, 0)[:frames] + 0.3 * noise).requires_grad_()
    weight = torch.randn(4, 4, generator=generator, dtype=torch.float64).requires_grad_()
    newline_E = torch.randn(4, generator=generator, dtype=torch.float64).requires_grad_()
    return z_FhwE, weight, newline_E


@pytest.mark.parametrize(
    ("spec", "left"),
    [
        ("merge:3", {1: 1, 2: 2, 3: 3, 9: 3}), ("time:4", {1: 1, 4: 1, 5: 2, 9: 3}),
        ("merge:0.5", {1: 1, 2: 1, 3: 2, 7: 4, 8: 4}), ("merge:0.1", {1: 1, 30: 3}), ("pool:2", {1: 1, 9: 9}),
    ],
)  # fmt: skip
def test_how_many_frames_are_left(spec, left) -> None:
    how = Reduction.parse(spec)
    assert {frames: how.left(frames) for frames in left} == left


@pytest.mark.parametrize("frames", [7, 1])
@pytest.mark.parametrize("spec", SPECS)
def test_tokens_and_gradients_equal_plain_loops(spec, frames) -> None:
    how = Reduction.parse(spec)
    found = []
    for make in (reduce, plain.reduce):
        z_FhwE, weight, newline_E = inputs(frames)
        out = make(z_FhwE, how, lambda x, weight=weight: torch.tanh(x @ weight), newline_E)
        scale = torch.arange(out.numel(), dtype=torch.float64).view(out.shape).cos()
        (out * scale).sum().backward()
        found.append([out, z_FhwE.grad, weight.grad, *([newline_E.grad] if how.newline != "no_token" else [])])
    for got, want in zip(*found, strict=True):
        assert_close(got, want, rtol=EXACT, atol=EXACT)
    assert len(found[0][0]) == how.tokens(frames, 5, 6)


def test_the_side_of_the_projector_and_the_order_of_means_matter() -> None:
    """Of what is not linear: projecting a mean is not the mean of what was projected (VLM-RLAIF projects first)."""
    z_FhwE, weight, newline_E = inputs()
    after, before = (
        reduce(z_FhwE, Reduction.parse(f"temporal+spatial,{side}"), lambda x: torch.tanh(x @ weight), newline_E)
        for side in ("after", "before")
    )
    assert (after - before).abs().max() > 1e-2
    projected = torch.tanh(z_FhwE @ weight)
    assert_close(after[:7], projected.mean((1, 2)), rtol=EXACT, atol=EXACT)
    assert_close(after[7:], projected.mean(0).flatten(0, 1), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize(
    ("spec", "frames", "edge", "tokens"),
    [
        ("pool:2", 16, 24, 2304), ("pool:2", 32, 24, 4608), ("pool:4", 32, 24, 32 * 36), ("pool:2,grid", 32, 24, 4992),
        ("pool:2,frame", 32, 24, 32 * 145), ("pool:2,one_token", 32, 24, 4609), ("temporal+spatial", 50, 24, 626),
        ("pool:2:bilinear,grid", 64, 27, 64 * 14 * 15), ("slowfast:10,pool:2:bilinear", 20, 27, 2 * 196 + 18 * 49),
        ("merge:0.5,pool:2", 64, 24, 32 * 144), ("time:4,pool:2", 65, 24, 17 * 144),
    ],
)  # fmt: skip
def test_counts_are_the_papers(spec, frames, edge, tokens) -> None:
    assert Reduction.parse(spec).tokens(frames, edge, edge) == tokens


specs = st.builds(
    lambda frames, pools, slow, side, newline: ",".join([*frames, *pools, *slow, side, newline]),
    st.sampled_from([[], ["time:3"], ["merge:4"], ["merge:0.37"], ["merge:0.3333333333333333"]]),
    st.sampled_from([[], ["pool:2"], ["pool:3:bilinear"], ["pool:1:max"]]),
    st.sampled_from([[], ["slowfast:4"]]),
    st.sampled_from(["before", "after"]),
    st.sampled_from(NEWLINES),
)


@quick
@given(specs, st.integers(1, 40), st.integers(6, 9), st.integers(6, 9))
def test_the_count_is_that_of_the_tokens_and_the_spec_is_read_back(spec, frames, h, w) -> None:
    how = Reduction.parse(spec)
    assert Reduction.parse(how.spec) == how == Reduction.parse(how.spec, like=Reduction(newline="grid"))
    z_FhwE = torch.arange(frames * h * w * 2, dtype=torch.float64).view(frames, h, w, 2).sin()
    assert len(reduce(z_FhwE, how, lambda x: x, torch.ones(2, dtype=torch.float64))) == how.tokens(frames, h, w)


def test_still_stretches_are_joined_first_and_rounding_does_not_choose() -> None:
    scenes = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1, 2, 2, 3]].view(7, 1, 1, 4)
    noise = torch.randn(7, 1, 1, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise[4:6] = 0
    for scale in (0.0, 1e-3):
        shown = scenes + scale * noise
        assert joined(shown, 4) == [3, 4, 6, 7]
        assert joined(shown, 5) == [3, 4, 5, 6, 7]  # of several that are the same the first
        assert joined(shown, 1) == [7]


@quick
@given(st.integers(2, 14), st.integers(0, 1000), st.data())
def test_segments_are_those_of_plain_loops(frames, seed, data) -> None:
    """Of films that drift, where a segment's mean is not its last frame."""
    steps = torch.randn(frames, 1, 2, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    film, left = steps.cumsum(0), data.draw(st.integers(1, frames))
    assert joined(film, left) == [stop for _, stop in plain.joined([list(map(list, frame)) for frame in film], left)]


def test_what_a_spec_does_not_say_is_the_checkpoints() -> None:
    like = Reduction(stride=2, before=True, newline="grid")
    assert Reduction.parse("pool:4", like) == Reduction(stride=4, before=True, newline="grid")
    assert Reduction.parse("pool:4,after,no_token", like) == Reduction(stride=4)
    assert Reduction.parse("temporal+spatial", like) == Reduction(apart=True)
    assert Reduction.parse("slowfast:10") == Reduction(stride=2, slow=10)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("pol:2", "did you mean pool"), ("pool:2:avrage", "did you mean average"), ("pool:2,gird", "did you mean grid"),
        ("", "there is no ''"), ("pool", "whole number"), ("pool:0", "whole number"), ("pool:-1", "whole number"),
        ("pool:²", "whole number"), ("time:0.5", "whole number"), ("merge:1.5", "share"), ("merge:nan", "share"),
        ("merge:0", "share"), ("merge", "share"), ("slowfast:3:4", "whole number"), ("grid:2", "takes no number"),
        ("temporal+spatial:2", "takes no number"), ("grid,frame", "second time"), ("pool:2,pool:4", "second time"),
        ("time:2,merge:2", "both choose frames"), ("temporal+spatial,grid", "no grid"),
        ("temporal+spatial,pool:2", "no grid"), ("temporal+spatial,slowfast:4", "no grid"),
        ("pool:2;grid", "whole number"),
    ],
)  # fmt: skip
def test_specs_that_say_nothing_are_refused(spec, said) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Reduction.parse(spec)
    assert len(str(caught.value).splitlines()) <= 3


def test_what_leaves_nothing_and_newlines_that_nobody_learned_are_refused() -> None:
    with pytest.raises(UserError, match="leaves no tokens"):
        Reduction.parse("pool:7").tokens(4, 6, 6)
    with pytest.raises(UserError, match="leaves no tokens"):
        Reduction.parse("slowfast:2,pool:4").tokens(4, 6, 6)
    assert Reduction.parse("pool:7:bilinear").tokens(4, 6, 6) == 4
    z_FhwE, weight, _ = inputs()
    with pytest.raises(UserError, match="no newline"):
        reduce(z_FhwE, Reduction.parse("pool:2,grid"), lambda x: x @ weight, None)


def test_what_a_spec_leaves_out_stays_as_the_checkpoint_has_it() -> None:
    """So "time:2" never makes more tokens than there were."""
    own = Reduction.parse("pool:2:max,before,frame")
    for spec in ("time:2", "merge:0.5"):
        made = Reduction.parse(spec, own)
        assert (made.stride, made.mode, made.before, made.newline) == (2, "max", True, "frame")
        assert made.tokens(8, 6, 6) < own.tokens(8, 6, 6)
    assert Reduction.parse("pool:3", own).stride == 3
    assert Reduction.parse("temporal+spatial", own).stride == 1
