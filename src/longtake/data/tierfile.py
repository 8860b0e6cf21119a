"""One film's frames on disk: a safetensors file, one uint8 tensor a size; every frame with number, time and checksum.

F stored frames of one size, N frames in the film. Files are replaced whole: readers see the old one or the new one.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from longtake.data.video import Size
from longtake.log import writing
from longtake.records import Film

_KEY = "longtake"  # the entry of the safetensors metadata that holds ours
_TIMES, _KEYS = "times", "keys"


class Damaged(Exception):
    """A tier file that is not what it should be, and why. Never seen by people: such a file is made again."""


@dataclass(frozen=True, slots=True)
class Part:
    """The frames stored in one size. Example: Part((32, 32), (1, 3), (0.06, 0.19), (0x1F…, 0x9A…))."""

    size: Size
    indices: tuple[int, ...]  # [F] frame numbers in the film
    seconds: tuple[float, ...]  # [F]
    checksums: tuple[int, ...]  # [F] CRC-32 of the pixels

    @property
    def name(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The frames of one size with their pixels."""

    indices: tuple[int, ...]  # [F]
    seconds_F: np.ndarray  # float64
    frames_FHWC: np.ndarray  # uint8

    def with_more(self, other: Shelf) -> Shelf:
        return Shelf(
            self.indices + other.indices,
            np.concatenate([self.seconds_F, other.seconds_F]),
            np.concatenate([self.frames_FHWC, other.frames_FHWC]),
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """What a tier file holds, without the pixels."""

    film: Film
    backend: str
    times_N: np.ndarray | None  # None = constant rate
    parts: tuple[Part, ...]
    key_N: np.ndarray | None = None  # bool, key frames; None = nobody asked for them

    def part(self, size: Size) -> Part | None:
        return next((part for part in self.parts if part.size == size), None)

    def holds(self, wanted: Mapping[Size, set[int]]) -> bool:
        parts = {part.size: part.indices for part in self.parts}
        return all(indices <= set(parts.get(size, ())) for size, indices in wanted.items())


def read(path: Path) -> Stored | None:
    """What is stored in `path`; None = no such file. Raises Damaged."""
    if not path.exists():
        return None
    try:
        with safe_open(path, "numpy") as file:
            head: dict[str, Any] = json.loads(file.metadata()[_KEY])
            times = None if head["steady"] else file.get_tensor(_TIMES)
            film = Film(**head["film"])
            keys = file.get_tensor(_KEYS) > 0 if _KEYS in file.keys() else None  # noqa: SIM118
            parts = tuple(
                Part(*map(tuple, (p["size"], p["indices"], p["seconds"], p["checksums"]))) for p in head["parts"]
            )
            for part in parts:
                if list(file.get_slice(part.name).get_shape()) != [len(part.indices), part.size[1], part.size[0], 3]:
                    raise Damaged(f"frames of size {part.name} have another shape")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None
    if film.content != path.stem:
        raise Damaged("it belongs to another film")
    return Stored(film, head["backend"], times, parts, keys)


def pixels(path: Path, part: Part, indices: Sequence[int]) -> np.ndarray:
    """Stored frames `indices` as uint8 [F, H, W, 3]; reads only those. Raises Damaged."""
    row = {i: r for r, i in enumerate(part.indices)}
    try:
        with safe_open(path, "numpy") as file:
            frames = file.get_slice(part.name)
            made = [np.asarray(frames[row[i] : row[i] + 1]) for i in indices]
    except (SafetensorError, OSError, KeyError) as error:
        raise Damaged(f"{type(error).__name__}: {error}") from None
    for i, frame in zip(indices, made, strict=True):
        if zlib.crc32(frame.data) != part.checksums[row[i]]:
            raise Damaged(f"frame {i} of size {part.name} has changed on disk")
    return np.concatenate(made)


def shelf(path: Path, part: Part) -> Shelf:
    """All stored frames of one size. Raises Damaged."""
    return Shelf(part.indices, np.array(part.seconds), pixels(path, part, part.indices))


def write(
    path: Path,
    film: Film,
    backend: str,
    times_N: np.ndarray | None,
    key_N: np.ndarray | None,
    shelves: Mapping[Size, Shelf],
) -> None:
    """Replace `path` by these frames. Raises UserError if the disk is full."""
    parts = [
        Part(
            size,
            held.indices,
            tuple(map(float, held.seconds_F)),
            tuple(zlib.crc32(frame.data) for frame in held.frames_FHWC),
        )
        for size, held in sorted(shelves.items())
    ]
    tensors = {part.name: shelves[part.size].frames_FHWC for part in parts}
    if times_N is not None:
        tensors[_TIMES] = times_N
    if key_N is not None:
        tensors[_KEYS] = key_N.astype(np.uint8)
    about = {
        "film": asdict(film),
        "backend": backend,
        "steady": times_N is None,
        "parts": [asdict(part) for part in parts],
    }
    beside = path.with_suffix(".tmp")  # one name: what a kill leaves here is overwritten by the next attempt
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(_head(tensors, about))
                for tensor in tensors.values():
                    file.write(np.ascontiguousarray(tensor).data)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _head(tensors: Mapping[str, np.ndarray], about: Mapping[str, Any]) -> bytes:
    dtypes = {"uint8": "U8", "float64": "F64"}
    places = {name: (dtypes[x.dtype.name], x.shape, x.nbytes) for name, x in tensors.items()}
    return header(places, {_KEY: json.dumps(about)})


def header(tensors: Mapping[str, tuple[str, Sequence[int], int]], about: Mapping[str, str]) -> bytes:
    """What precedes tensors {name: (dtype, shape, bytes)} in a safetensors file; they follow in the same order.

    (The library's writer holds all of them twice, and leaves files only we can read.)
    """
    entries: dict[str, Any] = {"__metadata__": dict(about)}
    end = 0
    for name, (dtype, shape, size) in tensors.items():
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": (end, end + size)}
        end += size
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
