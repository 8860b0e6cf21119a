"""Subtitles of a film: .srt and .vtt files, or lists in the rows; those of the window that is looked at are read.

They stand before the question, a line each with the second at which it begins, as "[12.3s] Where is the ball?".
"""

from __future__ import annotations

import html
import math
import re
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from longtake.data.fields import is_number
from longtake.data.jsonrows import Malformed
from longtake.records import Cue, FramePolicy, Question

ENDINGS = (".srt", ".vtt")
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[.,](\d{1,3})"
_TIMES = re.compile(rf"{_TIME}\s*-->\s*{_TIME}(?:\s.*)?")  # settings of the place may follow
_TAG = re.compile(r"<[^<>\n]*>|\{\\[^{}\n]*\}")  # <i>, <v Ann>, <00:01.500>; {\an8}
_BESIDE = ("WEBVTT", "NOTE", "STYLE", "REGION")  # blocks of a .vtt that are no cues
FIX = "mend the subtitles, or take the key out of the row"


def subtitles_of(value: Any, root: Path) -> tuple[Cue, ...]:
    """What a row's key `subtitles` says: the path of a file, from `root` on, or a list of {start, end, text}.

    Raises Malformed.
    """
    if isinstance(value, str):
        path = root / value
        if path.suffix.lower() not in ENDINGS:
            raise Malformed(f"the subtitles {value:.80} are no {' or '.join(ENDINGS)} file", FIX)
        return _file(path)
    if not isinstance(value, list):
        raise Malformed(f"`subtitles` must be a path or a list of {{start, end, text}}, not {value!r:.40}", FIX)
    return tuple(cue for one in value if (cue := _listed(one)) is not None)


def _listed(one: Any) -> Cue | None:
    if not isinstance(one, dict) or not all(is_number(one.get(key)) for key in ("start", "end")):
        raise Malformed(f"a subtitle must have start, end and text, not {one!r:.60}", FIX)
    if not isinstance(one.get("text"), str):
        raise Malformed(f"a subtitle must have a text, not {one!r:.60}", FIX)
    return _cue(float(one["start"]), float(one["end"]), one["text"], repr(one))


@lru_cache(maxsize=64)  # rows about one film stand together
def _file(path: Path) -> tuple[Cue, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = str(error.strerror).lower() if isinstance(error, OSError) else "it is not UTF-8"
        raise Malformed(f"the subtitles {path} cannot be read: {why}", FIX) from None
    found = []
    for block in re.split(r"\n[ \t]*\n", text.strip()):
        lines = [line.strip() for line in block.strip().splitlines()]
        if not lines or lines[0].startswith(_BESIDE):
            continue
        place = next((n for n, line in enumerate(lines[:2]) if _TIMES.fullmatch(line)), None)  # a number or name before
        if place is None:
            raise Malformed(f"no time in the subtitles {path}: {lines[0]:.60}", FIX)
        match = _TIMES.fullmatch(lines[place])
        assert match is not None
        times, text = match.groups(), html.unescape(_TAG.sub("", " ".join(lines[place + 1 :])))
        cue = _cue(_seconds(times[:4]), _seconds(times[4:]), text, lines[place])
        found += [cue] if cue else []
    if not found:
        raise Malformed(f"no subtitle in {path}", FIX)
    return tuple(found)


def _seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + int(fraction) / 10 ** len(fraction)


def _cue(start: float, end: float, text: str, where: str) -> Cue | None:
    """None for one without text. Raises Malformed."""
    if not 0 <= start <= end:
        raise Malformed(f"a subtitle ends before it begins: {where:.60}", FIX)
    said = " ".join(text.split())
    return Cue(start, end, said) if said else None


def seen(question: Question, policy: FramePolicy) -> tuple[Cue, ...]:
    """Those that are on while the film is looked at: in the policy's window, or from its first second to its last."""
    start, end = policy.start, math.inf if policy.end is None else policy.end
    if policy.seconds is not None:
        start, end = min(policy.seconds), max(policy.seconds)
    return tuple(cue for cue in question.subtitles if cue.end >= start and cue.start <= end)


def told(question: Question, policy: FramePolicy) -> Question:
    """The question as a model reads it that looks at its film so."""
    lines = [f"[{cue.start:.1f}s] {cue.text}" for cue in seen(question, policy)]
    return replace(question, text="\n".join([*lines, question.text])) if lines else question
