"""Format reward: the whole answer is <think>…</think> <answer>…</answer>, each tag once (LongVILA-R1)."""

from __future__ import annotations

import re

INSIDE = r"(?:(?!</?(?:think|answer)>).)*"  # no tag within a tag
TEMPLATE = re.compile(rf"\s*<think>{INSIDE}</think>\s*<answer>(?=\s*[^\s<]){INSIDE}</answer>\s*", re.DOTALL)


def format_reward(text: str) -> float:
    """1 if the answer fills the template, with space around tags as it likes, else 0. An empty answer is none.

    Lower-case tags, as the prompt asks for them; anything before, between or after them, an unclosed or a repeated tag
    is 0. The thought may be empty: how long to think is not a matter of form.
    """
    return float(TEMPLATE.fullmatch(text) is not None)
