"""Tiny networks of every family, saved to disk as their checkpoints are; heads as wide as vLLM's CPU kernels need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.engines import wide
from tests.models import tiny_llava, tiny_nvila
from transformers import LlavaNextConfig

from longtake.models.llava_next_video import LlavaNext
from longtake.models.reduce import Reduction

HEAD = 32


def save(kind: str, folder: Path) -> None:
    """A random network of the family."""
    if kind in wide.FAMILIES:
        wide.build(kind).save(folder)
    elif kind == "vila":
        tiny_nvila.model(sizes={"width": 4 * HEAD}).save(folder)
    elif kind == "llava_next":
        words = tiny_llava.tokenizer()
        net = tiny_llava.network(_widened(tiny_llava.config(words, LlavaNextConfig)))
        LlavaNext(net, words, tiny_llava.PIXELS, Reduction(stride=2)).save(folder)
    else:
        narrow = tiny_llava.config
        tiny_llava.config = lambda *given, **more: _widened(narrow(*given, **more))
        try:
            tiny_llava.original(folder)
        finally:
            tiny_llava.config = narrow


def _widened(config: Any) -> Any:
    config.text_config.head_dim = HEAD
    return config
