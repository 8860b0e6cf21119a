"""A run's films over ranks: decoded once, encoded once and kept once in the world, and agreed on whatever happens."""

import time
from collections import Counter
from functools import cache

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from tests.data.films import render
from tests.models import tiny_llava
from tests.ranks import run
from tests.runtime.ranked import (
    EXACT,
    LENGTHS,
    POLICY,
    decode,
    features,
    films_of,
    ignore,
    look,
    looks_of,
    model,
    one_rank,
    rendered,
    same,
)
from torch.testing import assert_close

from longtake.data import tierfile
from longtake.data.cache import FrameTier, Quarantine
from longtake.errors import UserError
from longtake.log import read_jsonl
from longtake.models.llava_next_video import LlavaNextVideo
from longtake.parallel.axis import ALONE
from longtake.parallel.ranks import Ranks
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look


@pytest.fixture
def folder(tmp_path):
    return rendered(tmp_path)


def decoded(world, folder):
    films = films_of(Ranks(world), folder)
    told = []
    films.budget = 10_000  # so that a film is opened before it is decoded
    films.decode({str(path): [POLICY] for path in sorted(folder.glob("*.mp4"))}, 2, lambda *at: told.append(at))
    usable = [films.usable(Question("q", str(folder / name), "?")) for name in ("0.mp4", "bad.mp4")]
    receipts = [films.receipt(look(folder, number)) for number in range(len(LENGTHS))]
    return usable, receipts, films.quarantine.films(), films.used, told[-1]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_film_is_decoded_by_one_rank_and_known_to_all(folder, size) -> None:
    found = run(size, decoded, folder)
    assert set(Counter(FrameTier(folder / "tier").decodes().values())) == {1}
    opened = [row["path"] for row in read_jsonl(folder / "tier" / "films.jsonl")]
    assert len(read_jsonl(folder / "tier" / "decodes.jsonl")) == len(set(opened)) == len(opened) == len(LENGTHS)
    lines = read_jsonl(folder / "quarantine.jsonl")
    assert [(line["path"], "empty" in line["reason"]) for line in lines] == [(str(folder / "bad.mp4"), True)]
    for usable, receipts, failed, used, told in found:
        assert (usable, used, told) == ([True, False], len(LENGTHS), (5, 5))
        assert [film.path for film in failed] == [line["path"] for line in lines]
        assert receipts == found[0][1]


def late(world, folder):
    """The second rank begins when the first is through."""
    films, done = films_of(Ranks(world), folder), folder / "done"
    fill = films.tier.fill

    def filled(*given):
        while world.index and not done.exists():
            time.sleep(0.01)
        fill(*given)
        done.touch()

    films.tier.fill = filled
    decode(films, folder)
    return [films.receipt(look(folder, number)).content for number in range(len(LENGTHS))]


def test_what_a_slower_rank_opened_is_not_opened_again(folder) -> None:
    first, second = run(2, late, folder)
    assert first == second
    assert sorted(row["film"]["content"] for row in read_jsonl(folder / "tier" / "films.jsonl")) == sorted(first)


def mended(world, folder):
    films = films_of(Ranks(world), folder)
    wants = {str(folder / name): [POLICY] for name in ("bad.mp4", "0.mp4")}
    films.decode(wants, 0, ignore)
    before = len(films.quarantine)
    world.wait()
    if world.leads:
        render(folder / "bad.mp4", 5, size=(32, 32))
    world.wait()
    films.decode(dict(reversed(wants.items())), 0, ignore)  # now the other rank's
    return before, len(films.quarantine)


def test_a_film_that_was_mended_is_released_on_all_ranks(folder) -> None:
    assert run(2, mended, folder) == [(1, 0), (1, 0)]
    assert read_jsonl(folder / "quarantine.jsonl") == []


def full(world, folder):
    films = films_of(Ranks(world), folder)

    def fill(*_):
        raise UserError("the disk is full", where="tier")

    if world.index == 1:
        films.tier.fill = fill
    with pytest.raises(UserError, match="the disk is full\n  where: tier"):
        decode(films, folder)
    return len(films.tier.decodes())


def test_a_disk_that_is_full_for_one_rank_ends_all(folder) -> None:
    assert run(2, full, folder) == [2, 2]  # what the first had to do is there


def encoded(world, folder, quotas):
    films = films_of(Ranks(world, sequence=world), folder, **quotas)
    read, words, written = [], [], []
    pixels, gather = tierfile.pixels, dist.all_gather_object
    tierfile.pixels = lambda path, part, indices: read.append(len(indices)) or pixels(path, part, indices)
    dist.all_gather_object = lambda *given, **named: words.append(1) or gather(*given, **named)
    if quotas:
        write = films.store.disk.write
        films.store.disk.write = lambda *given: written.append(1) or write(*given)
    decode(films, folder)
    looks = looks_of(folder)
    first = films.encode(looks, ignore)
    made = features(films, looks)
    words.clear()
    told = first, films.encode(looks, ignore), len(words), len(written)
    return made, films.store.frames, read, told, films.store.counts


@pytest.mark.parametrize("quotas", [{}, {"disk": 1.0}])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_every_frame_goes_through_the_tower_once(folder, size, quotas) -> None:
    (want, frames), found = one_rank(folder), run(size, encoded, folder, quotas)
    assert frames == 8 + 8 + 4 + 8 + 8 + 2  # three frames and one that is repeated; one frame likewise
    for rank, (made, through, own, told, counts) in enumerate(found):
        same(made, want)
        assert sum(own) == through  # nothing was read but what was encoded
        assert quotas or max(own) <= 4, "of eight frames"
        assert told == ((6, 6), (6, 0), 1, int(rank == 0 and bool(quotas)))  # who has all asks once
        assert (counts.made, counts.remade) == (6, 0)
    shares = [through for _, through, _, _, _ in found]
    assert sum(shares) == frames
    if quotas:  # in one call; in memory every set alone, each with its own shares
        assert max(shares) <= frames / size + 2
        (pack,) = (folder / "features").rglob("*.safetensors")
        assert (folder / "features" / "tower" / pack.name).is_file()


def trained(world, folder):
    films = films_of(Ranks(world, sequence=world), folder, store=False)
    decode(films, folder)
    assert films.encode(looks_of(folder), ignore) == (0, 0)
    model().net.zero_grad()
    made = torch.cat(features(films, looks_of(folder)), 1)
    made[:, world.index :: world.size].square().sum().backward()
    return made.detach(), [x.grad for x in model().tower.parameters()]


def test_a_tower_in_training_is_shared_by_the_sequence(folder) -> None:
    want, gradients = trained(ALONE, folder)
    found = run(3, trained, folder)
    largest = max(float(g.abs().max()) for g in gradients)
    for made, _ in found:
        assert_close(made, want, rtol=EXACT, atol=EXACT)
    for number, gradient in enumerate(gradients):
        got = sum(own[number] for _, own in found)
        assert_close(got, gradient, rtol=EXACT, atol=EXACT * largest)


def test_no_film_is_no_work_for_ranks(folder) -> None:
    def nothing(world):
        films = films_of(Ranks(world, sequence=world), folder)
        blind = look(folder, 0, "no_video")
        return films.encode([blind], ignore), films.features([]), films.prompt(blind).features

    assert run(2, nothing) == [((0, 0), [], None)] * 2


@cache
def llava():
    words = tiny_llava.tokenizer()
    net = tiny_llava.network(tiny_llava.config(words)).double()
    return LlavaNextVideo(net, words, tiny_llava.PIXELS, LlavaNextVideo.learned(net.config))


def pictured(world, folder):
    store = FeatureStore(folder / "features", "tower", torch.float64)
    films = Films(llava(), FrameTier(folder / "tier"), store, Quarantine(folder), Ranks(world, sequence=world))
    policies = [FramePolicy(frames=1), FramePolicy(seconds=(0.0,), image=True)]
    looks = [Look(Question("q", str(folder / "a.png"), "What?"), policy) for policy in policies]
    films.encode(looks, ignore)
    return features(films, looks), films.store.frames


def test_a_picture_is_one_ranks(folder) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (24, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    with torch.no_grad():
        want = [one.level_LNE for one in llava().encode([picture[None], picture])]
    found = run(2, pictured, folder)
    assert [frames for _, frames in found] == [1, 1]  # the picture, and the film of one frame
    for made, _ in found:
        same(made, want)
