"""The feature store on disk: bits survive, and kills cost one pack at most and change nothing."""

from dataclasses import replace

import pytest
import torch
from tests.models import tiny
from tests.runtime.cached import ALL, Killed, bits, encodes, open_store, requests, same

from longtake.records import Features
from longtake.runtime import features
from longtake.runtime.features import FeatureStore, Request, cut, prepare


def test_every_film_once_and_the_same_after_reopening(model, tmp_path, whole):
    seen, told = [], []
    store = open_store(tmp_path)
    prepare(store, model, requests(seen) * 2, chunk=2, progress=lambda *at: told.append(at))
    assert seen == list(range(7))
    assert told == [(2, 7), (4, 7), (6, 7), (7, 7)]
    again = open_store(tmp_path)
    assert prepare(again, model, requests(seen), chunk=2) == 0
    assert seen == list(range(7))
    assert encodes(tmp_path / "tower") == dict.fromkeys(ALL, 1)
    assert same(bits(again), whole)
    assert (again.counts.damaged, again.counts.made, again.counts.disk) == (0, 0, 7)
    assert "k3" in again
    assert "k9" not in again


@pytest.mark.parametrize("fail", [0, 1, 4, 6])
def test_killed_while_decoding_and_run_again(model, tmp_path, whole, fail):
    with pytest.raises(Killed):
        prepare(open_store(tmp_path), model, requests(fail=fail), chunk=2)
    store = open_store(tmp_path)
    assert len(encodes(tmp_path / "tower")) == fail // 2 * 2
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    assert encodes(tmp_path / "tower") == dict.fromkeys(ALL, 1)


def test_killed_while_writing_and_run_again(model, tmp_path, whole, monkeypatch):
    """What a kill leaves is half a file under another name, which the next writer takes for its own."""

    def half(file):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", half)
        with pytest.raises(Killed):
            prepare(open_store(tmp_path), model, requests(), chunk=2)
    assert [path.name for path in (tmp_path / "tower").iterdir()] == [".writing"]
    store = open_store(tmp_path)
    assert not any(key in store for key in ALL)
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    assert not (tmp_path / "tower" / ".writing").exists()


def test_what_another_stage_encoded_is_left_alone(model, tmp_path, monkeypatch):
    """Chunks are cut from the full list: which films are encoded together does not depend on where a kill fell."""
    together = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda films: together.append(len(films)) or encode(films))
    first = open_store(tmp_path / "one")
    prepare(first, model, requests()[2:5], chunk=2)
    prepare(first, model, requests(), chunk=4)
    assert together == [2, 1, 2, 2]  # k2 k3, k4; then k0 k1 of the first chunk, k5 k6 of the second
    second = open_store(tmp_path / "two")
    prepare(second, model, requests()[2:5], chunk=2)
    with pytest.raises(Killed):
        prepare(second, model, requests(fail=5), chunk=4)
    second = open_store(tmp_path / "two")
    prepare(second, model, requests(), chunk=4)
    assert together[4:] == together[:4]
    assert same(bits(first), bits(second))
    assert encodes(tmp_path / "one" / "tower") == encodes(tmp_path / "two" / "tower") == dict.fromkeys(ALL, 1)


OTHERS = [("other", torch.float32), ("tower", torch.bfloat16)]  # whose features are not the store's


def sized(*pixels):
    return [Request(f"r{n}", size, lambda: None) for n, size in enumerate(pixels)]


@pytest.mark.parametrize(
    ("most", "pixels", "want"),
    [
        (9, [40, 30, 30, 1], [[40, 30, 30], [1]]),
        (2, [1, 1, 1, 1, 1], [[1, 1], [1, 1], [1]]),
        (9, [250, 10, 95, 250, 250, 5], [[250], [10], [95], [250], [250], [5]]),
        (9, [101, 100, 99, 1, 1], [[101], [100], [99, 1], [1]]),
        (9, [], []),
    ],
)
def test_films_go_through_the_tower_a_few_pixels_at_a_time(monkeypatch, most, pixels, want):
    """A long film must not come with 63 others: a chunk is bounded in films and in pixels; a larger film is alone."""
    monkeypatch.setattr(features, "MOST_PIXELS", 100)
    runs = list(cut(sized(*pixels), most))
    assert [[request.pixels for request in run] for run in runs] == want
    assert [request.key for run in runs for request in run] == [f"r{n}" for n in range(len(pixels))]


def test_chunks_of_pixels_reach_the_tower(model, tmp_path, whole, monkeypatch):
    together = []
    encode = model.encode
    monkeypatch.setattr(model, "encode", lambda films: together.append(len(films)) or encode(films))
    monkeypatch.setattr(features, "MOST_PIXELS", 1024)
    store = open_store(tmp_path)
    prepare(store, model, requests())
    assert together == [2, 2, 1, 1, 1]  # 512 + 256 | 384 + 512 | 384 | 1024 | 128: as the films come
    assert whole.keys() == bits(store).keys()


def test_encoding_a_key_twice_is_counted(tmp_path):
    store = open_store(tmp_path)
    one, two = (Features(torch.full((1, 2, 3), float(n))) for n in (1, 2))
    store.put({"a": one, "b": one})
    store.put({"a": one, "b": one})  # the same pack again is still one pack
    store.put({"b": two, "c": two})
    assert encodes(tmp_path / "tower") == {"a": 1, "b": 2, "c": 1}
    assert (store.counts.made, store.counts.remade) == (3, 3)


def test_the_stores_dtype_and_its_tower(tmp_path):
    store = FeatureStore(tmp_path, "tower", torch.bfloat16)
    store.put({"a": Features(torch.tensor([[[1.0, 1.001]]]))})
    assert store.get("a").level_LNE.dtype == torch.bfloat16
    assert "a" in FeatureStore(tmp_path, "tower", torch.bfloat16)
    assert "a" not in FeatureStore(tmp_path, "other", torch.bfloat16)
    assert store.get("b") is None


def test_keys_tell_apart_what_was_seen(tmp_path):
    seen = tiny.receipt(tiny.film(0, 4))
    others = [
        replace(seen, content="other"),
        replace(seen, indices=(0, 1, 3, 2)),
        replace(seen, width=8),
        replace(seen, height=16),
    ]
    stores = [open_store(tmp_path), *(FeatureStore(None, *own) for own in OTHERS)]
    keys = {stores[0].key(receipt) for receipt in [seen, *others]} | {store.key(seen) for store in stores[1:]}
    assert len(keys) == 7
    same_frames = replace(seen, path="elsewhere.mp4", seconds=(0.0,) * 4, tokens=7)
    assert stores[0].key(same_frames) == stores[0].key(seen)
