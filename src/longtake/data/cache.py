"""The frame tier: every film decoded once into a folder of uint8 frames, and the list of films that could not be.

The folder holds `<content hash>.safetensors` for each film, `films.jsonl` (which file has which content: spares reading
it again) and `decodes.jsonl` (one line a decode). Any number of processes may share it; killing one at any moment
leaves whole files. F frames.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from longtake.data import tierfile
from longtake.data.frames import Chosen, check, choose
from longtake.data.pictures import decoder_of, film_stamp
from longtake.data.quarantine import Quarantine
from longtake.data.tierfile import Damaged, Part, Shelf, Stored
from longtake.data.video import Decoder, FileStamp, PyAV, Size, VideoError
from longtake.data.workers import Fit, complete_in_processes
from longtake.errors import UserError
from longtake.log import append_jsonl, read_jsonl, writing
from longtake.log.lock import locked
from longtake.records import Film, FramePolicy, Receipt

__all__ = ["FrameTier", "Quarantine"]

Progress = Callable[[int, int], None]  # films done, films in all


class FrameTier:
    """Decoded frames on disk, and the receipts that say which they are."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self._decoder: Decoder = PyAV()
        with writing(self.folder):
            (self.folder / "locks").mkdir(parents=True, exist_ok=True)
        self._films: dict[FileStamp, Film] = {}
        self.recall()

    def film(self, path: Path | str) -> Film:
        """What the film is; opened only if its size or date has changed since any process asked. Raises VideoError."""
        stamp = film_stamp(path)
        if stamp not in self._films:
            self._films[stamp] = film = decoder_of(path, self._decoder).probe(path)
            row = {"path": stamp[0], "size": stamp[1], "mtime": stamp[2], "film": asdict(film)}
            with self._lock("films"):
                append_jsonl(self.folder / "films.jsonl", row)
        return replace(self._films[stamp], path=str(path))

    def fill(
        self,
        wants: Mapping[Path, Sequence[FramePolicy]],
        fit: Fit,
        workers: int = 2,
        quarantine: Quarantine | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Decode each film once for all its policies, in `workers` processes (0 = in this one); skip what is there.

        A film that fails goes to the quarantine; without one its VideoError is raised. Raises UserError for a policy
        that is wrong for every film and for a full disk.
        """
        for policy in {policy for policies in wants.values() for policy in policies}:
            check(policy)
        todo = {path: list(policies) for path, policies in wants.items() if not self._ready(path, policies, fit)}
        done = len(wants) - len(todo)
        for path in wants.keys() - todo.keys():
            _settle(path, None, quarantine)
        outcomes: Generator[tuple[Path, VideoError | None], None, None]
        if workers and todo:
            outcomes = complete_in_processes(self.folder, todo, fit, min(workers, len(todo)))
        else:
            outcomes = ((path, self._attempt(path, policies, fit)) for path, policies in todo.items())
        with closing(outcomes):
            for path, error in outcomes:
                _settle(path, error, quarantine)
                done += 1
                if progress:
                    progress(done, len(wants))
        self.recall()

    def take(
        self, path: Path | str, policy: FramePolicy, fit: Fit, temporal_patch: int = 1, places: Sequence[int] = ()
    ) -> tuple[np.ndarray, Receipt]:
        """Frames as uint8 [F, H, W, 3] RGB, the last one repeated to a multiple of `temporal_patch`, and their receipt.

        `places`: which of the receipt's frames, in which order; () = all of them.
        Frames that are not in the tier are decoded, kept and counted. Raises VideoError for a film that cannot be read
        or that the policy does not fit, UserError for a full disk.
        """
        for _ in range(3):  # a damaged file is made again; one that another process replaced meanwhile is read again
            part, receipt = self._look(path, policy, fit, temporal_patch)
            try:
                wanted = [receipt.indices[place] for place in places or range(len(receipt.indices))]
                return tierfile.pixels(self._file(receipt.content), part, wanted), receipt
            except Damaged:
                self.complete(path, [policy], fit, doubted=True)
        fix = "check the disk, then delete this folder"
        raise UserError("the frame tier is damaged again and again", where=str(self.folder), fix=fix)

    def receipt(self, path: Path | str, policy: FramePolicy, fit: Fit, temporal_patch: int = 1) -> Receipt:
        """The receipt that `take` would give, without reading pixels."""
        return self._look(path, policy, fit, temporal_patch)[1]

    def foreseen(self, path: Path | str, policy: FramePolicy, fit: Fit, temporal_patch: int = 1) -> Receipt:
        """Like `receipt`, before anything is decoded, with the times that are wanted. Raises VideoError."""
        film, decoder = self.film(path), decoder_of(path, self._decoder)
        stored, _ = _read(self._file(film.content))
        times_N = stored.times_N if stored else decoder.times(film)
        chosen, size = _plan(film, replace(policy, pick=None), times_N, None, fit)
        part = Part(size, chosen.indices, chosen.seconds, ())
        return replace(_receipt(film, decoder.name, chosen, part, temporal_patch), image=policy.image)

    def decodes(self) -> dict[str, int]:
        """How often each content was decoded into this folder, by any process, ever.

        A decode counts once its frames are kept: one that was killed before left nothing and is not told from none.
        """
        counts = Counter(row["content"] for row in self._rows("decodes.jsonl"))
        kept = {file.stem: 1 for file in self.folder.glob("*.safetensors")}  # killed between keeping and noting
        return kept | dict(counts)

    def repairs(self) -> int:
        """How many of those decodes were needed because a file of the tier was damaged."""
        return sum(bool(row["damage"]) for row in self._rows("decodes.jsonl"))

    def complete(self, path: Path | str, policies: Sequence[FramePolicy], fit: Fit, doubted: bool = False) -> None:
        """Decode what of these policies is missing; `doubted` checks every stored pixel first. Raises VideoError."""
        film = self.film(path)
        file, decoder = self._file(film.content), decoder_of(path, self._decoder)
        with self._lock(film.content[:2]):
            stored, damage = _read(file)
            times_N = stored.times_N if stored else decoder.times(film)
            key_N, known = stored.key_N if stored else None, _tells(stored, policies)
            if not known and _by_keys(policies):
                key_N = decoder.keys(film)
            wanted = _wanted(film, policies, times_N, key_N, fit)
            if known and _enough(stored, wanted, decoder) and not doubted:
                return
            kept: dict[Size, Shelf] = {}
            if stored and stored.backend == decoder.name:  # frames of two decoders are never mixed
                try:
                    kept = {part.size: tierfile.shelf(file, part) for part in stored.parts}
                except Damaged as error:
                    damage = str(error)
            for part in stored.parts if stored else ():
                wanted.setdefault(part.size, set()).update(part.indices)
            need = {
                size: sorted(indices.difference(kept[size].indices if size in kept else ()))
                for size, indices in wanted.items()
            }
            need = {size: indices for size, indices in need.items() if indices}
            if known and not need:
                return
            clips = decoder.decode_many(film, [(indices, size) for size, indices in need.items()])
            row = {"content": film.content, "path": film.path, "damage": damage}
            for (size, indices), (frames, seconds) in zip(need.items(), clips, strict=True):
                fresh = Shelf(tuple(indices), seconds, frames)
                kept[size] = kept[size].with_more(fresh) if size in kept else fresh
            tierfile.write(file, film, decoder.name, times_N, key_N, kept)
            if need:
                with self._lock("decodes"):
                    append_jsonl(self.folder / "decodes.jsonl", row)

    def _look(self, path: Path | str, policy: FramePolicy, fit: Fit, temporal_patch: int) -> tuple[Part, Receipt]:
        film = self.film(path)
        stored, _ = _read(self._file(film.content))
        for _ in range(2):
            if stored and _tells(stored, [policy]):
                chosen, size = _plan(film, policy, stored.times_N, stored.key_N, fit)
                part = stored.part(size)
                if part and _enough(stored, {size: set(chosen.indices)}, decoder_of(path, self._decoder)):
                    receipt = _receipt(film, stored.backend, chosen, part, temporal_patch)
                    if policy.image:  # which has no rate either
                        receipt = replace(receipt, image=True, backend=receipt.backend.partition(",")[0])
                    return part, receipt
            self.complete(path, [policy], fit)
            stored, _ = _read(self._file(film.content))
        raise UserError(
            "another process keeps changing the frame tier", where=str(self.folder), fix="give each its own"
        )

    def _ready(self, path: Path, policies: Sequence[FramePolicy], fit: Fit) -> bool:
        """Whether nothing of these policies is missing, as far as can be told without opening the film."""
        try:
            film = self._films.get(film_stamp(path))
            stored = _read(self._file(film.content))[0] if film else None
            if film is None or stored is None or not _tells(stored, policies):
                return False
            wanted = _wanted(film, policies, stored.times_N, stored.key_N, fit)
            return _enough(stored, wanted, decoder_of(path, self._decoder))
        except VideoError:
            return False  # whoever tries to complete the film says why

    def _attempt(self, path: Path, policies: Sequence[FramePolicy], fit: Fit) -> VideoError | None:
        try:
            self.complete(path, policies, fit)
        except VideoError as error:
            return error
        return None

    def _file(self, content: str) -> Path:
        return self.folder / f"{content}.safetensors"

    def _rows(self, name: str) -> list[dict[str, Any]]:
        return read_jsonl(self.folder / name) if (self.folder / name).exists() else []

    def recall(self) -> None:
        """Takes in which films other processes have opened."""
        for row in self._rows("films.jsonl"):
            self._films[row["path"], row["size"], row["mtime"]] = Film(**row["film"])

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """One holder at a time, thread or process; the system lifts the lock of a process that dies."""
        path = self.folder / "locks" / name
        with ExitStack() as held:
            with writing(path):
                held.enter_context(locked(path))
            yield


def _plan(
    film: Film, policy: FramePolicy, times_N: np.ndarray | None, key_N: np.ndarray | None, fit: Fit
) -> tuple[Chosen, Size]:
    """Frames and their size. A policy that does not fit this film is the film's failure: VideoError."""
    try:
        chosen = choose(film, policy, times_N, key_N)
        frames = None if policy.image else len(chosen.indices)
        return chosen, fit(film.width, film.height, frames, policy.max_pixels)
    except UserError as error:
        raise VideoError(error.what, where=error.where or film.path, why=error.why, fix=error.fix) from error


def _by_keys(policies: Sequence[FramePolicy]) -> bool:
    return any(policy.pick == "keyframes" for policy in policies)


def _tells(stored: Stored | None, policies: Sequence[FramePolicy]) -> bool:
    """Whether these policies become frames by what is stored, without the film."""
    return stored is not None and (stored.key_N is not None or not _by_keys(policies))


def _enough(stored: Stored | None, wanted: Mapping[Size, set[int]], decoder: Decoder) -> bool:
    return stored is not None and stored.backend == decoder.name and stored.holds(wanted)


def _wanted(
    film: Film, policies: Sequence[FramePolicy], times_N: np.ndarray | None, key_N: np.ndarray | None, fit: Fit
) -> dict[Size, set[int]]:
    wanted: dict[Size, set[int]] = {}
    for policy in policies:
        chosen, size = _plan(film, policy, times_N, key_N, fit)
        wanted.setdefault(size, set()).update(chosen.indices)
    return wanted


def _receipt(film: Film, backend: str, chosen: Chosen, part: Part, temporal_patch: int) -> Receipt:
    padded = -len(chosen.indices) % temporal_patch
    indices = chosen.indices + chosen.indices[-1:] * padded
    when = dict(zip(part.indices, part.seconds, strict=True))
    return Receipt(
        path=film.path,
        content=film.content,
        indices=indices,
        seconds=tuple(when[i] for i in indices),
        width=part.size[0],
        height=part.size[1],
        backend=backend,
        padded=padded,
        tokens=0,
        cut=chosen.cut,
    )


def _read(file: Path) -> tuple[Stored | None, str]:
    """What is stored, and what is wrong with it if it cannot be used."""
    try:
        return tierfile.read(file), ""
    except Damaged as error:
        return None, str(error)


def _settle(path: Path, error: VideoError | None, quarantine: Quarantine | None) -> None:
    if quarantine is None:
        if error:
            raise error
    elif error:
        quarantine.add(path, error.what + (f": {error.why}" if error.why else ""), error.fix)
    else:
        quarantine.release(path)
