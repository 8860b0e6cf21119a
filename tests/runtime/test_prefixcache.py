"""The cache of prefixes: what was put comes back bit for bit or not at all, in memory and on disk, within quotas."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from longtake.errors import UserError
from longtake.runtime.prefixcache import KV, PrefixCache
from longtake.runtime.shelf import GIB, Counts

LAYERS, K, U, D = 3, 2, 5, 4
SIZE = LAYERS * 2 * K * U * D * 4  # bytes of one prefix in float32
ROOM = 1e-3  # GiB: for all of a test


def made(seed: int, dtype: torch.dtype = torch.float32) -> KV:
    rng = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, K, U, D, generator=rng).to(dtype),) * 2 for _ in range(LAYERS)]


def pairs(kv: KV | None) -> list[torch.Tensor]:
    assert kv is not None
    return [x for pair in kv for x in pair]


def same(got: KV | None, want: KV) -> bool:
    return all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(pairs(got), pairs(want), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_what_was_put_comes_back_in_another_run(tmp_path: Path, dtype: torch.dtype) -> None:
    PrefixCache(ROOM, tmp_path, ROOM).put("a", made(0, dtype))
    again = PrefixCache(ROOM, tmp_path, ROOM)
    assert again.get("b") is None
    assert same(again.get("a"), made(0, dtype))
    assert same(again.get("a"), made(0, dtype))
    assert again.counts == Counts(ram=1, disk=1)


def test_keys_and_values_stay_apart(tmp_path: Path) -> None:
    kv = [(made(n)[0][0], made(10 + n)[0][1]) for n in range(12)]  # k10 sorts before k2
    PrefixCache(0.0, tmp_path, ROOM).put("a", kv)
    assert same(PrefixCache(0.0, tmp_path, ROOM).get("a"), kv)


def test_it_keeps_a_copy(tmp_path: Path) -> None:
    cache, kv = PrefixCache(ROOM), made(0)
    cache.put("a", kv)
    kv[0][0].zero_()
    assert same(cache.get("a"), made(0))


def test_memory_forgets_what_was_not_used_for_longest() -> None:
    cache = PrefixCache(2.5 * SIZE / GIB)
    for name in "ab":
        cache.put(name, made(ord(name)))
    cache.get("a")
    cache.put("c", made(ord("c")))
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    assert cache.memory.held == 2 * SIZE
    cache.put("b", made(ord("b")))
    assert (cache.counts.made, cache.counts.remade) == (3, 1)


def test_without_room_in_memory_the_disk_serves(tmp_path: Path) -> None:
    cache = PrefixCache(0.5 * SIZE / GIB, tmp_path, ROOM)
    cache.put("a", made(0))
    assert cache.memory.held == 0
    assert same(cache.get("a"), made(0))
    assert cache.counts == Counts(made=1, disk=1)
    assert PrefixCache(0.0).get("a") is None


def files(folder: Path) -> list[Path]:
    return sorted((folder / "prefix").glob("*.safetensors"))


@pytest.mark.parametrize("how", ["flipped", "short", "empty", "a folder", "of another layer count"])
def test_a_damaged_file_is_none_and_counted(tmp_path: Path, how: str) -> None:
    PrefixCache(0.0, tmp_path, ROOM).put("a", made(0))
    (file,) = files(tmp_path)
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.unlink()
    match how:
        case "flipped":
            file.write_bytes(content)
        case "short":
            file.write_bytes(content[:-2])
        case "empty":
            file.write_bytes(b"")
        case "a folder":
            file.mkdir()
        case "of another layer count":
            file.write_bytes(content.replace(b'"k2"', b'"kX"'))
    cache = PrefixCache(0.0, tmp_path, ROOM)
    said: list[str] = []
    assert cache.disk is not None
    cache.disk.say = said.append
    assert cache.get("a") is None
    assert files(tmp_path) == []
    assert "moved aside" in said[0]
    cache.put("a", made(0))
    assert same(cache.get("a"), made(0))
    assert cache.counts == Counts(disk=1, remade=1, damaged=1)


def test_the_disk_has_a_quota(tmp_path: Path) -> None:
    probe = PrefixCache(0.0, tmp_path / "probe", ROOM)
    probe.put("a", made(0))
    one = files(tmp_path / "probe")[0].stat().st_size
    cache = PrefixCache(0.0, tmp_path, 2.5 * one / GIB)
    for name in "ab":
        cache.put(name, made(ord(name)))
    cache.get("a")
    cache.put("c", made(ord("c")))
    assert [cache.get(name) is not None for name in "abc"] == [True, False, True]
    assert cache.counts.evicted == 1
    assert len(files(tmp_path)) == 2


def test_what_another_rank_writes_is_kept_in_memory_alone(tmp_path: Path) -> None:
    cache = PrefixCache(1.0, tmp_path, ROOM)
    cache.put("a", made(0), writes=False)
    assert files(tmp_path) == []
    assert same(cache.get("a"), made(0))
    assert cache.counts == Counts(ram=1, made=1)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        PrefixCache(1.0, tmp_path / "file", 1.0)
