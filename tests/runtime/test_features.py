"""The feature store: bits survive, kills and damage cost one pack at most and change nothing."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from tests.models import tiny

from longtake.errors import UserError
from longtake.records import Features
from longtake.runtime import features
from longtake.runtime.features import FeatureStore, Request, cut, prepare

SIZES = [(4, 16, 8), (2, 16, 8), (6, 8, 8), (4, 16, 8), (2, 24, 8), (8, 16, 8), (2, 8, 8)]


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


@pytest.fixture(scope="module")
def model(folder):
    return tiny.load_model(folder, device="cpu")


def open_store(path):
    return FeatureStore(path, "tower", torch.float32)


def bits(store):
    return {key: store.get(key).level_LNE.clone() for key in sorted(store.encodes())}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def whole(model, tmp_path):
    """Bits of a run that nobody disturbed."""
    store = open_store(tmp_path / "whole")
    assert prepare(store, model, requests(), chunk=2) == 7
    return bits(store)


def test_every_film_once_and_the_same_after_reopening(model, tmp_path, whole):
    seen, told = [], []
    store = open_store(tmp_path)
    prepare(store, model, requests(seen) * 2, chunk=2, progress=lambda *at: told.append(at))
    assert seen == list(range(7))
    assert told == [(2, 7), (4, 7), (6, 7), (7, 7)]
    again = open_store(tmp_path)
    assert prepare(again, model, requests(seen), chunk=2) == 0
    assert seen == list(range(7))
    assert again.encodes() == {f"k{n}": 1 for n in range(7)}
    assert same(bits(again), whole)
    assert again.damaged == 0
    assert "k3" in again
    assert "k9" not in again


@pytest.mark.parametrize("fail", [0, 1, 4, 6])
def test_killed_while_decoding_and_run_again(model, tmp_path, whole, fail):
    with pytest.raises(Killed):
        prepare(open_store(tmp_path), model, requests(fail=fail), chunk=2)
    store = open_store(tmp_path)
    assert len(store.encodes()) == fail // 2 * 2
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    assert set(store.encodes().values()) == {1}


def test_killed_while_writing_and_run_again(model, tmp_path, whole, monkeypatch):
    def half(tensors, path, metadata):
        path.write_bytes(b"half a pack")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(features, "save_file", half)
        with pytest.raises(Killed):
            prepare(open_store(tmp_path), model, requests(), chunk=2)
    store = open_store(tmp_path)
    assert store.encodes() == {}
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    monkeypatch.setattr(features, "WRITING", -1)
    open_store(tmp_path)
    assert list(tmp_path.rglob("*.tmp")) == []


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
    assert first.encodes() == second.encodes() == {f"k{n}": 1 for n in range(7)}


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


def damage(path, how):
    content = path.read_bytes()
    match how:
        case "short":
            path.write_bytes(content[:-1])
        case "long":
            path.write_bytes(content + b"\0")
        case "in the header":
            path.write_bytes(content[:20])
        case "empty":
            path.write_bytes(b"")
        case "not a pack":
            path.write_bytes(b"\x10\0\0\0\0\0\0\0" + b"this is no JSON!")
        case "other JSON":
            path.write_bytes(b"\x02\0\0\0\0\0\0\0[]")


@pytest.mark.parametrize("how", ["short", "long", "in the header", "empty", "not a pack", "other JSON"])
def test_a_damaged_pack_is_moved_aside_and_made_again(model, tmp_path, whole, how):
    prepare(open_store(tmp_path), model, requests(), chunk=2)
    broken = next(path for path in (tmp_path / "tower").glob("*.safetensors") if "k2" in features._keys(path))
    damage(broken, how)
    store = open_store(tmp_path)
    assert store.damaged == 1
    assert broken.with_suffix(".damaged").exists()
    assert sorted(store.encodes()) == ["k0", "k1", "k4", "k5", "k6"]
    assert prepare(store, model, requests(), chunk=2) == 2
    assert same(bits(store), whole)
    assert same(bits(open_store(tmp_path)), whole)


def test_a_full_disk_is_said_and_loses_nothing(model, tmp_path, monkeypatch):
    store = open_store(tmp_path)
    prepare(store, model, requests()[:2], chunk=2)

    def full(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    with pytest.raises(UserError, match=r"(?s)cannot be written.*No space left.*free some disk"):
        prepare(store, model, requests(), chunk=2)
    assert list(tmp_path.rglob("*.tmp")) == []
    assert sorted(open_store(tmp_path).encodes()) == ["k0", "k1"]


def test_encoding_a_key_twice_is_counted(tmp_path):
    store = open_store(tmp_path)
    one, two = (Features(torch.full((1, 2, 3), float(n))) for n in (1, 2))
    store.put({"a": one, "b": one})
    store.put({"a": one, "b": one})  # the same pack again is still one pack
    store.put({"b": two, "c": two})
    assert store.encodes() == open_store(tmp_path).encodes() == {"a": 1, "b": 2, "c": 1}


def test_the_stores_dtype_and_its_tower(tmp_path):
    store = FeatureStore(tmp_path, "tower", torch.bfloat16)
    store.put({"a": Features(torch.tensor([[[1.0, 1.001]]]))})
    assert store.get("a").level_LNE.dtype == torch.bfloat16
    assert FeatureStore(tmp_path, "other", torch.bfloat16).encodes() == {}
    with pytest.raises(KeyError):
        store.get("b")


def test_keys_tell_apart_what_was_seen(tmp_path):
    seen = tiny.receipt(tiny.film(0, 4))
    others = [
        replace(seen, content="other"),
        replace(seen, indices=(0, 1, 3, 2)),
        replace(seen, width=8),
        replace(seen, height=16),
    ]
    stores = [open_store(tmp_path), FeatureStore(tmp_path, "other", torch.float32)]
    keys = {stores[0].key(receipt) for receipt in [seen, *others]} | {stores[1].key(seen)}
    assert len(keys) == 6
    same_frames = replace(seen, path="elsewhere.mp4", seconds=(0.0,) * 4, tokens=7)
    assert stores[0].key(same_frames) == stores[0].key(seen)
