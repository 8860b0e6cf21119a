"""Features on disk: whatever is damaged, foreign, full, too small or read-only, a run goes on and says so."""

import json
import os
import resource
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file
from tests.runtime.cached import ALL, bits, encodes, keys_of, open_store, packs, requests, same

from longtake.errors import UserError
from longtake.records import Features
from longtake.runtime.features import FeatureStore, prepare
from longtake.runtime.shelf import GIB, OURS, SUFFIX, Damaged, checksum

ROOM = 1e-3  # GiB: for all of a test


def in_header(path, change):
    """Rewrites the header of a pack; the bytes of its tensors stay as they are."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])


def turned(header):
    for name, entry in header.items():
        if name != "__metadata__":
            entry["shape"] = entry["shape"][::-1]


def retyped(header):
    for name, entry in header.items():
        if name != "__metadata__":
            entry["dtype"] = "I32"


def renamed(header):
    header["__metadata__"]["longtake"] = "elsewhere"


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
        case "a folder":
            path.unlink()
            path.mkdir()
        case "another program's":
            save_file({key: torch.zeros(1, 2, 3) for key in keys_of(path)}, path)
        case "another tower's":
            in_header(path, renamed)


BROKEN = ["short", "long", "in the header", "empty", "not a pack", "other JSON"]
FOREIGN = ["a folder", "another program's", "another tower's"]


def heard(store, keys=ALL):
    said = []
    store.pin(keys, said.append)
    return said


@pytest.mark.parametrize("how", BROKEN + FOREIGN)
def test_a_damaged_or_foreign_pack_is_moved_aside_and_made_again(model, tmp_path, whole, how):
    prepare(open_store(tmp_path), model, requests(), chunk=2)
    broken = next(path for path in packs(tmp_path / "tower") if "k2" in keys_of(path))
    damage(broken, how)
    store = open_store(tmp_path)
    assert store.counts.damaged == 1
    assert broken.with_suffix(".damaged").exists()
    assert sorted(encodes(tmp_path / "tower")) == ["k0", "k1", "k4", "k5", "k6"]
    assert prepare(store, model, requests(), chunk=2) == 2
    assert same(bits(store), whole)
    assert same(bits(open_store(tmp_path)), whole)


@pytest.mark.parametrize("how", BROKEN + FOREIGN)
def test_damage_under_an_open_store_is_found_when_it_is_read(model, tmp_path, whole, how):
    prepare(open_store(tmp_path), model, requests(), chunk=2)
    store = open_store(tmp_path)
    said = heard(store)
    broken = next(path for path in packs(tmp_path / "tower") if "k2" in keys_of(path))
    damage(broken, how if how != "another tower's" else "flipped")
    if how == "another tower's":  # of equal keys: then its bits tell
        in_header(broken, turned)
    assert store.get("k2") is None
    assert store.get("k0") is not None
    assert (store.counts.damaged, store.counts.disk) == (1, 1)
    assert store.lost() == {"k2", "k3"}
    assert store.lost() == set()
    assert any("moved aside" in text for text in said)
    assert prepare(store, model, requests(), chunk=2) == 2
    assert store.counts.remade == 2
    assert same(bits(store), whole)


@pytest.mark.parametrize("change", [turned, retyped])
def test_a_checksum_covers_shape_and_dtype(tmp_path, change):
    store = open_store(tmp_path)
    store.put({"a": Features(torch.randn(1, 2, 3))})
    (pack,) = packs(tmp_path / "tower")
    in_header(pack, change)
    again = open_store(tmp_path)
    assert again.get("a") is None
    assert again.counts.damaged == 1


def test_one_bit_is_found_in_any_place(tmp_path):
    store = open_store(tmp_path)
    store.put({"a": Features(torch.randn(1, 2, 3)), "b": Features(torch.randn(1, 1, 3))})
    (pack,) = packs(tmp_path / "tower")
    content = pack.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in range(start, len(content)):
        pack.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        key = "a" if place - start < 24 else "b"
        with pytest.raises(Damaged, match=f"{key} of .* has changed"):
            store.disk.read(pack.stem, ["a", "b"])


def test_a_store_of_another_dtype_does_not_take_what_is_there(tmp_path):
    """The same key in another dtype cannot be: the dtype is in the key. Should it be, it is damage."""
    open_store(tmp_path).put({"a": Features(torch.randn(1, 2, 3))})
    half = FeatureStore(tmp_path, "tower", torch.bfloat16)
    assert half.get("a") is None
    assert half.counts.damaged == 1
    assert checksum(torch.zeros(2)) != checksum(torch.zeros(2, dtype=torch.int32))


def pack_size(tmp_path):
    """Of a pack of one film of 2 x 3 numbers."""
    store = open_store(tmp_path / "probe")
    store.put(one("a"))
    return packs(tmp_path / "probe" / "tower")[0].stat().st_size


def one(key):
    return {key: Features(torch.full((1, 2, 3), float(ord(key))))}


def test_what_was_not_used_for_longest_gives_way(tmp_path):
    size = pack_size(tmp_path)
    store = open_store(tmp_path / "features", ram=0.0, disk=3.5 * size / GIB)
    said = heard(store, [])
    for key in "abc":
        store.put(one(key))
    store.pin(["a"], said.append)
    assert store.get("b") is not None
    store.put(one("d"))  # c was not used since it was put
    store.put(one("e"))  # a is needed, d is new
    assert sorted(encodes(tmp_path / "features" / "tower")) == ["a", "d", "e"]
    assert store.counts.evicted == 2
    assert store.get("c") is None
    assert sum("give way" in text for text in said) == 1
    store.pin([], said.append)
    store.put(one("c"))
    assert (store.counts.made, store.counts.remade) == (5, 1)
    assert len(packs(tmp_path / "features" / "tower")) == 3


def test_what_a_step_needs_stays_even_if_there_is_no_room_for_more(tmp_path):
    size = pack_size(tmp_path)
    store = open_store(tmp_path / "features", disk=2.5 * size / GIB)
    said = heard(store, ["a", "b", "c"])
    for key in "abc":
        store.put(one(key))
    assert sorted(encodes(tmp_path / "features" / "tower")) == ["a", "b"]
    assert store.counts.evicted == 0
    assert any("one step needs more" in text for text in said)
    assert store.get("c") is not None  # in memory
    store.pin([], said.append)
    store.put(one("d"))
    assert sorted(encodes(tmp_path / "features" / "tower")) == ["b", "d"]


def test_the_quota_is_that_of_all_towers_and_touches_no_other_file(tmp_path):
    size = pack_size(tmp_path)
    root = tmp_path / "features"
    FeatureStore(root, "old", torch.float32).put(one("a"))
    (root / "mine").mkdir()
    strangers = [root / "model.safetensors", root / "mine" / "model.safetensors", root / "tower.txt"]
    for path in strangers:
        path.write_bytes(bytes(10 * size))
    store = open_store(root, disk=1.5 * size / GIB)
    store.put(one("b"))
    assert encodes(root / "old") == {}
    assert encodes(root / "tower") == {"b": 1}
    assert all(path.exists() for path in strangers)
    assert OURS.fullmatch("0" * 32 + SUFFIX)
    assert not OURS.fullmatch("model" + SUFFIX)


def test_the_size_is_said_before_anything_is_written(model, tmp_path, whole):
    store, root = open_store(tmp_path), tmp_path / "tower"
    store.expected = 700, 700 * 512
    said = []
    store.pin(ALL, lambda text: said.append((text, len(packs(root)))))
    prepare(store, model, requests(), chunk=2)
    ((text, there),) = said
    assert there == 0
    total = 700 * 512 * whole["k0"].nbytes / 512 / GIB  # k0 has 512 pixels
    assert f"features of 700 sets of frames take about {total:.2g} GiB in {root}" in text
    assert "GiB are free, the quota is 200 GiB" in text


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_read_only_folder_serves_what_is_in_it(model, tmp_path, whole, monkeypatch):
    prepare(open_store(tmp_path), model, requests()[:6], chunk=2)
    monkeypatch.setattr(
        os, "access", lambda path, mode: not mode & os.W_OK
    )  # a superuser may write anywhere but on a read-only disk
    monkeypatch.setattr(os, "utime", refused)
    before = listing(tmp_path)
    store = open_store(tmp_path)
    said = heard(store)
    assert prepare(store, model, requests()[:6], chunk=2) == 0
    assert same(bits(store), {key: whole[key] for key in ALL[:6]})
    assert any("cannot be written to" in text for text in said)
    seen = []
    with pytest.raises(UserError, match=r"(?s)cannot be written.*2 of the features.*read-only.*--video.features"):
        prepare(store, model, [*requests(seen), replace(requests(seen)[0], key="k7")], chunk=2)
    assert seen == []  # said before the tower is run
    assert listing(tmp_path) == before


def refused(*_, **__):
    raise PermissionError(13, "Permission denied")


def test_a_folder_that_cannot_be_read_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.R_OK)
    with pytest.raises(UserError, match="cannot read this folder"):
        open_store(tmp_path)


def test_a_folder_that_cannot_be_made_ends_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        open_store(tmp_path / "file")


@contextmanager
def files_of_at_most(size):
    """What a full disk is like, for every file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_once_and_memory_goes_on(model, tmp_path, whole):
    store = open_store(tmp_path)
    said = heard(store)
    prepare(store, model, requests()[:2], chunk=2)
    with files_of_at_most(600):
        assert prepare(store, model, requests(), chunk=2) == 5
    assert [text for text in said if "no longer go to disk: file too large" in text] == said
    assert len(said) == 1
    assert len(packs(tmp_path / "tower")) == len(list((tmp_path / "tower").iterdir())) == 1
    assert sorted(bits(store)) == ALL
    assert sorted(bits(open_store(tmp_path))) == ["k0", "k1"]
    assert all(torch.equal(store.get(key).level_LNE, whole[key]) for key in ALL[:4])


def test_a_folder_deleted_under_a_run_is_made_again(model, tmp_path, whole):
    store = open_store(tmp_path, ram=0.0)
    prepare(store, model, requests(), chunk=2)
    for path in (tmp_path / "tower").iterdir():
        path.unlink()
    (tmp_path / "tower").rmdir()
    heard(store)
    assert not any(key in store for key in ALL)
    prepare(store, model, requests(), chunk=2)
    assert same(bits(store), whole)
    assert (store.counts.remade, store.counts.damaged) == (7, 0)
