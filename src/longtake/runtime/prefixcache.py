"""Keys and values of prefixes that never change, kept for the whole run: in memory, and on disk if asked.

Made for aLoRA, whose prefix is the base model's own. K key/value heads, U prefix tokens, D head width.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from longtake.runtime.shelf import Counts, Damaged, Memory, Shelf, name_of

KV = list[tuple[Tensor, Tensor]]  # a layer: keys and values, each [1, K, U, D], on the CPU


class PrefixCache:
    """K/V of prompts by a key that names all they depend on: prompt ids, features, base weights, dtype.

    Example: cache = PrefixCache(8.0); cache.put(key, kv); cache.get(key). What comes out is shared: do not write to it.
    """

    def __init__(self, ram_gib: float, folder: Path | None = None, disk_gib: float = 0.0) -> None:
        """Files go to `folder / "prefix"`, up to disk_gib in `folder`. Raises UserError for a folder that cannot be."""
        self.counts = Counts()
        self.memory: Memory[KV] = Memory(ram_gib)
        self.disk = Shelf(folder, "prefix", disk_gib, self.counts, "prefixes") if folder else None
        self._made: set[str] = set()

    def get(self, key: str) -> KV | None:
        """K/V of every layer; None if they must be computed, because they are not here or were damaged on disk."""
        kv = self.memory.get(key)
        if kv is not None:
            self.counts.ram += 1
            return kv
        if self.disk is None or (kv := self._read(self.disk, key)) is None:
            return None
        self.counts.disk += 1
        self.memory.put(key, kv, _size(kv))
        return kv

    def put(self, key: str, kv: KV, *, writes: bool = True) -> None:
        """Keeps a copy of what was computed, where there is room: a layer's keys and values, each [1, K, U, D].

        `writes`: False where another rank puts the same on disk.
        """
        if key in self._made:
            self.counts.remade += 1
        else:
            self.counts.made += 1
        self._made.add(key)
        kept = [(_owned(k), _owned(v)) for k, v in kv]
        self.memory.put(key, kept, _size(kept))
        if self.disk is not None and writes:
            tensors = {
                f"{kind}{layer}": x for layer, pair in enumerate(kept) for kind, x in zip("kv", pair, strict=True)
            }
            self.disk.write(name_of([key]), tensors)

    def _read(self, disk: Shelf, key: str) -> KV | None:
        name = name_of([key])
        try:
            names = disk.keys(name)
            found = disk.read(name, names)
            return [(found[f"k{layer}"], found[f"v{layer}"]) for layer in range(len(names) // 2)]
        except Damaged:
            disk.aside(name)
            self._made.add(key)
        except KeyError:
            pass
        return None


def _owned(x: Tensor) -> Tensor:
    """On the CPU, in memory of its own."""
    return x.detach().to("cpu", copy=True).contiguous()


def _size(kv: KV) -> int:
    return sum(k.nbytes + v.nbytes for k, v in kv)
