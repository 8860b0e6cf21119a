"""Questions back into canonical rows, for files that a stage hands to the next."""

from __future__ import annotations

import os
from itertools import groupby
from pathlib import Path
from typing import Any

from longtake.data.readers import drafts
from longtake.records import FramePolicy, Question, Span

KEYS = {
    "frames": "nframes",
    "fps": "fps",
    "max_frames": "max_frames",
    "start": "video_start",
    "end": "video_end",
    "max_pixels": "max_pixels",
    "pick": "pick",
    "budget": "budget",
}
OTHERS = ("messages", "conversations", "weight", "image", "images", "data_type")  # said by `messages` in the new row


def canonical(question: Question, folder: Path, answer: str | None = None) -> dict[str, Any]:
    """The row of a question for a file in `folder`: paths are relative to it. Unknown keys of its own row are kept.

    answer: the assistant turn; without it those that the row has to learn from, if any.
    """
    content: list[dict[str, Any]] = []
    if question.video is not None:
        kind = "image" if question.policy and question.policy.image else "video"
        path = os.path.relpath(question.video, folder)
        content.append({"type": kind, kind: path, **_video_keys(question.policy)})
    content.append({"type": "text", "text": question.text})
    row = {key: value for key, value in question.row.items() if key not in OTHERS}
    if isinstance(row.get("subtitles"), str):
        row["subtitles"] = os.path.relpath(row["subtitles"], folder)
    told = [_turn("assistant", (Span(answer),))] if answer is not None else _told(question)
    known = {
        "id": question.id,
        "messages": [{"role": "user", "content": content}, *told],
        "options": list(question.options),
        "answer": question.answer,
        "kind": question.kind,
        "hops": question.hops,
        "evidence": [list(e) for e in question.evidence],
    }
    return row | known


def _told(question: Question) -> list[dict[str, Any]]:
    """The turns after the first of the row that the question was read from, weights multiplied out."""
    if not question.row:
        return []
    targets = next(drafts(question.row, question.id)).targets
    return [_turn(role, tuple(spans)) for role, spans in groupby(targets[0] if targets else (), lambda s: s.role)]


def _turn(role: str, spans: tuple[Span, ...]) -> dict[str, Any]:
    if role == "user" or (len(spans) == 1 and spans[0].weight == 1.0):
        return {"role": role, "content": spans[0].text}
    parts = [{"type": "text", "text": span.text, "weight": span.weight} for span in spans]
    return {"role": role, "content": parts}


def _video_keys(policy: FramePolicy | None) -> dict[str, Any]:
    """The policy in the words of qwen-vl-utils."""
    if policy is None:
        return {}
    return {key: value for name, key in KEYS.items() if (value := getattr(policy, name)) not in (None, 0.0)}
