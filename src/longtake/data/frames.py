"""Frame policies to plans: which frames of a film are looked at, by one formula, with what was cut said in words.

Every policy becomes times t in seconds from the film's first frame, and each time becomes the frame shown at it:

- `frames=n`: the centres of n equal bins of the window [start, end): t_k = start + (k + 1/2)(end - start)/n
- `fps=f`: the same with n = max(1, floor((end - start) f))
- `seconds`: the times themselves
- frame shown at t: floor(t · rate), at a constant rate; else the last frame that begins at or before t
- `pick="keyframes"`: of the key frames that begin in a bin the one that begins nearest to its centre, the earlier of
  two; the frame shown at the centre where none does.

At a constant rate over a whole film of N frames this is floor((k + 1/2) N / n). Where a policy asks for more frames
than begin in the window, every one of them is taken once. N frames in the film.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from longtake.errors import UserError
from longtake.records import Film, FramePolicy, Pick

GRACE = 1e-6  # of a frame: a time on the border of two frames, up to rounding, belongs to the later one


@dataclass(frozen=True, slots=True)
class Chosen:
    """The frames a policy means. Example: Chosen((1, 3), (0.0625, 0.1875), "")."""

    indices: tuple[int, ...]  # [F] not decreasing
    seconds: tuple[float, ...]  # [F] the times that were wanted; the frames' own begin at or before them
    cut: str  # what the policy asked for and did not get, "" if nothing


def check(policy: FramePolicy) -> None:
    """Refuse a policy that no film could satisfy. Raises UserError."""
    named = {"frames": policy.frames, "fps": policy.fps, "seconds": policy.seconds}
    given = [name for name, value in named.items() if value is not None]
    if len(given) != 1:
        raise UserError(
            f"a frame policy names exactly one of frames, fps and seconds, this one {' and '.join(given) or 'none'}",
            where=str(policy),
            fix="set one of them",
        )
    window = policy.start != 0 or policy.end is not None
    if policy.seconds is not None and (window or policy.max_frames is not None or policy.pick is not None):
        what = "explicit seconds take no window, no max_frames and no pick"
        raise UserError(what, where=str(policy), fix="leave them out")
    end = math.inf if policy.end is None else policy.end
    if not (math.isfinite(policy.start) and 0 <= policy.start < end):
        raise UserError(
            f"a window must have 0 <= start < end, got {policy.start:g} and {end:g}",
            fix="correct the row or the policy",
        )
    counts = {
        "frames": policy.frames,
        "max_frames": policy.max_frames,
        "max_pixels": policy.max_pixels,
        "budget": policy.budget,
        "fps": policy.fps,
    }
    for name, value in counts.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{name} must be above 0, got {value}", where=str(policy))
    if policy.seconds is not None and not policy.seconds:
        raise UserError("an empty list of seconds chooses no frame", where=str(policy), fix="name at least one time")


def picked(policy: FramePolicy, pick: Pick | None) -> FramePolicy:
    """The policy with the run's pick where it names none; of a picture there is nothing to pick."""
    return policy if pick is None or policy.pick is not None or policy.image else replace(policy, pick=pick)


def choose(
    film: Film, policy: FramePolicy, times_N: np.ndarray | None = None, key_N: np.ndarray | None = None
) -> Chosen:
    """Frames of `film` that `policy` means; `times_N` are the presentation times of its frames, None = constant rate.

    key_N: which of them are key frames, for a policy that picks those.

    Raises UserError for a policy that is wrong in itself or lies outside the film.
    """
    check(policy)
    if policy.seconds is not None:
        return _explicit(film, policy.seconds, times_N)
    start, end, cut = _window(film, policy)
    asked = (
        policy.frames if policy.frames is not None else max(1, math.floor((end - start) * (policy.fps or 0) + GRACE))
    )
    count = asked
    if policy.max_frames is not None and count > policy.max_frames:
        count = policy.max_frames
        why = f": at most {policy.budget} visual tokens" if policy.budget is not None else ""
        cut.append(f"capped at {count} of {asked} frames asked for{why}")
    first, last = (
        _begins(film, start, times_N),
        _begins(film, end, times_N),
    )  # frames first … last - 1 begin in the window
    held = last - first
    if count >= held > 0:
        if count > held:
            cut.append(f"all {held} frames taken where {count} were asked for")
        seconds = [_time(film, i, times_N) for i in range(first, last)]
        return Chosen(tuple(range(first, last)), tuple(seconds), "; ".join(cut))
    if held == 0 and count > 1:
        cut.append(f"one frame taken where {count} were asked for: the window is shorter than a frame")
    count = count if held else 1
    seconds = [start + (k + 0.5) * (end - start) / count for k in range(count)]
    indices = [_shown(film, t, times_N) for t in seconds]
    if policy.pick == "keyframes":
        assert key_N is not None
        keys = _keys(film, [start + k * (end - start) / count for k in range(count + 1)], times_N, key_N)
        for k, key in enumerate(keys):
            if key is not None:
                indices[k], seconds[k] = key, _time(film, key, times_N)
        if without := keys.count(None):
            cut.append(f"no key frame in {without} of {count} bins: the frame at the centre")
    return Chosen(tuple(indices), tuple(seconds), "; ".join(cut))


def _keys(film: Film, borders: list[float], times_N: np.ndarray | None, key_N: np.ndarray) -> list[int | None]:
    """Of each bin between two borders the key frame that begins nearest to its centre; None if none begins in it."""
    keys = [int(i) for i in np.flatnonzero(key_N)]
    found: list[int | None] = []
    for a, b in pairwise(borders):
        first, last = _begins(film, a, times_N), _begins(film, b, times_N)
        inside = keys[bisect_left(keys, first) : bisect_left(keys, last)]
        away = [abs(_time(film, i, times_N) - (a + b) / 2) for i in inside]
        nearest = min(away, default=0.0) + GRACE / film.fps
        found.append(next((i for i, far in zip(inside, away, strict=True) if far <= nearest), None))
    return found


def _explicit(film: Film, seconds: tuple[float, ...], times_N: np.ndarray | None) -> Chosen:
    for t in seconds:
        if not 0 <= t <= film.duration:
            raise UserError(
                f"{t:g} s lies outside the film, which lasts {film.duration:.3f} s",
                where=film.path,
                fix="correct the times",
            )
    ordered = tuple(sorted(seconds))
    return Chosen(tuple(_shown(film, t, times_N) for t in ordered), ordered, "")


def _window(film: Film, policy: FramePolicy) -> tuple[float, float, list[str]]:
    """Start and end inside the film, and what had to be cut."""
    if policy.start >= film.duration:
        raise UserError(
            f"the window starts at {policy.start:g} s, the film ends at {film.duration:.3f} s",
            where=film.path,
            fix="correct the window",
        )
    if policy.end is None:
        return policy.start, film.duration, []
    over = policy.end > film.duration + 1 / film.fps
    cut = [f"window ends with the film at {film.duration:.3f} s, not at {policy.end:g} s"] if over else []
    return policy.start, min(policy.end, film.duration), cut


def _shown(film: Film, t: float, times_N: np.ndarray | None) -> int:
    """The frame on the screen at time t."""
    if times_N is None:
        i = math.floor(t * film.fps + GRACE)
    else:
        i = int(np.searchsorted(times_N, t + GRACE / film.fps, side="right")) - 1
    return min(max(i, 0), film.frames - 1)


def _begins(film: Film, t: float, times_N: np.ndarray | None) -> int:
    """How many frames begin before time t."""
    if times_N is None:
        return min(math.ceil(t * film.fps - GRACE), film.frames)
    return int(np.searchsorted(times_N, t - GRACE / film.fps, side="left"))


def _time(film: Film, i: int, times_N: np.ndarray | None) -> float:
    return i / film.fps if times_N is None else float(times_N[i])
