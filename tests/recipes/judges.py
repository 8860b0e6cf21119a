"""Judges for tests: an endpoint that prefers one answer whatever its place, configs that ask it or the tiny model."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.endpoint import Reply, Request, says, text_of
from tests.world import World, silent

from longtake.log import read_jsonl
from longtake.recipes import judge
from longtake.train.judge_settings import Context, Judge

ANSWERS = re.compile(r"Answer A:\n(.*?)\n\nAnswer B:\n(.*?)\n\nReason", re.DOTALL)
TINY = Context(clips=2, clip_frames=4, max_tokens=4)
PATIENCE = 60.0  # seconds for one request, on a machine that does much else


def shown(request: Request) -> tuple[str, str]:
    """The answers in slots A and B."""
    found = ANSWERS.search(text_of(request))
    assert found
    return found[1], found[2]


def about(request: Request, word: str) -> bool:
    """Whether the question, apart from answers and captions, holds a word."""
    return word in text_of(request).split("Question:\n")[1].split("\n\nAnswer")[0]


def fair(request: Request, _: int = 0) -> Reply:
    """Prefers the answer that comes first in the alphabet."""
    first, second = shown(request)
    return says(f"because … <answer>{'A' if first < second else 'B'}</answer>")


def config(world: World, out: Path, url: str | None = None, **changed: Any) -> judge.Config:
    """Two answers to each of the world's eight questions, judged by the model itself or an endpoint."""
    asked = Judge(url=url, model="judge-1", workers=4, retries=1, timeout=PATIENCE) if url else Judge(max_tokens=8)
    given = {
        "rows": world.rows("rl"), "model": world.model, "out": out, "max_tokens": 6, "batch": 3, "seed": 4,
        "video": world.video(4), "context": TINY, "judge": asked,
    }  # fmt: skip
    return judge.Config(**given | changed)


def run(config: judge.Config) -> dict[str, Any]:
    log = silent()
    try:
        return judge.run(config, log)
    finally:
        log.close()


def files(folder: Path) -> dict[str, Any]:
    """What a run hands on."""
    found: dict[str, Any] = {name: read_jsonl(folder / name) for name in judge.MAKES[1:]}
    return found | {"thumbs": sorted(file.name for file in (folder / "thumbs").iterdir())}


Answer = Callable[[Request, int], Reply]
