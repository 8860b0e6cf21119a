"""How a film of pictures is written, as a shell would expand it; without looking at the disk where braces are given.

    frames/v7                         all pictures of the folder, in natural order: 2.jpg before 10.jpg
    frames/v7/{0001..0050}.jpg        these 50, in this order; or {0001,0003,0002}
    frames/v7#fps=0.5                 either of them at half a picture a second, not at 2
    frames/v7/3.jpg                   a film of one frame

N pictures. Read by data.pictures; no decoder is needed here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
RATE = 2.0  # pictures a second where none is stated: what LLaVA-NeXT-Video and qwen-vl-utils take
_RATED = re.compile(r"(.+)#fps=(\d+(?:\.\d+)?)")
_NUMBERED = re.compile(r"(.*?)(\d+)(\D+)")
_BRACES = re.compile(r"([^{}]*)\{([^{}]+)\}([^{}]*)")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def is_picture(name: str) -> bool:
    """By its ending."""
    return name.lower().endswith(PICTURES)


def rated(path: str, rate: float) -> str:
    """The film of pictures at `rate` pictures a second."""
    return path if rate == RATE else f"{path}#fps={rate:g}"


def is_rated(path: str) -> bool:
    """Whether it ends in a rate: then it is a film of pictures."""
    return _RATED.fullmatch(path) is not None


def written(files: Sequence[str], rate: float | None = None) -> str:
    """The path of the film of these picture files, in their order. Raises ValueError if one path cannot say it.

    Example: written(["v7/f08.jpg", "v7/f09.jpg", "v7/f10.jpg"], 1.0) == "v7/f{08..10}.jpg#fps=1".
    """
    folders = {os.path.dirname(file) for file in files}
    if len(folders) != 1:
        raise ValueError(f"the pictures lie in {len(folders)} folders")
    names = [os.path.basename(file) for file in files]
    wrong = [name for name in names if not is_picture(name) or set(name) & set("{},")]
    if len(names) < 2 or wrong:
        raise ValueError(f"{wrong[0]!r:.60} is no name of a picture" if wrong else "one picture is no film")
    before, after = "", os.path.splitext(names[0])[1]
    inner = [name.removesuffix(after) for name in names]
    around = {(match[1], match[3]) for name in names if (match := _NUMBERED.fullmatch(name))}
    if len(around) == 1 and all(map(_NUMBERED.fullmatch, names)):
        before, after = around.pop()
        inner = [name[len(before) : -len(after)] for name in names]
    if any(not name.endswith(after) for name in names):
        raise ValueError("the pictures are of several formats")
    short = f"{inner[0]}..{inner[-1]}"
    name = f"{before}{{{short if _expanded(short) == inner else ','.join(inner)}}}{after}"
    return rated(os.path.join(folders.pop(), name), RATE if rate is None else rate)


@dataclass(frozen=True, slots=True)
class Album:
    """The pictures that a film's path means. Example: Album(("v7/1.jpg", "v7/2.jpg"), 2.0)."""

    files: tuple[str, ...]  # [N]
    rate: float  # a second


def album(path: Path | str) -> Album | None:
    """The pictures of a path in one of the forms above, None if it is in none of them. A folder may hold none."""
    text = str(path)
    rated = _RATED.fullmatch(text)
    body, rate = (rated[1], float(rated[2])) if rated else (text, RATE)
    folder, name = os.path.split(body)
    braces = _BRACES.fullmatch(name)
    if braces and is_picture(braces[3]) and not os.path.isfile(text):
        files = [os.path.join(folder, braces[1] + inner + braces[3]) for inner in _expanded(braces[2])]
    elif os.path.isdir(body):
        names = [name for name in os.listdir(body) if is_picture(name) and not name.startswith(".")]
        files = [os.path.join(body, name) for name in sorted(names, key=_natural)]
    elif is_picture(body):
        files = [body]
    else:
        return None
    return Album(tuple(files), rate)


def _expanded(inside: str) -> list[str]:
    """What stands between braces, as bash expands it: a range, padded if an end is, else parts between commas."""
    ends = _RANGE.fullmatch(inside)
    if not ends:
        return inside.split(",")
    padded = any(end[0] == "0" and len(end) > 1 for end in ends.groups())
    width = max(map(len, ends.groups())) if padded else 0
    first, last = int(ends[1]), int(ends[2])
    step = 1 if last >= first else -1
    return [f"{number:0{width}d}" for number in range(first, last + step, step)]


def _natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """2.jpg before 10.jpg; names that differ in zeros alone by their letters."""
    parts = re.split(r"(\d+)", name.lower())
    return [(int(part), "") if i % 2 else (0, part) for i, part in enumerate(parts)], name
