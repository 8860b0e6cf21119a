"""Questions back into canonical rows, for files that a stage hands to the next."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from longtake.records import FramePolicy, Question

KEYS = {
    "frames": "nframes",
    "fps": "fps",
    "max_frames": "max_frames",
    "start": "video_start",
    "end": "video_end",
    "max_pixels": "max_pixels",
}


def canonical(question: Question, folder: Path) -> dict[str, Any]:
    """The row of a question for a file in `folder`: film paths are relative to it.

    Unknown keys of its own row are kept.
    """
    content: list[dict[str, Any]] = []
    if question.video is not None:
        content.append(
            {"type": "video", "video": os.path.relpath(question.video, folder), **_video_keys(question.policy)}
        )
    content.append({"type": "text", "text": question.text})
    row = {key: value for key, value in question.row.items() if key not in ("messages", "weight")}
    answered = [turn for turn in question.row.get("messages", []) if turn["role"] == "assistant"]
    known = {
        "id": question.id,
        "messages": [{"role": "user", "content": content}, *answered],
        "options": list(question.options),
        "answer": question.answer,
        "kind": question.kind,
        "hops": question.hops,
        "evidence": [list(e) for e in question.evidence],
    }
    return row | known


def _video_keys(policy: FramePolicy | None) -> dict[str, Any]:
    """The policy in the words of qwen-vl-utils."""
    if policy is None:
        return {}
    return {key: value for name, key in KEYS.items() if (value := getattr(policy, name)) not in (None, 0.0)}
