"""Accuracy on numbers: counts, years, measures."""

from __future__ import annotations

import math
import re
from typing import Literal

from longtake.rewards.extract import answer_span

Rule = Literal["close", "video-r1", "relative"]
TOLERANCE = 0.005  # half of the second decimal: 7 = 7.0 = 7.004, and 1936 is not 1937
FIGURE = re.compile(r"(?<![\w.])[-−+]?(?:(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")
WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)


def read_number(text: str) -> float | None:
    """The number that a short text is about: its last figure ("1,234", "-0.5"), else its last word up to twenty."""
    figures = FIGURE.findall(text)
    if figures:
        value = float(figures[-1].replace(",", "").replace("−", "-"))
        return value if math.isfinite(value) else None
    named = [word for word in re.findall(r"[a-z]+(?:-[a-z]+)?", text.lower()) if word in WORDS]
    return float(WORDS.index(named[-1])) if named else None


def is_number(text: str) -> bool:
    """Whether a gold answer is a bare number, unit of per cent allowed."""
    return FIGURE.fullmatch(text.strip().removesuffix("%").strip()) is not None


def number_reward(text: str, answer: str, rule: Rule = "close", tolerance: float = TOLERANCE) -> float:
    """Score of the number in an answer against the number `answer`.

    close: 1 within `tolerance`. video-r1: 1 if equal at two decimals and both or neither written with a decimal point
    (Video-R1's `numerical`). relative: 1 - |error| / |answer|, at least 0 (its `regression`). No number: 0.
    """
    truth = read_number(answer)
    if truth is None:
        raise ValueError(f"the right answer {answer!r} is no number")
    span = answer_span(text)[0]
    value = read_number(span)
    if value is None:
        return 0.0
    if rule == "close":
        return float(abs(value - truth) <= tolerance)
    if rule == "video-r1":
        decimals = [bool(re.search(r"\.\d", said)) for said in (span, answer)]
        return float(round(value, 2) == round(truth, 2) and decimals[0] == decimals[1])
    error = abs(value - truth)
    return max(0.0, 1.0 - error / abs(truth)) if truth else float(error == 0)
