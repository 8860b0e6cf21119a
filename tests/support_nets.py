"""Tiny networks of every family, saved to disk as their checkpoints are; heads as wide as vLLM's CPU kernels need."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.models import tiny
from tests.models.test_qwen2_5_vl import PIXELS as FRAME_PIXELS

from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3_vl import Qwen3VL


def _qwen3_vl(folder: Path) -> None:
    words = tiny.tokenizer()
    Qwen3VL(tiny.network(words), words, tiny.PIXELS).save(folder)


def _qwen2_5_vl(folder: Path) -> None:
    words = tiny.tokenizer()
    Qwen25VL(tiny.network_2_5(words), words, FRAME_PIXELS).save(folder)


def save(kind: str, folder: Path) -> None:
    """A random network of the family."""
    MAKERS[kind](folder)


MAKERS: dict[str, Callable[[Path], None]] = {"qwen3_vl": _qwen3_vl, "qwen2_5_vl": _qwen2_5_vl}
