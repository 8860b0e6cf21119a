"""Single fields of a row, each with its rule: id, kind, hops, evidence, weights, the film and how it is looked at."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from longtake.data.album import is_picture, is_rated, rated, written
from longtake.data.jsonrows import Malformed
from longtake.records import FramePolicy, Pick, Span

ID = ("id", "problem_id", "question_id", "uid", "q_uid", "qid")
FILM = ("video", "videos", "path", "video_path", "videoID", "video_id", "video_name", "key")
KIND = ("kind", "task_type", "question_type", "question_category", "problem_type", "data_source", "src_data")
SHAPES = {
    "multiple choice",
    "numerical",
    "ocr",
    "free-form",
    "regression",
    "general",
    "open-ended",
}  # of answers: no kind
LOOK = {
    "nframes",
    "fps",
    "max_frames",
    "video_start",
    "video_end",
    "max_pixels",
    "pick",
    "budget",
}  # most from qwen-vl-utils
PICKS = get_args(Pick)
LOOK_TOO = {
    "min_frames",
    "min_pixels",
    "total_pixels",
    "resized_height",
    "resized_width",
    "raw_fps",
}  # refused
_ENDING = re.compile(r"\.\d?[A-Za-z][A-Za-z0-9]{1,4}$")  # of a file's name; "0.0_20.5" has none


def first(row: dict[str, Any], keys: Sequence[str]) -> Any:
    """The value of the first key that the row has and that says something."""
    return next((row[key] for key in keys if row.get(key) is not None and row[key] != ""), None)


def id_of(row: dict[str, Any], fallback: str) -> str:
    value = first(row, ID)
    if value is None:
        return fallback
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Malformed(f"the id must be text or a number, not {value!r:.60}")
    return str(value)


def kind_of(row: dict[str, Any]) -> str:
    """First of the KIND keys that names a kind of question; a list of kinds is joined with `+`."""
    for key in KIND:
        value = row.get(key)
        named = "+".join(map(str, value)) if isinstance(value, list) else str(value or "")
        if named and named.lower() not in SHAPES:
            return named
    return ""


def hops_of(row: dict[str, Any]) -> int:
    value = row.get("hops") or 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise Malformed(f"`hops` must be a whole number from 0 on, not {value!r:.40}")
    return value


def evidence_of(row: dict[str, Any]) -> tuple[tuple[float, float], ...]:
    """[[start, stop], …] in seconds. Other things called evidence are left in the row."""
    value = row.get("evidence")
    if not isinstance(value, list):
        return ()
    spans = []
    for pair in value:
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(is_number(second) for second in pair)
            and pair[0] <= pair[1]
        ):
            raise Malformed(f"`evidence` must be pairs [start, stop] in seconds, not {pair!r:.40}")
        spans.append((float(pair[0]), float(pair[1])))
    return tuple(spans)


def weight_of(holder: dict[str, Any], where: str) -> float:
    value = holder.get("weight", 1.0)
    if not is_number(value) or value < 0:
        raise Malformed(f"the weight of {where} must be a number from 0 on, not {value!r:.40}")
    return float(value)


def spans_of(content: Any, weight: float) -> tuple[Span, ...]:
    """An assistant turn: its text, or text parts with weights; empty parts fall away. `weight` multiplies all."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list):
        raise Malformed(f"the assistant turn must be text or text parts, not {content!r:.60}")
    spans = []
    for part in parts:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise Malformed(f"the assistant turn may hold text parts only, not {part!r:.60}")
        if part["text"]:
            spans.append(Span(part["text"], weight * weight_of(part, "a part")))
    if not any(span.text.strip() for span in spans):
        raise Malformed("the assistant turn is empty")
    return tuple(spans)


def film_of(holder: dict[str, Any]) -> str | None:
    """Path of the film as written, None where no key names one; frames as in data.album, see `located`.

    A list of two pictures or more, as `video` (qwen-vl-utils) or `images` (VLM-RLAIF), is a film of these frames.
    """
    value, rate = first(holder, FILM), holder.get("sample_fps")
    if value is None and isinstance(holder.get("images"), list):
        value = holder["images"] or None
        _check_one_place(holder, len(holder["images"]))
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return None
    if rate is not None and not (is_number(rate) and rate > 0):
        raise Malformed(f"'sample_fps' must be a number above 0, not {rate!r:.40}")
    if isinstance(value, list | tuple):
        return _frames(value, rate)
    name = _path_of(value, "film")
    if rate is not None and _ENDING.search(name):
        raise Malformed("'sample_fps' has no effect on a film that says its own times", "leave it out")
    return name if rate is None else rated(name, rate)


def located(root: Path, film: str) -> str:
    """Where a film named by `film_of` lies. A name without ending is a folder of frames, else an .mp4 (Video-MME)."""
    path = str(root / film)
    return path if _ENDING.search(path) or is_rated(path) or os.path.exists(path) else path + ".mp4"


def _frames(pictures: Sequence[Any], rate: float | None) -> str:
    names = [_path_of(picture, "frame") for picture in pictures]
    if not all(is_picture(name) for name in names):
        raise Malformed(f"{len(names)} films or images, where one film is needed")
    try:
        return written(names, rate)
    except ValueError as error:
        raise Malformed(f"these frames are no film: {error}", "keep the frames of each film in a folder") from None


def _path_of(value: Any, what: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise Malformed(f"the {what} must be the path of a file, not {value!r:.60}", "save it and give its path")
    name = str(value).removeprefix("file://")
    if "://" in name:
        raise Malformed(f"the {what} is a web address: {name:.80}", "download it and give the path")
    return name


def _check_one_place(row: dict[str, Any], pictures: int) -> None:
    """Raises Malformed where several pictures stand at several places of the text: they are no frames of one film."""
    turns = row.get("conversations")
    places = [str(turn).count("<image>") for turn in turns] if isinstance(turns, list) else []
    if pictures > 1 and sum(places) > 1:
        raise Malformed(f"{pictures} pictures at {sum(places)} places of the text", "one film or picture a row")


def policy_of(part: dict[str, Any]) -> FramePolicy | None:
    """The row's own frame rate or window; None if it names none. A window alone leaves frames and fps open (None)."""
    refused = sorted(LOOK_TOO & part.keys())
    if refused:
        raise Malformed(
            f"{refused[0]!r} of the video part has no effect here", f"leave it out; known: {', '.join(sorted(LOOK))}"
        )
    given = {key: part[key] for key in LOOK if part.get(key) is not None}
    if not given:
        return None
    for key, value in given.items():
        if key == "pick":
            if value not in PICKS:
                raise Malformed(f"'pick' must be {' or '.join(PICKS)}, not {value!r:.40}")
            continue
        whole = key in ("nframes", "max_frames", "max_pixels", "budget")
        if (
            not is_number(value)
            or (whole and value != int(value))
            or value < 0
            or (value == 0 and key != "video_start")
        ):
            raise Malformed(f"{key!r} must be a {'whole ' if whole else ''}number above 0, not {value!r:.40}")
    if "nframes" in given and "fps" in given:
        raise Malformed("'nframes' and 'fps' are both given", "leave one out")
    start, end = float(given.get("video_start", 0.0)), given.get("video_end")
    if end is not None and end <= start:
        raise Malformed(f"the window ends at {end} s, not after its start at {start} s")
    return FramePolicy(
        frames=int(given["nframes"]) if "nframes" in given else None,
        fps=float(given["fps"]) if "fps" in given else None,
        max_frames=int(given["max_frames"]) if "max_frames" in given else None,
        start=start,
        end=None if end is None else float(end),
        max_pixels=int(given["max_pixels"]) if "max_pixels" in given else None,
        pick=given.get("pick"),
        budget=int(given["budget"]) if "budget" in given else None,
    )


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
