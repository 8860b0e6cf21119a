"""Films shared out over ranks: each decodes some of them, and sends some frames through the vision tower.

What the tower makes of frames is gathered, and every rank makes of that what the language model reads. Pixels are never
gathered, and no rank sees more of a film than its share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch

from longtake.data.cache import FrameTier, Progress, Quarantine
from longtake.data.workers import Fit
from longtake.errors import UserError
from longtake.parallel.axis import Axis
from longtake.parallel.exchange import gathered
from longtake.protocols import Model
from longtake.records import Features, FramePolicy

T = TypeVar("T")


class Frames(Protocol):
    """Reads frames of a film from disk, all or some; a picture is its one frame."""

    def __call__(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """uint8 [F, H, W, 3], or [H, W, 3] of a picture for a model with `stills`."""


@dataclass(frozen=True, slots=True)
class Request:
    """One set of frames to encode. Example: Request(store.key(receipt), 64 * 32 * 32, load, (64, 32, 32, 3))."""

    key: str
    pixels: int  # of all its frames
    frames: Frames
    shape: tuple[int, ...] = ()  # of all of them; needed where ranks share them

    @property
    def count(self) -> int:
        """How many frames."""
        return self.shape[0] if len(self.shape) == 4 else 1


@dataclass(frozen=True, slots=True)
class Part:
    """Frames of a film that one rank encodes. Example: Part(0, 16, 32)."""

    film: int  # its place in the list
    start: int
    stop: int


def shares(films: Sequence[Request], patch: int, ranks: int) -> list[list[Part]]:
    """[ranks] what each encodes: neighbouring temporal patches of `patch` frames, about equally many pixels.

    All pixels lie in a row, cut into equal lengths; a temporal patch goes where its middle lies.
    """
    starts = [0, *accumulate(film.pixels for film in films)]
    found: list[list[Part]] = [[] for _ in range(ranks)]
    for number, film in enumerate(films):
        patches = -(-film.count // patch)
        for n in range(patches):
            middle = 2 * patches * starts[number] + (2 * n + 1) * film.pixels
            own = found[middle * ranks // (2 * patches * starts[-1])]
            start = own.pop().start if own and own[-1].film == number else n * patch
            own.append(Part(number, start, min((n + 1) * patch, film.count)))
    return found


def encoded(model: Model, films: Sequence[Request], axis: Axis, *, apart: bool = False) -> tuple[list[Features], int]:
    """Features of films, on every rank, and how many frames this rank sent through the tower.

    apart: each film is cut and goes through the tower by itself, so that its bits do not depend on the others.

    All ranks of the axis call, with the same films. Differentiable in grad mode: the tower's gradients on a rank are
    those of its own frames, for the losses of all ranks. Raises UserError on all of them if one cannot read its frames.
    """
    frames: list[np.ndarray] = []
    if axis.size == 1:
        frames += [film.frames() for film in films]
        return model.encode(frames), sum(len(each) if each.ndim == 4 else 1 for each in frames)
    parts = shares(films, model.temporal_patch, axis.size) if not apart else _each(films, model, axis.size)
    own = parts[axis.index]
    together(axis, lambda: frames.extend(films[part.film].frames(part.start, part.stop) for part in own))
    seen = [rows for one in frames for rows in model.seen([one])] if apart else model.seen(frames)
    kind = (seen[0].shape[1:], seen[0].dtype, seen[0].requires_grad) if seen else None
    told = axis.gather(([len(rows) for rows in seen], kind))
    shape, dtype, learns = next(kind for _, kind in told if kind)
    nothing = torch.empty((0, *shape), dtype=dtype, device=model.net.device, requires_grad=learns)
    every = gathered(torch.cat(seen) if seen else nothing, [sum(rows) for rows, _ in told], axis)
    pieces: list[list[torch.Tensor]] = [[] for _ in films]
    counts = list(chain(*(rows for rows, _ in told)))
    for part, piece in zip(chain(*parts), every.split(counts), strict=True):
        pieces[part.film].append(piece)  # ranks follow one another in a film
    made = [model.read(torch.cat(own), film.shape) for own, film in zip(pieces, films, strict=True)]
    return made, sum(part.stop - part.start for part in own)


def _each(films: Sequence[Request], model: Model, ranks: int) -> list[list[Part]]:
    """[ranks] the shares of every film, cut by itself."""
    found: list[list[Part]] = [[] for _ in range(ranks)]
    for number, film in enumerate(films):
        for own, parts in zip(found, shares([film], model.temporal_patch, ranks), strict=True):
            own += [Part(number, part.start, part.stop) for part in parts]
    return found


def decoded(
    tier: FrameTier,
    films: Sequence[Path],
    policies: Callable[[Path], Sequence[FramePolicy]],
    fit: Fit,
    workers: int,
    quarantine: Quarantine,
    progress: Progress,
    axis: Axis,
) -> None:
    """As `FrameTier.fill`, every film by one of the ranks, in `workers` processes of all of them together.

    All ranks call, with the same films; afterwards each knows what failed, and the first alone has written it down.
    `policies` of a film may open it: a rank asks for its own.
    """
    quarantine.written = axis.leads

    def fill() -> list[tuple[str, str, str]]:
        own = {film: policies(film) for film in films[axis.index :: axis.size]}
        tier.fill(own, fit, -(-workers // axis.size), quarantine, lambda done, _: progress(done, len(films)))
        return [(film.path, film.reason, film.fix) for film in quarantine.films() if Path(film.path) in own]

    failed = {film[0]: film for each in together(axis, fill) for film in each}
    for path in map(str, films):
        if path in failed:
            quarantine.add(*failed[path])
        else:
            quarantine.release(path)
    tier.recall()
    progress(len(films), len(films))


def together(axis: Axis, work: Callable[[], T]) -> list[T]:
    """[ranks] what `work` gave on each. If it raised a UserError on one, all of them raise it: none waits for ever."""
    try:
        said: tuple[T | None, UserError | None] = work(), None
    except UserError as error:
        said = None, error
    every = axis.gather(said)
    for _, trouble in every:
        if trouble:
            raise trouble
    return [found for found, _ in every]  # type: ignore[misc]
