"""Qwen3 without eyes: reasoning over text, with the same loops. Source: Qwen3 technical report (arXiv 2505.09388)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np
import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.models.checkpoint import network, read_tokenizer
from longtake.models.network import Network
from longtake.records import Prompt, Question, Receipt


class Qwen3(Network):
    """A text-only Qwen3 (see protocols.Model). Example: load_model("Qwen/Qwen3-4B").prompt(question, None, None)."""

    family = "qwen3"

    def __init__(self, net: Any, tokenizer: Any) -> None:
        super().__init__(net, net.model, tokenizer, None, rope_rows=1)
        self._tower = nn.Module()

    @classmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Self:
        from transformers import Qwen3ForCausalLM

        net = network(Qwen3ForCausalLM, base, dtype)
        return cls(net, read_tokenizer(folder if (folder / "tokenizer.json").is_file() else base))

    @property
    def tower(self) -> nn.Module:
        """None: a module without weights."""
        return self._tower

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> NoReturn:
        """Raises UserError."""
        raise _blind()

    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """[] of no films; raises UserError of any."""
        if films:
            raise _blind()
        return []

    def read(self, seen: Tensor, shape: tuple[int, ...]) -> NoReturn:
        """Raises UserError."""
        raise _blind()

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template and positions; ends with the assistant header. Raises UserError for a film or picture."""
        if receipt is not None:
            raise _blind()
        message = {"role": "user", "content": question.text}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return Prompt(question.id, tuple(ids), (), self.positions(ids, []), None, None)

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P], three times the same. Raises ValueError for a film."""
        if grids:
            raise ValueError(f"a network that reads text alone has no place for the grids {list(grids)}")
        return torch.arange(len(ids)).expand(3, -1)

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """None: it has no processor."""
        return {}


def _blind() -> UserError:
    why = "its config.json has no vision tower"
    fix = 'rows without "video", or a vision-language model'
    return UserError("this model reads text only", why=why, fix=fix)
