"""Words that a small tokenizer does not know: it reads one token in place of them all, and people should be told."""

from __future__ import annotations

from typing import Any


def unknown(tokenizer: Any, text: str) -> list[str]:
    """The words of `text` that become the unknown token; none where the tokenizer has no such token (bytes, Qwen's)."""
    mark = tokenizer.unk_token_id
    if mark is None or mark not in tokenizer(text, add_special_tokens=False)["input_ids"]:
        return []
    words = [word for word in dict.fromkeys(text.split()) if word != tokenizer.unk_token]
    return [word for word in words if mark in tokenizer(word, add_special_tokens=False)["input_ids"]]
