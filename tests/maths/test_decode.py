"""Decoding one token on shared prefixes against one softmax per answer, written out."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.maths.ragged import normal, quick
from torch.testing import assert_close

from longtake.maths.decode import LOW, Level, Readers, beyond, decode_attention

EXACT = 1e-12
HALF = 2e-2  # bfloat16 against float64, whose numbers are of size 1
SCALE = 0.3
H, K, D = 4, 2, 6
HERE = torch.device("cpu")

counts = st.lists(st.integers(1, 4), min_size=1, max_size=4)  # answers on each prefix


def plain(q, prefixes, own_k, own_v):
    """Every answer by itself; `prefixes`: of every answer its list of (k, v), each [K, P, D]."""
    rows = []
    for answer, parts in enumerate(prefixes):
        for head in range(H):
            side = head // (H // K)
            k = torch.cat([part[0][side] for part in parts] + [own_k[answer, side]])
            v = torch.cat([part[1][side] for part in parts] + [own_v[answer, side]])
            rows.append((k @ q[answer, head, 0] * SCALE).softmax(0) @ v)
    return torch.stack(rows).view(len(prefixes), H, 1, D)


def new(answers, tokens, seed=0):
    """q, own keys and own values."""
    return (
        normal(seed, answers, H, 1, D).detach(),
        normal(seed + 1, answers, K, tokens, D).detach(),
        normal(seed + 2, answers, K, tokens, D).detach(),
    )


def level(lengths, owners, seed=10, filling=0.0):
    """A level of prefixes of these lengths, and what every answer reads of it."""
    each = [
        (normal(seed + 2 * m, K, n, D).detach(), normal(seed + 2 * m + 1, K, n, D).detach())
        for m, n in enumerate(lengths)
    ]
    k, v = (torch.full((len(lengths), K, max(lengths), D), filling, dtype=torch.float64) for _ in range(2))
    for m, (own_k, own_v) in enumerate(each):
        k[m, :, : lengths[m]], v[m, :, : lengths[m]] = own_k, own_v
    return Level(k, v, beyond(lengths, HERE), Readers.of(owners, HERE)), [each[m] for m in owners]


def owned(answers_M):
    return [m for m, count in enumerate(answers_M) for _ in range(count)]


@quick
@given(counts, st.data())
def test_one_level(answers_M, data):
    """Even and uneven numbers of answers, prefixes of one length and of several."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=len(answers_M), max_size=len(answers_M)))
    owners = owned(answers_M)
    made, read = level(lengths, owners)
    q, own_k, own_v = new(len(owners), data.draw(st.integers(1, 5)))
    got = decode_attention(q, [made], own_k, own_v, scale=SCALE)
    assert_close(got, plain(q, [[part] for part in read], own_k, own_v), rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("films", [(5, 8), (5, 0), (7, 7)])
def test_films_and_questions(films):
    """Two questions on the first film, one on the second or on none; answers that are no multiple of one another."""
    questions = [0, 0, 0, 1, 2, 2]
    film, seen = level(films, [0, 0, 0, 0, 1, 1], seed=30)
    part, asked = level((3, 6, 1), questions)
    q, own_k, own_v = new(6, 4)
    got = decode_attention(q, [film, part], own_k, own_v, scale=SCALE)
    assert_close(
        got, plain(q, [list(both) for both in zip(seen, asked, strict=True)], own_k, own_v), rtol=EXACT, atol=EXACT
    )


def test_no_prefix_at_all():
    q, own_k, own_v = new(3, 4)
    got = decode_attention(q, [], own_k, own_v, scale=SCALE)
    assert_close(got, plain(q, [[]] * 3, own_k, own_v), rtol=EXACT, atol=EXACT)


def test_what_fills_up_is_not_read():
    """Whatever stands there, as long as it is finite."""
    owners = [0, 1, 1, 2]
    q, own_k, own_v = new(4, 2)
    want, got = (
        decode_attention(q, [level((2, 7, 4), owners, filling=filling)[0]], own_k, own_v, scale=SCALE)
        for filling in (0.0, 99.0)
    )
    assert_close(got, want, rtol=0, atol=0)


def test_room_without_a_token_is_not_read():
    q, own_k, own_v = new(3, 5)
    made, read = level((4, 2), [0, 0, 1])
    unseen = torch.tensor([0, 0, LOW, 0, LOW])
    got = decode_attention(q, [made], own_k, own_v, scale=SCALE, unseen=unseen)
    want = plain(q, [[part] for part in read], own_k[:, :, [0, 1, 3]], own_v[:, :, [0, 1, 3]])
    assert_close(got, want, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("size", [1e-4, 30.0, 1e4])
def test_large_and_small_scores(size):
    """Parts whose log-sum-exps lie far apart, or beyond what exp can hold."""
    made, read = level((4, 2), [0, 0, 1])
    q, own_k, own_v = new(3, 4)
    q = q * size
    got = decode_attention(q, [made], own_k, own_v, scale=SCALE)
    assert got.isfinite().all()
    assert_close(got, plain(q, [[part] for part in read], own_k, own_v), rtol=EXACT, atol=EXACT * max(1, size))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_has_scores_in_float32(dtype):
    """Scores near 300, half a unit apart: bfloat16 counts by twos there, float16 by quarters."""
    q = torch.ones(2, H, 1, D, dtype=dtype)
    k, own_k = (torch.full((2, K, n, D), 50.0, dtype=dtype) for n in (3, 2))
    k[:, :, 1, 0] += 0.5
    own_k[:, :, 0, 0] += 0.25 if dtype == torch.float16 else 0.5
    v, own_v = normal(1, 2, K, 3, D).detach().to(dtype), normal(2, 2, K, 2, D).detach().to(dtype)
    made = Level(k, v, None, Readers.of([0, 1], HERE))
    got = decode_attention(q, [made], own_k, own_v, scale=1.0)
    assert got.dtype == dtype
    wide = Level(k.double(), v.double(), None, made.readers)
    want = decode_attention(q.double(), [wide], own_k.double(), own_v.double(), scale=1.0)
    assert_close(got.double(), want, rtol=HALF, atol=HALF)


def test_readers():
    even, uneven = Readers.of([0, 0, 1, 1], HERE), Readers.of([0, 0, 0, 1, 2, 2], HERE)
    assert (even.even, uneven.even) == (True, False)
    assert uneven.row_MW.tolist() == [[0, 1, 2], [3, 0, 0], [4, 5, 0]]
    assert uneven.at_A.tolist() == [0, 1, 2, 3, 6, 7]
    for readers in (even, uneven):
        x = normal(0, len(readers.at_A), K, 2, D).detach()
        assert_close(readers.spread(readers.gathered(x)), x, rtol=0, atol=0)


def test_what_lies_beyond():
    assert beyond([3, 3], HERE) is None
    assert beyond([1, 3, 0], HERE)[:, 0, 0].eq(0).tolist() == [[True, False, False], [True] * 3, [False] * 3]
