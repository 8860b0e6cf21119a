"""What the caches of a run are made of: values in memory and safetensors files in a folder, each up to a quota.

A file is written whole or not at all and carries a checksum of every tensor; a damaged or foreign one is moved aside
and counted. Any number of processes may share a folder: writers take turns under a lock, readers need none.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Generic, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longtake.data.tierfile import header
from longtake.errors import UserError
from longtake.log import writing
from longtake.log.lock import locked

GIB = 2**30
OWNER = "longtake"  # the entry of a file's metadata that says whose tensors it holds
SUFFIX = ".safetensors"
DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
OURS = re.compile(r"[0-9a-f]{32}(\.safetensors|\.damaged(-\d+)?)")  # no other file is ever deleted

Value = TypeVar("Value")
Say = Callable[[str], None]


class Damaged(Exception):
    """A file that cannot be used, and why. Never seen by people: it is moved aside, made again and counted."""


@dataclass(slots=True)
class Counts:
    """What a cache did. Example: Counts(ram=31, made=1)."""

    ram: int = 0  # found in memory
    disk: int = 0  # found on disk
    made: int = 0  # computed for the first time
    remade: int = 0  # computed again: it had given way, or was damaged
    evicted: int = 0  # files that gave way to newer ones
    damaged: int = 0  # files that were damaged, or somebody else's

    def numbers(self) -> dict[str, int]:
        """As they go into run.json."""
        return asdict(self)


class Memory(Generic[Value]):
    """Values by key, up to so many GiB; those not used for longest give way. Example: Memory[Features](8.0)."""

    def __init__(self, gib: float) -> None:
        self.most, self.held = int(gib * GIB), 0  # bytes
        self._kept: OrderedDict[str, tuple[Value, int]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._kept

    def get(self, key: str) -> Value | None:
        """The value, now the one used last; None if it is not here."""
        if key not in self._kept:
            return None
        self._kept.move_to_end(key)
        return self._kept[key][0]

    def touch(self, key: str) -> int:
        """The bytes of a value, now the one used last; 0 if it is not here."""
        return self._kept[key][1] if self.get(key) is not None else 0

    def drop(self, key: str) -> None:
        """Forgets a value, if it is here."""
        if key in self._kept:
            self.held -= self._kept.pop(key)[1]

    def put(self, key: str, value: Value, size: int) -> None:
        """Keeps a value of `size` bytes; one that is larger than all there is room for is not kept."""
        self.drop(key)
        if size > self.most:
            return
        self._kept[key] = value, size
        self.held += size
        while self.held > self.most:
            self.held -= self._kept.popitem(last=False)[1][1]


class Shelf:
    """One owner's files in `root / part`; the quota is that of all parts of `root`.

    Example: Shelf(Path("features"), "9f3c…", 200.0, Counts(), "features").write(name_of(["k"]), {"k": level_LNE}).
    """

    def __init__(self, root: Path, part: str, gib: float, counts: Counts, what: str) -> None:
        """`what` the files hold, for messages. Raises UserError for a folder that cannot be made or read."""
        self.root, self.part, self.folder, self.counts, self.what = root, part, root / part, counts, what
        self.quota = int(gib * GIB)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.R_OK | os.X_OK):
            fix = "choose another place, or ask its owner"
            raise UserError("cannot read this folder", where=str(self.folder), why="permission denied", fix=fix)
        self.readonly = not os.access(self.folder, os.W_OK)
        self.closed = ""  # why this run writes no more
        self.say: Say = lambda text: None
        self.pinned: set[str] = set()  # names of files that are needed now: they do not give way to others
        self._said: set[str] = set()

    def names(self) -> set[str]:
        """Of all files there are, without opening them."""
        try:
            return {path.stem for path in self.folder.iterdir() if path.suffix == SUFFIX and OURS.fullmatch(path.name)}
        except FileNotFoundError:  # deleted under our feet
            return set()

    def keys(self, name: str) -> list[str]:
        """The tensors of a file, from its header alone. Raises KeyError if there is no such file, Damaged."""
        with self._opened(name) as (file, about):
            keys = list(file.keys())
        if about.get(OWNER) != self.part or about.keys() != {OWNER, *keys}:
            raise Damaged(f"{name} was not written for {self.part}")
        return keys

    def read(self, name: str, keys: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of a file, which is now the one used last. Raises KeyError if there is no such file, Damaged."""
        with self._opened(name) as (file, about):
            found: dict[str, Tensor] = {key: file.get_tensor(key) for key in keys}
        for key, tensor in found.items():
            if about.get(key) != str(checksum(tensor)):
                raise Damaged(f"{key} of {name} has changed on disk")
        self._touch(self._path(name))
        return found

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> bool:
        """Writes one file, at once or not at all; False if it is not kept on disk, for a reason that was said."""
        self._say_readonly()
        if self.closed or self.readonly:
            return False
        places = {key: (DTYPES[x.dtype], tuple(x.shape), x.nbytes) for key, x in tensors.items()}
        start = header(places, {OWNER: self.part} | {key: str(checksum(x)) for key, x in tensors.items()})
        half = self.folder / ".writing"  # one name: writers take turns, and what a kill leaves here is overwritten
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(self.root / ".lock"):
                if not self._make_room(len(start) + sum(x.nbytes for x in tensors.values()), self._path(name)):
                    return False
                with half.open("wb") as file:
                    file.write(start)
                    for tensor in tensors.values():
                        file.write(_bytes(tensor))
                    file.flush()
                    os.fsync(file.fileno())
                half.replace(self._path(name))
                self._touch(self._path(name))
        except OSError as error:
            with suppress(OSError):
                half.unlink(missing_ok=True)
            self.closed = (error.strerror or str(error)).lower()
            self._say_once(f"{self.what} no longer go to disk: {self.closed} ({self.folder})")
            return False
        return True

    def aside(self, name: str) -> None:
        """Moves a damaged file (or whatever is in its place) out of the way and counts it."""
        self.counts.damaged += 1
        self._say_once(f"damaged files in {self.folder} are moved aside and made again")
        path, number = self._path(name), 1
        to = path.with_suffix(".damaged")
        while to.exists():
            number += 1
            to = path.with_suffix(f".damaged-{number}")
        with suppress(OSError):  # another process did it already, or the folder is read-only
            path.rename(to)

    def pin(self, names: Collection[str]) -> None:
        """These files are needed now, and no others."""
        self.pinned = set(names)
        self._say_readonly()
        for name in names:
            self._touch(self._path(name))

    def free(self) -> int:
        """Bytes that are free on this disk; 0 if it cannot be told."""
        try:
            return shutil.disk_usage(self.folder).free
        except OSError:
            return 0

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """One process at a time makes what `name` is to hold; the others wait for it."""
        with ExitStack() as held:
            with suppress(OSError):  # then writing will fail as well, and say so
                held.enter_context(locked(self.root / f".lock-{name[:2]}"))
            yield

    def _make_room(self, need: int, path: Path) -> bool:
        """Deletes what was not used for longest until `need` bytes fit; False if they cannot."""
        found = [old for old in self._files() if old[2] != path]
        pinned = {self._path(name) for name in self.pinned}
        loose = sorted(old for old in found if old[2] not in pinned)
        room = self.quota - need - sum(size for _, size, _ in found)
        if room + sum(size for _, size, _ in loose) < 0:
            kept = "one step needs more than that"
            self._say_once(f"some {self.what} do not go to disk: the quota is {self.quota / GIB:.3g} GiB and {kept}")
            return False
        for _, size, old in loose:
            if room >= 0:
                break
            try:
                old.unlink(missing_ok=True)
            except PermissionError:  # another user's
                continue
            room += size
            self.counts.evicted += 1
            why = f"they reached the quota of {self.quota / GIB:.3g} GiB"
            self._say_once(f"{self.what} in {self.root} give way to newer ones: {why}")
        return room >= 0

    def _files(self) -> list[tuple[int, int, Path]]:
        """(time of last use, bytes, path) of every file of ours, of all parts."""
        found = []
        for path in self.root.glob("*/*"):
            if OURS.fullmatch(path.name):
                with suppress(FileNotFoundError):
                    about = path.lstat()
                    if path.is_file():
                        found.append((about.st_mtime_ns, about.st_size, path))
        return found

    @contextmanager
    def _opened(self, name: str) -> Iterator[tuple[safe_open, dict[str, str]]]:
        try:
            with safe_open(self._path(name), framework="pt") as file:
                yield file, file.metadata() or {}
        except SafetensorError as error:
            raise Damaged(str(error)) from error
        except OSError as error:
            if self._path(name).is_dir():  # in place of a file
                raise Damaged(str(error)) from error
            raise KeyError(name) from error  # gone, or not ours to read

    def _path(self, name: str) -> Path:
        return self.folder / (name + SUFFIX)

    def _touch(self, path: Path) -> None:
        """Last used now, by a finer clock than the file system's own."""
        with suppress(OSError):
            os.utime(path, ns=(time.time_ns(),) * 2)

    def _say_readonly(self) -> None:
        if self.readonly:
            self._say_once(f"{self.folder} cannot be written to: {self.what} in it are read, new ones are not kept")

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            self.say(text)


def name_of(keys: Iterable[str]) -> str:
    """32 hex digits: the name of the file that holds these tensors."""
    return blake2b("".join(keys).encode(), digest_size=16).hexdigest()


def checksum(tensor: Tensor) -> int:
    """CRC-32 of dtype, shape and bytes."""
    return zlib.crc32(_bytes(tensor), zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode()))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
