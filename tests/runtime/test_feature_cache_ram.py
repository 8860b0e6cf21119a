"""Features in memory alone: one copy each up to a quota, what gave way is encoded again and counted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.runtime.cached import ALL, Killed, open_store, requests, same
from tests.world import World, silent

from longtake.data.rows import read_questions
from longtake.errors import UserError
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore, prepare
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model
from longtake.runtime.shelf import GIB, Counts, Memory
from longtake.sim.tiny import PIXELS
from longtake.train.footage import encode, open_films

POLICY = FramePolicy(frames=4, max_pixels=PIXELS)
SINGLE = 1e-5  # float32: encoded alone and together


def sizes(whole):
    return [whole[key].nbytes for key in ALL]


def watched(model, monkeypatch):
    """How many films go through the tower in each call."""
    together = []
    real = model.encode
    monkeypatch.setattr(model, "encode", lambda films: together.append(len(films)) or real(films))
    return together


def test_memory_holds_one_copy_and_writes_nothing(model, tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    together, store = watched(model, monkeypatch), open_store(None)
    assert prepare(store, model, requests() * 2) == 7
    assert together == [1] * 7  # alone: a kill leaves nothing, and must not change who is encoded with whom
    assert prepare(store, model, requests()) == 0
    first = store.get("k3")
    assert store.get("k3") is first
    assert store.memory.held == sum(sizes(whole))
    for key in ALL:
        torch.testing.assert_close(store.get(key).level_LNE, whole[key], rtol=SINGLE, atol=SINGLE)
    assert store.counts == Counts(ram=2 + 7, made=7)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_does_not_change_the_bits(model, whole):
    """In memory nothing is left of what was encoded; the next run gets the same bits in another order."""
    first, second = open_store(None), open_store(None)
    with pytest.raises(Killed):
        prepare(first, model, requests(fail=5))
    prepare(second, model, requests()[::-1])
    got = [{key: store.get(key).level_LNE for key in ALL[:5]} for store in (first, second)]
    assert same(*got)


def test_encoding_ahead_stops_where_memory_is_full(model, whole, monkeypatch):
    size = sizes(whole)
    together, store = watched(model, monkeypatch), open_store(None, ram=(sum(size[:3]) + 1) / GIB)
    assert prepare(store, model, requests()) == 7
    assert 1 <= len(together) <= 3
    ahead = len(together)
    assert [key in store for key in ALL] == [True] * ahead + [False] * (7 - ahead)
    assert store.memory.held <= store.memory.most
    assert prepare(store, model, requests()[:ahead]) == 0  # what was made first has not given way


def test_nothing_is_kept_without_room(model, monkeypatch):
    together, store = watched(model, monkeypatch), open_store(None, ram=0.0)
    prepare(store, model, requests())
    assert (together, store.memory.held) == ([1], 0)


def test_the_value_used_last_stays():
    memory = Memory(10 / GIB)
    for key in "abc":
        memory.put(key, key.upper(), 3)
    assert memory.get("a") == "A"
    assert memory.touch("b") == 3
    assert memory.touch("d") == 0
    memory.put("d", "D", 3)
    assert [key for key in "abcd" if key in memory] == ["a", "b", "d"]
    memory.put("a", "new", 5)  # in place of the old one
    assert (memory.get("a"), memory.get("b"), memory.held) == ("new", None, 8)
    memory.put("e", "too large", 11)
    assert (memory.get("e"), memory.held) == (None, 8)
    memory.drop("a")
    memory.drop("a")
    assert memory.held == 3


def test_what_memory_cannot_hold_is_said_once(model):
    store, said = open_store(None, ram=1e-6), []
    store.expected = 1000, 512_000
    store.pin(ALL, said.append)
    prepare(store, model, requests())
    prepare(store, model, requests())
    (text,) = said
    assert "features of 1000 sets of frames take about" in text
    assert "--video.features-ram" in text
    roomy, quiet = open_store(None), []
    roomy.expected = 7, 7 * 512
    roomy.pin(ALL, quiet.append)
    prepare(roomy, model, requests())
    assert quiet == []


@pytest.fixture(scope="module")
def questions(world: World) -> list[Question]:
    return read_questions(world.rows("rl"))[:4]


def films_of(world: World, folder: Path, **more: float) -> Films:
    return open_films(load_model(world.model, device="cpu"), world.video(**more), folder, frozen=True)


def test_a_run_goes_on_however_little_memory_it_has(world: World, tmp_path: Path, questions: list[Question]) -> None:
    """Every set is there when asked for, the same bits; the disk holds none of them."""
    looks = [Look(q, POLICY) for q in questions]
    roomy, tight = films_of(world, tmp_path / "a"), films_of(world, tmp_path / "b", features_ram=0.0)
    for films in (roomy, tight):
        encode(films, looks, silent())
    handles = [roomy.prompt(look).features or "" for look in looks]
    assert [tight.prompt(look).features for look in looks] == handles
    order = [handles[place] for place in (2, 0, 3, 2, 1)]
    for _ in range(2):
        pairs = zip(tight.features(order), roomy.features(order), strict=True)
        assert all(torch.equal(got.level_LNE, want.level_LNE) for got, want in pairs)
    assert tight.store is not None
    assert roomy.store is not None
    assert tight.store.counts == Counts(made=4, remade=1 + 4)  # one was encoded ahead, in vain
    assert roomy.store.counts == Counts(ram=10, made=4)
    assert not list(tmp_path.rglob("features"))


def test_a_store_that_always_forgets_ends_in_words(
    world: World, tmp_path: Path, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process deletes every pack between our looking and our reading."""
    films = films_of(world, tmp_path, features=tmp_path / "features", features_ram=0.0)
    look = Look(questions[0], POLICY)
    encode(films, [look], silent())
    handle = films.prompt(look).features or ""
    monkeypatch.setattr(FeatureStore, "get", lambda *_: None)
    with pytest.raises(UserError, match=r"(?s)disappear.*--video.features"):
        films.features([handle])
