"""Options and gold answers as the field's files write them: "A. left", "(B) right", {"A": …}, "<answer>B</answer>"."""

from __future__ import annotations

import ast
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from longtake.data.jsonrows import Malformed

LETTERS = string.ascii_uppercase
LABEL = re.compile(r"\s*[(\[]?([A-Z])[.):\]](\s*)(.*)\Z", re.DOTALL)
LINE = re.compile(
    r"\s*[(\[]?([A-Z])[.):\]]\s+(\S.*)|\s*[(\[]?([A-Z])[.):\]]\s*"
)  # an option, or a label with nothing behind
TAG = re.compile(r"<answer>(.*?)(?:</answer>|\Z)", re.DOTALL | re.IGNORECASE)
ONE_LETTER = re.compile(r"[\s(\[*]*([A-Za-z])[\s.):\]*]*")
NOTHING = " \t\r\n.,;:*"  # what remains of an option that a parser lost


@dataclass(frozen=True, slots=True)
class Choices:
    """Options in the order of the file with the label each carries; both empty for an open question.

    Example: Choices(("B", "A"), ("right", "left")).
    """

    labels: tuple[str, ...] = ()
    options: tuple[str, ...] = ()

    def in_order(self) -> tuple[str, ...]:
        """Options by label, so that letter and place agree."""
        return tuple(option for _, option in sorted(zip(self.labels, self.options, strict=True)))

    def flaw(self, answer: str) -> str:
        """Why this cannot be a question with one right letter, "" if it can. No options: nothing to say."""
        count = len(self.options)
        if count == 0:
            return ""
        if count == 1 or count > len(LETTERS):
            return f"{count} option{'s' if count > 1 else ''}, where 2 to {len(LETTERS)} are needed"
        if tuple(sorted(self.labels)) != tuple(LETTERS[:count]):
            return f"the options are labelled {', '.join(self.labels)}, not A to {LETTERS[count - 1]}"
        for label, option in zip(self.labels, self.options, strict=True):
            if not option.strip(NOTHING):
                return f"option {label} is empty"
        if answer and answer not in self.labels:
            return f"the answer {answer!r:.40} is none of the {count} options"
        return ""

    def twins(self) -> bool:
        """Whether two options read the same, so that one of them is wrong for no reason."""
        return len({option.strip(NOTHING).casefold() for option in self.options}) < len(self.options)


def choices(value: Any) -> Choices:
    """Options from whatever holds them: a list, {"A": …}, the text of a list, or lines. None or [] = open question."""
    if value is None or value in ("", []):
        return Choices()
    if isinstance(value, str):
        return choices(_written_list(value))
    if isinstance(value, dict):
        return Choices(
            tuple(str(key).strip().upper() for key in value), tuple(str(option).strip() for option in value.values())
        )
    if not isinstance(value, list | tuple):
        raise Malformed(f"options must be a list, not {value!r:.60}")
    if not all(isinstance(option, str | int | float) for option in value):
        raise Malformed(f"every option must be text, but here are {value!r:.80}")
    return _labelled([str(option) for option in value])


def _written_list(text: str) -> list[Any]:
    """'["A. x", "B. y"]' as CSV exports leave it, or one option a line."""
    if text.lstrip().startswith("["):
        try:
            read = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError):
            raise Malformed(f"options are text that is not a list: {text!r:.60}") from None
        return list(read)
    return [line for line in text.split("\n") if line.strip()]


def _labelled(options: Sequence[str]) -> Choices:
    """Labels are read only if all options carry one: "A.M." and "P.M." are not labelled A and P."""
    matches = [LABEL.match(option) for option in options]
    found = [match for match in matches if match]
    spaced = all(match[2] or not match[3] for match in found)
    in_turn = [match[1] for match in found] == list(LETTERS[: len(options)])
    if len(found) == len(options) and (spaced or in_turn):
        return Choices(tuple(match[1] for match in found), tuple(match[3].strip() for match in found))
    return Choices(tuple(LETTERS[: len(options)]), tuple(option.strip() for option in options))


def options_in(text: str) -> tuple[str, Choices]:
    """The last block of lines "A. …", "B. …" of a question: (the text without it, its options).

    The block starts at a line labelled A and goes on as long as labels count up; blank lines may stand between.
    Anything else (labels out of turn, one option only) leaves the text as it is, with no options.
    """
    lines = text.split("\n")
    matches = [LINE.fullmatch(line) for line in lines]
    labels = [(match[1] or match[3]) if match else "" for match in matches]
    starts = [place for place, label in enumerate(labels) if label == "A"]
    if not starts:
        return text, Choices()
    found: list[int] = []
    for place in range(starts[-1], len(lines)):
        if labels[place] and labels[place] == LETTERS[len(found) % len(LETTERS)]:
            found.append(place)
        elif lines[place].strip():
            break
    if len(found) < 2 or any(labels[place] for place in range(found[-1] + 1, len(lines))):
        return text, Choices()
    rest = [line for place, line in enumerate(lines) if place not in found]
    options = tuple((matches[place][2] or "").strip() for place in found)  # type: ignore[index]  # found only where matched
    return "\n".join(rest).strip(), Choices(tuple(LETTERS[: len(found)]), options)


def gold(value: Any, known: Choices, from_zero: bool = False) -> str:
    """The right answer: a letter where there are options ("" or the text itself if none fits), else the text.

    Takes "B", "(b)", "B. left", "<answer>B</answer>", the text of an option, and, where the format counts options from
    zero (`from_zero`), its number.
    """
    if isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Malformed(f"the answer must be text or a number, not {value!r:.60}")
    tagged = TAG.search(str(value))
    text = (tagged[1] if tagged else str(value)).strip()
    if not known.options:
        return text
    if from_zero and text.isdigit() and int(text) < len(known.labels):
        return known.labels[int(text)]
    alone = ONE_LETTER.fullmatch(text)
    if alone and alone[1].upper() in known.labels:
        return alone[1].upper()
    same = [label for label, option in zip(known.labels, known.options, strict=True) if _plain(option) == _plain(text)]
    if same:
        return same[0]
    labelled = LABEL.match(text)
    return labelled[1] if labelled and labelled[1] in known.labels else (alone[1].upper() if alone else text)


def _plain(text: str) -> str:
    return " ".join(text.strip(NOTHING).casefold().split())
