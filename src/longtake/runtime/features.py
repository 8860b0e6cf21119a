"""Features on disk: every set of frames goes through the vision tower once, and training meets handles only.

A pack is one safetensors file of many keys, written whole or not at all; the packs are the only truth, the index is
read from their headers. T packed tokens, N visual tokens, L feature levels, E model width, F frames.
"""

from __future__ import annotations

import os
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from longtake.errors import UserError
from longtake.log import writing
from longtake.protocols import Model
from longtake.records import Features, PrefixRow, Receipt

KEPT_BYTES = 2 << 30  # of features in memory
MOST_FILMS, MOST_PIXELS = 64, 64_000_000  # in one call of the tower


@dataclass(frozen=True, slots=True)
class Request:
    """One set of frames to encode. Example: Request(store.key(receipt), 64 * 32 * 32, load)."""

    key: str
    pixels: int  # of all its frames
    frames: Callable[[], np.ndarray]  # uint8 [F, H, W, 3]


WRITING = 3600  # seconds: no pack takes longer to write


class Damaged(Exception):
    """Features on disk that cannot be used. Never seen by people: they are made again and counted."""


class FeatureStore:
    """Features of one vision tower by key, in a folder.

    Example: FeatureStore(Path("features"), tower_fingerprint(model), torch.float32).get(key).level_LNE.
    """

    def __init__(self, folder: Path, fingerprint: str, dtype: torch.dtype) -> None:
        """Reads the headers of all packs there are; one that is damaged is moved aside and counted in `damaged`."""
        self.folder, self.fingerprint, self.dtype = folder / fingerprint, fingerprint, dtype
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.damaged = 0
        self._pack: dict[str, Path] = {}
        self._encodes: Counter[str] = Counter()
        self._loaded: dict[str, Features] = {}
        self._held = 0  # bytes of them
        for half in self.folder.glob("*.tmp"):  # a killed run's; a live writer's is younger
            if time.time() - half.stat().st_mtime > WRITING:
                half.unlink(missing_ok=True)
        for path in sorted(self.folder.glob("*.safetensors")):
            try:
                self._index(path, _keys(path))
            except (SafetensorError, OSError):
                self._aside(path)

    def _index(self, path: Path, keys: Sequence[str]) -> None:
        self._encodes.update(keys)
        self._pack.update(dict.fromkeys(keys, path))

    def _aside(self, path: Path) -> None:
        with writing(path), suppress(FileNotFoundError):
            path.rename(path.with_suffix(".damaged"))
        self.damaged += 1

    def key(self, receipt: Receipt) -> str:
        """The handle of what a receipt saw: film content, frames and size, and the tower."""
        seen = (receipt.content, receipt.indices, receipt.width, receipt.height, self.fingerprint, str(self.dtype))
        return blake2b(repr(seen).encode(), digest_size=16).hexdigest()

    def __contains__(self, key: str) -> bool:
        return key in self._pack

    def encodes(self) -> dict[str, int]:
        """How many packs hold each key, i.e. how often it was encoded."""
        return dict(self._encodes)

    def put(self, pack: Mapping[str, Features]) -> None:
        """Writes one pack, at once or not at all. Raises UserError if it cannot be written."""
        if not pack:
            return
        name = blake2b("".join(pack).encode(), digest_size=16).hexdigest()
        path = self.folder / f"{name}.safetensors"
        half = path.with_suffix(f".{os.getpid()}.tmp")
        tensors = {key: _owned(made, self.dtype) for key, made in pack.items()}
        try:
            save_file(tensors, half, {key: str(_checksum(tensor)) for key, tensor in tensors.items()})
            with half.open("rb") as written:
                os.fsync(written.fileno())
            half.replace(path)
        except (OSError, SafetensorError) as error:
            half.unlink(missing_ok=True)
            raise UserError(
                "features cannot be written", where=str(path), why=str(error), fix="free some disk, run again"
            ) from error
        if self._pack.get(next(iter(pack))) != path:
            self._index(path, list(pack))

    def get(self, key: str) -> Features:
        """Features of a key, read from disk; the last ones are kept in memory, up to KEPT_BYTES.

        Raises KeyError for what was never put, Damaged for what is no longer as it was put.
        """
        if key not in self._loaded:
            try:
                with safe_open(self._pack[key], framework="pt") as pack:
                    made, put = Features(pack.get_tensor(key)), (pack.metadata() or {}).get(key)
            except (SafetensorError, OSError) as error:
                raise Damaged(str(error)) from error
            if str(_checksum(made.level_LNE)) != put:
                raise Damaged(f"features in {self._pack[key]} have changed on disk")
            self._loaded[key] = made
            self._held += made.level_LNE.nbytes
            while self._held > KEPT_BYTES and len(self._loaded) > 1:
                self._held -= self._loaded.pop(next(iter(self._loaded))).level_LNE.nbytes
        return self._loaded[key]

    def drop(self, key: str) -> list[str]:
        """Moves the damaged pack of a key aside and counts it; returns all keys that it held, to be encoded again."""
        path = self._pack[key]
        lost = [other for other, pack in self._pack.items() if pack == path]
        for other in lost:
            del self._pack[other]
        self._encodes.subtract(lost)
        self._encodes += Counter()  # without zeros
        self._aside(path)
        return lost


def _checksum(tensor: Tensor) -> int:
    """CRC-32 of the bytes."""
    return zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data)


def _owned(made: Features, dtype: torch.dtype) -> Tensor:
    """On the CPU and in memory of its own: films that were encoded together are views of one tensor."""
    return made.level_LNE.detach().to("cpu", dtype, copy=True).contiguous()


def _keys(path: Path) -> list[str]:
    """The keys of a pack, from its header alone. Raises SafetensorError if header and length do not agree."""
    with safe_open(path, framework="pt") as pack:
        return list(pack.keys())


def prepare(
    store: FeatureStore,
    model: Model,
    requests: Sequence[Request],
    chunk: int = MOST_FILMS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Encodes what the store lacks, one pack a chunk of the full request list; returns how many it encoded.

    Chunks are cut from all requests, present or not, and a pack is whole or absent: so a run that was killed meets the
    same chunks again, and the bits of a film's features do not depend on where the kill fell.
    """
    encoded = done = 0
    wanted = list({request.key: request for request in requests}.values())
    for films in cut(wanted, chunk):
        missing = [request for request in films if request.key not in store]
        if missing:
            with torch.no_grad():
                made = model.encode([request.frames() for request in missing])
            store.put({request.key: features for request, features in zip(missing, made, strict=True)})
            encoded += len(missing)
        done += len(films)
        progress(done, len(wanted))
    return encoded


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


def fill(model: Model, ids_T: Tensor, visual_T: Tensor, films: Sequence[Features]) -> tuple[Tensor, Tensor | None]:
    """Input of a row: token embeddings [T, E] with features at the visual places, and DeepStack [L - 1, N, E] or None.

    `films` are in row order; gradients flow into embeddings and features. Raises ValueError unless they fill the
    places.
    """
    embed_TE = model.embed(ids_T)
    place_N = visual_T.nonzero()[:, 0].to(embed_TE.device)
    if len(place_N) != sum(film.level_LNE.shape[1] for film in films):
        raise ValueError(f"the row has {len(place_N)} visual places, its {len(films)} films do not fill them")
    if not films:
        return embed_TE, None
    level_LNE = torch.cat([film.level_LNE for film in films], dim=1).to(embed_TE.device, embed_TE.dtype)
    embed_TE = embed_TE.index_copy(0, place_N, level_LNE[0])
    return embed_TE, level_LNE[1:] if len(level_LNE) > 1 else None


def gather(model: Model, store: FeatureStore, row: PrefixRow) -> tuple[Tensor, Tensor | None]:
    """`fill` for a row whose features are in the store."""
    return fill(model, row.ids_T, row.visual_T, [store.get(handle) for handle in row.features if handle is not None])
