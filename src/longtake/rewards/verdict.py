"""What a judge said: which of two answers is better, or how good one is. In doubt nothing, never a guess.

`<answer>` tags go before JSON objects, and these before the whole text. Each is read for sentences ("Output A is
better"), else as a bare word. Two different things said are nothing said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Literal, TypeVar

Choice = Literal["A", "B", "tie"]
Said = TypeVar("Said")

VERDICT_KEYS = ("better", "verdict", "winner", "preferred", "answer")
SCORE_KEYS = ("score", "rating", "answer")
LOWEST, HIGHEST = 1.0, 5.0
TAG = re.compile(r"<answer>(.*?)(?:</answer>|(?=<answer>)|\Z)", re.IGNORECASE | re.DOTALL)
OBJECT = re.compile(r"\{[^{}]*\}")
NAME = r"(?:the\s+)?(?:output|answer|response|assistant|option)?\s*[\"'(\[*]*"
LETTER = r"(?-i:([AB]))\b(?!['’])"
ENDS = r"(?=[\"')\]*]*\s*(?:[.,;:!?\n]|\Z|because\b|since\b|as\b|and\b|over\b|than\b))"
SENTENCES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\b{NAME}{LETTER}[\"')\]*]*\s+(?:is|was|seems|looks)\s+(?:\w+ly\s+)?(?:the\s+)?(?:much\s+|far\s+|slightly\s+)?"
        r"(?:better|best|preferable|preferred|superior|stronger|winner)\b",
        rf"\b(?:better|best|winner|verdict|preferred|preference|choice|answer)\s*(?:(?:output|answer|response|one)\s*)?"
        rf"(?:\bis\b|:|=)\s*{NAME}{LETTER}{ENDS}",
        rf"\b(?:prefer|choose|pick)\s+{NAME}{LETTER}{ENDS}",
        rf"\[\[{LETTER}\]\]",
    )
)
TIES = re.compile(
    r"\b(?:it(?:['’]s|\s+is)|verdict\s*(?:is|:)|answer\s*(?:is|:))\s+(?:a\s+)?tie\b|\[\[tie\]\]"
    r"|\bequally\s+(?:good|bad|accurate|right|wrong|helpful)\b|\bneither\s+(?:\w+\s+){0,2}is\s+better\b",
    re.IGNORECASE,
)
BARE = re.compile(rf"{NAME}(?-i:([AB]))[\"')\]*.]*", re.IGNORECASE)
BARE_TIE = re.compile(r"[\"'(\[*]*(?:(?:a\s+)?tie|equal|draw|same|both|neither)[\"')\]*.]*", re.IGNORECASE)
NUMBER = r"(\d+(?:\.\d+)?)(?:\s*(?:/|out\s+of)\s*5(?:\.0)?)?"
BARE_SCORE = re.compile(rf"[\"'(\[*]*(?:(?:score|rating)\s*(?:is|of|:|=)?\s*)?{NUMBER}[\"')\]*.]*", re.IGNORECASE)
SCORE = re.compile(
    rf"\b(?:score|rating|rate)\w*\s*(?:\bis\b|\bof\b|:|=|\bit\b)?\s*[\"'(\[*]*{NUMBER}|\b(\d+(?:\.\d+)?)\s*/\s*5\b",
    re.IGNORECASE,
)


def verdict(text: str) -> Choice | None:
    """The better of the answers A and B, or "tie"; None if the text names none or both."""
    return _first(text, _choice, VERDICT_KEYS, _sentence)


def score(text: str) -> float | None:
    """A score from 1 to 5; None if the text gives none, several, or one outside."""
    return _first(text, _number, SCORE_KEYS, _scored)


def _first(
    text: str, read: Callable[[str], Said | None], keys: Sequence[str], told: Callable[[str], list[Said | None]]
) -> Said | None:
    """What the most trusted form says that occurs at all."""
    rest = re.split(r"</think>", text, flags=re.IGNORECASE)[-1]
    if re.search(r"<think>", rest, re.IGNORECASE):  # a thought that never ended
        return None
    parts = [match[1] for match in TAG.finditer(rest)] or list(_values(rest, keys)) or [rest]
    return _agreed([_agreed(told(part) or [read(part)]) for part in parts])


def _agreed(said: Sequence[Said | None]) -> Said | None:
    """What all of them say."""
    return said[0] if len(set(said)) == 1 else None


def _values(text: str, keys: Sequence[str]) -> Iterator[str]:
    """Of each JSON object, the text itself or one inside it, the value of the first of `keys` that it has."""
    for piece in (text, *OBJECT.findall(text)):
        with suppress(ValueError):
            row = json.loads(piece)
            yield from [str(row[key]) for key in keys if isinstance(row, dict) and row.get(key) is not None][:1]


def _choice(text: str) -> Choice | None:
    bare = " ".join(text.split())
    if match := BARE.fullmatch(bare):
        return "A" if match[1] == "A" else "B"
    return "tie" if BARE_TIE.fullmatch(bare) else None


def _sentence(text: str) -> list[Choice | None]:
    letters = [match[1] for pattern in SENTENCES for match in pattern.finditer(text)]
    found: list[Choice | None] = ["A" if letter == "A" else "B" for letter in letters]
    return found + ["tie"] * bool(TIES.search(text))


def _number(text: str) -> float | None:
    match = BARE_SCORE.fullmatch(" ".join(text.split()))
    return _within(match[1]) if match else None


def _scored(text: str) -> list[float | None]:
    return [_within(match[1] or match[2]) for match in SCORE.finditer(text)]


def _within(digits: str) -> float | None:
    value = float(digits)
    return value if LOWEST <= value <= HIGHEST else None
