"""Accuracy on multiple choice and on short texts."""

from __future__ import annotations

from collections.abc import Sequence

from longtake.rewards.extract import answer_span, extract, plain


def choice_reward(text: str, options: Sequence[str], answer: str) -> float:
    """1 if the answer names the option with letter `answer` (see `extract`), else 0."""
    return float(extract(text, options) == answer)


def text_reward(text: str, answer: str) -> float:
    """1 if the answer's result reads like `answer` but for case, spaces, outer punctuation and an article, else 0."""
    return float(plain(answer_span(text)[0]) == plain(answer))
