"""Four small films and one that is none, and a run's films over them for every rank."""

from dataclasses import replace
from functools import cache

import torch
from tests.data.films import render
from tests.models import tiny
from torch.testing import assert_close

from longtake.data.cache import FrameTier, Quarantine
from longtake.models.qwen3_vl import Qwen3VL
from longtake.parallel.ranks import Ranks
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look

EXACT = 1e-12  # float64, numbers of size 1
POLICY = FramePolicy(frames=8, max_pixels=64 * 64)
LENGTHS = [24, 12, 3, 9]  # the third has fewer frames than are asked for


@cache
def model():
    words = tiny.tokenizer()
    return Qwen3VL(tiny.network(words).double(), words, replace(tiny.PIXELS, longest_edge=64**3))


def rendered(tmp_path):
    for number, frames in enumerate(LENGTHS):
        render(tmp_path / f"{number}.mp4", frames, size=(32, 32))
    (tmp_path / "bad.mp4").write_bytes(b"")
    return tmp_path


def films_of(ranks, folder, store=True, tier="tier", **quotas):
    features = folder / "features" if "disk" in quotas else None
    kept = FeatureStore(features, "tower", torch.float64, **quotas) if store else None
    return Films(model(), FrameTier(folder / tier), kept, Quarantine(folder), ranks)


def look(folder, number, control=""):
    return Look(Question(f"q{number}{control}", str(folder / f"{number}.mp4"), "Which cup?"), POLICY, control)


def looks_of(folder):
    looks = [look(folder, number) for number in range(len(LENGTHS))]
    return [*looks, look(folder, 0, "shuffled"), look(folder, 1, "one_frame"), looks[0]]


def decode(films, folder):
    wants = {str(folder / f"{number}.mp4"): [POLICY, replace(POLICY, frames=1)] for number in range(len(LENGTHS))}
    films.decode(wants, 0, ignore)


def ignore(*_):
    pass


def features(films, looks):
    handles = [films.prompt(look).features for look in looks]
    return [one.level_LNE for one in films.features(handles)]


def one_rank(folder):
    """What a run without other ranks makes, in a tier of its own."""
    films = films_of(Ranks(), folder, tier="alone")
    decode(films, folder)
    films.encode(looks_of(folder), ignore)
    return features(films, looks_of(folder)), films.store.frames


def same(found, want):
    for got, one in zip(found, want, strict=True):
        assert_close(got, one, rtol=EXACT, atol=EXACT)
