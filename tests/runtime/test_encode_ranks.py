"""Frames shared out over ranks: what one rank makes of films, each frame through the tower once, no film read whole."""

from functools import cache, partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.models import tiny, tiny_llava, tiny_nvila
from tests.ranks import run
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models.llava_next_video import LlavaNextVideo
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3_vl import Qwen3VL
from longtake.models.reduce import Reduction
from longtake.parallel.axis import ALONE
from longtake.runtime.encode import Part, Request, encoded, shares, together

EXACT = 1e-12  # float64, numbers of size 1
POOLED = "pool:2:max,slowfast:2,merge:0.5,after,frame"
FAMILIES = ["qwen3_vl", "qwen2_5_vl", "llava_next_video", "llava_after", "nvila", "nvila_pools", "nvila_scaled"]
POOLS = {"nvila_pools": {"pools": [[2, 1, 1], [4, 3, 3]]}, "nvila_scaled": tiny_nvila.SCALED}


@cache
def model(family):
    words = tiny.tokenizer()
    if family == "qwen3_vl":
        return Qwen3VL(tiny.network(words).double(), words, tiny.PIXELS)
    if family == "qwen2_5_vl":
        return Qwen25VL(tiny.network_2_5(words).double(), words, tiny.PIXELS)
    if family.startswith("nvila"):
        made = tiny_nvila.model(**POOLS.get(family, {}))
        made.net.double()
        return made
    words = tiny_llava.tokenizer()
    net = tiny_llava.network(tiny_llava.config(words)).double()
    how = Reduction.parse(POOLED) if family == "llava_after" else LlavaNextVideo.learned(net.config)
    return LlavaNextVideo(net, words, tiny_llava.PIXELS, how)


def films(family):
    """Of several lengths and sizes, and a picture where there are any."""
    if family.startswith("qwen"):
        return [tiny.film(0, 6), tiny.film(1, 2), tiny.film(2, 10, 8, 8), tiny.film(3, 4)]
    if family.startswith("nvila"):
        still = tiny_nvila.picture(210, 210) if family == "nvila_scaled" else tiny_nvila.film(2, 1)[0]
        return [tiny_nvila.film(0, 8), tiny_nvila.film(1, 4), still]
    return [tiny.film(0, 5, 24, 24), tiny.film(1, 1, 48, 24)[0], tiny.film(2, 1, 30, 24)]


def requests(shown, read):
    """`read` notes which frames of which film."""

    def frames(number, start=0, stop=None):
        film = shown[number]
        places = range(1 if film.ndim == 3 else len(film))[start:stop]
        read.extend((number, place) for place in places)
        return film if film.ndim == 3 else film[start:stop]

    return [Request(f"k{n}", film[..., 0].size, partial(frames, n), film.shape) for n, film in enumerate(shown)]


@torch.no_grad()
def shared_out(world, family, shown):
    read = []
    made, through = encoded(model(family), requests(shown, read), world)
    return [one.level_LNE for one in made], through, read


def plain(family, shown):
    with torch.no_grad():
        return [one.level_LNE for one in model(family).encode(shown)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_ranks_make_what_one_makes(family, size) -> None:
    shown = films(family)
    want, found = plain(family, shown), run(size, shared_out, family, shown)
    for made, _, _ in found:
        for got, one, first in zip(made, want, found[0][0], strict=True):
            assert_close(got, one, rtol=EXACT, atol=EXACT)
            assert torch.equal(got, first)
    all_frames = [(n, k) for n, film in enumerate(shown) for k in range(len(film) if film.ndim == 4 else 1)]
    assert [frame for _, _, read in found for frame in read] == all_frames  # each once, in order
    assert [through for _, through, _ in found] == [len(read) for _, _, read in found]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next_video", "nvila"])
def test_one_frame_on_four_ranks(family) -> None:
    shown = [films(family)[0][: model(family).temporal_patch]]
    (want,), found = plain(family, shown), run(4, shared_out, family, shown)
    assert sorted(through for _, through, _ in found) == [0, 0, 0, len(shown[0])]
    for (got,), _, _ in found:
        assert_close(got, want, rtol=EXACT, atol=EXACT)


def taught(world, family, shown):
    """Every rank's loss reads a slice of the features, as with the sequence split; the last rank's reads nothing."""
    net = model(family).net
    net.zero_grad()
    made = torch.cat([one.level_LNE for one in encoded(model(family), requests(shown, []), world)[0]], 1)
    own = np.array_split(np.arange(made.shape[1]), max(1, world.size - 1))
    mine = torch.from_numpy(own[world.index] if world.index < len(own) else own[0][:0])
    weight_LNE = torch.linspace(-1, 1, made.numel(), dtype=torch.float64).view(made.shape)
    (made.square() * weight_LNE)[:, mine].sum().backward()
    return {name: x.grad for name, x in model(family).tower.named_parameters() if x.grad is not None}


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_next_video", "llava_after", "nvila_pools"])
def test_gradients_of_the_tower_add_up_over_ranks(family) -> None:
    shown = films(family)
    want = taught(ALONE, family, shown)
    assert len(want) > 20
    for size in (2, 3):
        check_sum(run(size, taught, family, shown), want)


def check_sum(found, want):
    """To the size of the largest: some, as those of keys' biases, are sums that vanish."""
    size = max(float(whole.abs().max()) for whole in want.values())
    for name, whole in want.items():
        got = sum(own[name] for own in found if name in own)
        assert_close(got, whole, rtol=EXACT, atol=EXACT * size, msg=partial("{}: {}".format, name))


def test_a_rank_with_nothing_takes_part_in_the_backward() -> None:
    shown = [films("qwen3_vl")[0][:2]]
    want = taught(ALONE, "qwen3_vl", shown)
    found = run(3, taught, "qwen3_vl", shown)
    assert [len(own) for own in found] == [0, len(want), 0]
    check_sum(found, want)


def unread(world, family, shown):
    asked = requests(shown, [])

    def gone(*_):
        raise UserError("the film is gone", where="a.mp4", why="who knows", fix="bring it back")

    if world.index == 1:
        asked = [Request(one.key, one.pixels, gone, one.shape) for one in asked]
    try:
        encoded(model(family), asked, world)
    except UserError as error:
        return str(error), error.where
    return None


def test_frames_that_one_rank_cannot_read_end_all() -> None:
    said = run(3, unread, "qwen3_vl", films("qwen3_vl"))
    assert said == [("the film is gone\n  where: a.mp4\n  why: who knows\n  do: bring it back", "a.mp4")] * 3


def test_together_gives_what_every_rank_found() -> None:
    assert together(ALONE, lambda: 7) == [7]
    assert run(3, lambda world: together(world, lambda: world.index)) == [[0, 1, 2]] * 3


def asked(*films):
    """Of (frames, pixels of a frame)."""
    return [Request(f"k{n}", f * p, lambda *_: None, (f, p, 1, 3)) for n, (f, p) in enumerate(films)]


def test_shares_are_cut_between_temporal_patches() -> None:
    assert shares(asked((6, 8), (4, 8)), 2, 2) == [[Part(0, 0, 4)], [Part(0, 4, 6), Part(1, 0, 4)]]
    assert shares(asked((2, 8)), 2, 4) == [[], [], [Part(0, 0, 2)], []]
    assert shares(asked((2, 90), (8, 10)), 2, 2) == [[Part(0, 0, 2)], [Part(1, 0, 8)]]  # by pixels
    still = Request("k", 64, lambda *_: None, (8, 8, 3))
    assert shares([still], 4, 2) == [[], [Part(0, 0, 1)]]


@settings(derandomize=True, database=None, deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 50)), min_size=1, max_size=6),
    st.integers(1, 4),
    st.integers(1, 9),
)
def test_every_frame_is_in_one_share(sizes, patch, ranks) -> None:
    films = [(count * patch, pixels) for count, pixels in sizes]
    found = shares(asked(*films), patch, ranks)
    assert len(found) == ranks
    frames = [(part.film, k) for own in found for part in own for k in range(part.start, part.stop)]
    assert frames == [(n, k) for n, (count, _) in enumerate(films) for k in range(count)]
    assert all(part.start % patch == part.stop % patch == 0 for own in found for part in own)
    assert all(len({part.film for part in own}) == len(own) for own in found)
    loads = [sum((part.stop - part.start) * films[part.film][1] for part in own) for own in found]
    even, least = sum(count * pixels for count, pixels in films) / ranks, max(patch * pixels for _, pixels in films)
    assert max(loads) < even + least
    if len({pixels for _, pixels in films}) == 1:
        assert max(loads) - min(loads) <= least
