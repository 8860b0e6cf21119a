"""Seven small films by key, a store for them, and what is found in its folder."""

from collections import Counter
from functools import partial

import torch
from safetensors import safe_open
from tests.models import tiny

from longtake.runtime.features import FeatureStore, Request

SIZES = [(4, 16, 8), (2, 16, 8), (6, 8, 8), (4, 16, 8), (2, 24, 8), (8, 16, 8), (2, 8, 8)]
ALL = [f"k{number}" for number in range(len(SIZES))]


class Killed(BaseException):
    """Stands for kill -9 at this point."""


def requests(seen=None, fail=None):
    """Seven films by key; frames of key `fail` kill the run."""

    def frames(number):
        if number == fail:
            raise Killed
        if seen is not None:
            seen.append(number)
        count, width, height = SIZES[number]
        return tiny.film(number, count, width, height)

    return [
        Request(f"k{number}", count * width * height, partial(frames, number))
        for number, (count, width, height) in enumerate(SIZES)
    ]


def open_store(path, **quotas):
    return FeatureStore(path, "tower", torch.float32, **quotas)


def bits(store):
    return {key: store.get(key).level_LNE.clone() for key in ALL if key in store}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def packs(folder):
    return sorted(folder.glob("*.safetensors"))


def keys_of(path):
    with safe_open(path, framework="pt") as opened:
        return list(opened.keys())


def encodes(folder):
    """How many packs hold each key."""
    return dict(Counter(key for path in packs(folder) for key in keys_of(path)))
