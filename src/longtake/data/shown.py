"""What a row shows: a film and which frames of it, one picture, or nothing. Keys of pictures: LLaVA, Video-R1."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from longtake.data.fields import FILM, LOOK, film_of, first, policy_of
from longtake.data.jsonrows import Malformed
from longtake.records import FramePolicy

FILMS = (".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi")
PICTURE = FramePolicy(seconds=(0.0,), image=True)
Shown = tuple[str | None, FramePolicy | None]  # path as written, and what the row itself says of frames and size


def shown_of(holder: dict[str, Any]) -> Shown:
    """What a row or one part of a turn shows. Raises Malformed."""
    pictures = holder.get("image")
    if pictures in (None, "") and isinstance(holder.get("images"), list) and len(holder["images"]) == 1:
        pictures = holder["images"]
    film = first(holder, FILM)
    if holder.get("data_type") == "image":
        pictures = film if pictures in (None, "", []) else pictures
    elif pictures not in (None, "", []) and film is not None:
        raise Malformed("a film and a picture", "give one of the two")
    if pictures in (None, "", []):
        return film_of(holder), policy_of(holder)
    return _path(pictures), _policy(holder)


def _path(given: Any) -> str:
    """Path of the one picture."""
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, list):
        raise Malformed(f"{len(given)} pictures, where one is needed", "give a row for each, or join them to one")
    if isinstance(given, bool) or not isinstance(given, str | int):
        raise Malformed(f"the picture must be the path of a file, not {given!r:.60}", "save it and give the path")
    name = str(given).removeprefix("file://")
    if name.lower().endswith(FILMS):
        raise Malformed(f"{name:.80} is a film, not a picture", 'say "video", or "data_type": "video"')
    if "://" in name:
        raise Malformed(f"the picture is a web address: {name:.80}", "download it and give the path")
    return name


def _policy(holder: dict[str, Any]) -> FramePolicy:
    idle = sorted(key for key in (LOOK | {"sample_fps"}) - {"max_pixels"} if holder.get(key) is not None)
    if idle:
        raise Malformed(f"{idle[0]!r} has no effect on a picture", "leave it out")
    own = policy_of(holder)
    return replace(PICTURE, max_pixels=own.max_pixels if own else None)
