"""All randomness hangs on keys: numbers, and the order in which rows are walked."""

from __future__ import annotations

from collections import Counter

import pytest

from longtake.train.keys import batch, epoch_fits, keyed


def test_a_number_depends_on_its_key_alone() -> None:
    assert keyed(3, "frames", 7, "q-1") == keyed(3, "frames", 7, "q-1") == 6121857512471066759
    keys = [("ab", "c"), ("a", "bc"), ("abc",), (1, 23), (12, 3), (3, 12), ("1", 2, 3)]
    assert len({keyed(*key) for key in keys}) == len(keys)


def test_numbers_are_even_over_their_range() -> None:
    found = [keyed("x", n) for n in range(4000)]
    assert all(0 <= number < 2**63 for number in found)
    for bit in (0, 1, 2, 31, 62):
        assert 0.46 < sum(number >> bit & 1 for number in found) / 4000 < 0.54
    assert max(Counter(number % 3 for number in found).values()) < 1450


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_epoch_meets_every_row_once(shuffle: bool) -> None:
    walk = list(batch(5, 7, 0, 28, shuffle))
    epochs = [walk[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == (4 if shuffle else 1)


@pytest.mark.parametrize("shuffle", [True, False])
def test_the_walk_does_not_depend_on_where_it_was_taken_up(shuffle: bool) -> None:
    walk = list(batch(5, 11, 0, 60, shuffle))
    for start, size in ((0, 7), (3, 20), (10, 1), (11, 30), (33, 27)):
        assert list(batch(5, 11, start, size, shuffle)) == walk[start : start + size]


def test_another_seed_is_another_order() -> None:
    assert list(batch(0, 50, 0, 50)) != list(batch(1, 50, 0, 50))
    assert list(batch(0, 50, 0, 50, shuffle=False)) == list(range(50))


@pytest.mark.parametrize(("count", "rows"), [(3, 7), (4, 8), (5, 5), (1, 3), (6, 11)])
def test_no_batch_crosses_the_border_of_an_epoch(count: int, rows: int) -> None:
    """So a step asks no question twice; what an epoch has left over is skipped, never part of a batch."""
    taken, starts = 0, []
    for _ in range(20):
        taken = epoch_fits(taken, count, rows)
        assert len(set(batch(2, rows, taken, count))) == count
        starts.append(taken)
        taken += count
    fit = rows // count
    assert starts == [epoch * rows + place * count for epoch in range(20) for place in range(fit)][:20]
