"""Every set of frames goes through the vision tower once; training meets handles only.

Features are kept in memory and, if a folder is named, on disk: packs of many keys, written whole or not at all. The
packs are the only truth, the index is read from their headers. N visual tokens, L feature levels, E model width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.parallel.axis import ALONE, Axis
from longtake.protocols import Model
from longtake.records import Features, Receipt
from longtake.runtime.encode import Request, encoded
from longtake.runtime.shelf import GIB, Counts, Damaged, Memory, Say, Shelf, name_of

MOST_FILMS, MOST_PIXELS = 64, 64_000_000  # in one call of the tower
APART = 16  # films that ranks exchange at once where each goes through the tower by itself
RAM_GIB, DISK_GIB = 8.0, 200.0  # unless the run says otherwise


class FeatureStore:
    """Features of one vision tower by key: one copy each in memory, and on disk if there is a folder.

    Example: FeatureStore(Path("features"), tower_fingerprint(model), torch.float32).get(key).level_LNE.
    """

    def __init__(
        self, folder: Path | None, fingerprint: str, dtype: torch.dtype, ram: float = RAM_GIB, disk: float = DISK_GIB
    ) -> None:
        """`ram` and `disk` are quotas in GiB. Reads the headers of all packs there are; damaged ones are moved aside.

        Raises UserError for a folder that is not there and cannot be made.
        """
        self.fingerprint, self.dtype, self.counts = fingerprint, dtype, Counts()
        self.memory: Memory[Features] = Memory(ram)
        self.disk = Shelf(folder, fingerprint, disk, self.counts, "features") if folder else None
        self.frames = 0  # that this rank sent through the tower
        self.expected = 0, 0  # sets of frames that the run may ask for, and their pixels, as far as is known
        self._say: Say = lambda text: None
        self._pack: dict[str, str] = {}  # key → name of the file that holds it
        self._made: set[str] = set()  # keys that were here once
        self._lost: set[str] = set()
        self._foretold = False
        self._refresh()

    def key(self, receipt: Receipt) -> str:
        """The handle of what a receipt saw: film content, frames and size, the tower and its dtype."""
        seen = (receipt.content, receipt.indices, receipt.width, receipt.height, self.fingerprint, str(self.dtype))
        return blake2b((repr(seen) + "picture" * receipt.image).encode(), digest_size=16).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self.memory or key in self._pack

    @property
    def writes(self) -> bool:
        """Whether what is encoded now goes to disk."""
        return self.disk is not None and not (self.disk.closed or self.disk.readonly)

    def pin(self, keys: Sequence[str], say: Say) -> None:
        """These keys are needed now: packs that hold them do not give way. `say` hears what people should know."""
        self._say = say
        if self.disk is None:
            return
        self.disk.say = say
        self._refresh()
        self.disk.pin({self._pack[key] for key in keys if key in self._pack})

    def turn(self, keys: Sequence[str]) -> AbstractContextManager[None]:
        """One process at a time encodes these; see `again` for what another one did meanwhile."""
        return self.disk.turn(name_of(keys)) if self.disk and self.writes else nullcontext()

    def again(self, keys: Sequence[str], axis: Axis = ALONE) -> list[str]:
        """Those of `keys` that must be encoded, after another look at the disk: what any of the ranks lacks.

        Raises UserError if they are to go to disk, but the folder is read-only.
        """
        self._refresh()
        lacking = set().union(*axis.gather({key for key in keys if key not in self}))
        missing = [key for key in keys if key in lacking]
        if missing and self.disk and axis.first(self.disk.readonly):
            fix = "make it writable, name another --video.features, or leave it out: features then stay in memory"
            why = f"{len(missing)} of the features that are needed are not in it, and it is read-only"
            raise UserError("features cannot be written here", where=str(self.disk.folder), why=why, fix=fix)
        return missing

    def put(self, pack: Mapping[str, Features], axis: Axis = ALONE) -> dict[str, Features]:
        """Keeps what was encoded, as one pack on disk; returns it as it is kept: on the CPU, in the store's dtype.

        Of several ranks, which all have it, the first one writes.
        """
        owned = {key: _owned(made, self.dtype) for key, made in pack.items()}
        again = sum(key in self._made for key in owned)
        self.counts.remade += again
        self.counts.made += len(owned) - again
        self._made |= owned.keys()
        name = name_of(owned)
        levels = {key: made.level_LNE for key, made in owned.items()}
        if self.disk and owned and axis.first(axis.leads and self.disk.write(name, levels)):
            self._pack |= dict.fromkeys(owned, name)
            self.disk.pinned.add(name)
        for key, made in owned.items():
            self.memory.put(key, made, made.level_LNE.nbytes)
        return owned

    def get(self, key: str) -> Features | None:
        """Features of a key; None if they must be encoded: never put, given way, or damaged (which is counted)."""
        if (made := self.memory.get(key)) is not None:
            self.counts.ram += 1
            return made
        if self.disk is None or key not in self._pack:
            return None
        name = self._pack[key]
        try:
            level_LNE = self.disk.read(name, [key])[key]
            if level_LNE.dtype != self.dtype or level_LNE.ndim != 3:
                raise Damaged(f"{key} of {name} is {level_LNE.dtype} {tuple(level_LNE.shape)}")
        except Damaged:
            self.disk.aside(name)
            lost = self._forget(name)
            for other in lost:
                self.memory.drop(other)
            self._lost |= lost
            return None
        except KeyError:
            self._forget(name)
            return None
        self.counts.disk += 1
        made = Features(level_LNE)
        self.memory.put(key, made, level_LNE.nbytes)
        return made

    def lost(self) -> set[str]:
        """Keys of packs that turned out damaged since the last call: encoded together once."""
        lost, self._lost = self._lost, set()
        return lost

    def _refresh(self) -> None:
        """Takes in packs that other processes wrote, and forgets those that are gone."""
        if self.disk is None:
            return
        there, known = self.disk.names(), set(self._pack.values())
        for name in known - there:
            self._forget(name)
        for name in sorted(there - known):
            try:
                self._pack |= dict.fromkeys(self.disk.keys(name), name)
            except Damaged:
                self.disk.aside(name)
            except KeyError:
                pass

    def _forget(self, name: str) -> set[str]:
        """The keys of a file that is gone; to encode them will be to do so again."""
        gone = {key for key, pack in self._pack.items() if pack == name}
        for key in gone:
            del self._pack[key]
        self._made |= gone
        return gone

    def foretell(self, made: Sequence[Features], pixels: int) -> None:
        """Says once, before the first are kept, what all features of the run will take and what room there is."""
        sets, every = self.expected
        if self._foretold or not sets:
            return
        self._foretold = True
        total = every / pixels * sum(one.level_LNE.numel() for one in made) * self.dtype.itemsize / GIB
        head = f"features of {sets} sets of frames take about {total:.2g} GiB"
        if self.disk is not None:
            room = f"{self.disk.free() / GIB:.3g} GiB are free, the quota is {self.disk.quota / GIB:.3g} GiB"
            self._say(f"{head} in {self.disk.folder}: {room}")
        elif total * GIB > self.memory.most:
            room = f"{self.memory.most / GIB:.3g} GiB (--video.features-ram)"
            self._say(
                f"{head}, memory keeps {room}: the rest is encoded again, or kept on disk by --video.features DIR"
            )


def _owned(made: Features, dtype: torch.dtype) -> Features:
    """On the CPU and in memory of its own: films that were encoded together are views of one tensor."""
    level_LNE: Tensor = made.level_LNE.detach().to("cpu", dtype, copy=True)
    return Features(level_LNE.contiguous())


def prepare(
    store: FeatureStore,
    model: Model,
    requests: Sequence[Request],
    chunk: int = MOST_FILMS,
    progress: Callable[[int, int], None] = lambda done, total: None,
    axis: Axis = ALONE,
) -> int:
    """Encodes ahead what the store lacks; returns how many sets of frames of the list were not there.

    Ranks, if there are several, call with the same requests and share the work; what one of them lacks, all make.

    On disk one pack a chunk of the full request list. Chunks are cut from all requests, present or not, and a pack is
    whole or absent: so a run that was killed meets the same chunks again, and the bits of a film's features do not
    depend on where the kill fell. In memory alone, where a kill leaves nothing, each set by itself for the same reason,
    and no more than memory holds: the others are encoded when they are asked for.
    """
    done, ahead, wanted = 0, 0, list({request.key: request for request in requests}.values())
    missed = len(store.again([request.key for request in wanted], axis))
    if not missed:
        progress(len(wanted), len(wanted))
        for request in wanted:
            store.memory.touch(request.key)
        return 0
    writes = axis.first(store.writes)
    runs = cut(wanted, chunk if writes else 1)
    if axis.size > 1 and not writes:  # the first alone, for it shows whether there is room
        runs = chain(cut(wanted[:1], 1), cut(wanted[1:], APART))
    for films in runs:
        made = encode(store, model, films, axis)
        if not writes or not axis.first(store.writes):
            held = sum(store.memory.touch(request.key) for request in films)
            ahead += held
            if axis.any((bool(made) and not held) or ahead + held > store.memory.most):
                break
        done += len(films)
        progress(done, len(wanted))
    return missed


def encode(store: FeatureStore, model: Model, films: Sequence[Request], axis: Axis = ALONE) -> dict[str, Features]:
    """Features of those films that the store of any rank lacks, encoded together and kept. The first takes the turn."""
    keys = [request.key for request in films]
    if not axis.any(any(key not in store for key in keys)):
        return {}
    with store.turn(keys) if axis.leads else nullcontext():
        missing = set(store.again(keys, axis))
        requests = [request for request in films if request.key in missing]
        if not requests:
            return {}
        with torch.no_grad():
            made, frames = encoded(model, requests, axis, apart=not axis.first(store.writes))
        store.frames += frames
        store.foretell(made, sum(request.pixels for request in requests))
        return store.put({request.key: one for request, one in zip(requests, made, strict=True)}, axis)


def cut(requests: Sequence[Request], most: int) -> Iterator[list[Request]]:
    """Runs of requests of at most `most` films and MOST_PIXELS pixels; a larger film stands alone."""
    run: list[Request] = []
    pixels = 0
    for request in requests:
        if run and (len(run) == most or pixels + request.pixels > MOST_PIXELS):
            yield run
            run, pixels = [], 0
        run.append(request)
        pixels += request.pixels
    if run:
        yield run
