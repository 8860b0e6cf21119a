"""Randomness and data order from keys, never from generator state: resume, chunks and batches cannot change a run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np


def keyed(*key: object) -> int:
    """A 63-bit number that depends on the key alone. Example: keyed(seed, step, question.id, answer)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> tuple[int, ...]:
    rng = np.random.Generator(np.random.Philox(key=keyed(seed, "order", epoch)))
    return tuple(int(i) for i in rng.permutation(count))


def epoch_fits(taken: int, count: int, rows: int) -> int:
    """`taken`, or the start of the next epoch if `count` rows from there would cross its border.

    Rows of one batch are then all different, as long as there are `count` of them.
    """
    return taken if taken % rows + count <= rows else (taken // rows + 1) * rows


def batch(seed: int, count: int, start: int, size: int, shuffle: bool = True) -> Iterator[int]:
    """Row numbers start … start + size - 1 of an endless walk over `count` rows, each epoch in an order of its own."""
    for place in range(start, start + size):
        epoch, item = divmod(place, count)
        yield _order(seed, epoch, count)[item] if shuffle else item
