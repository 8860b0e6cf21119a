"""The tables of docs/shapes.md, read from longtake/records.py and made with maths.pack: a shape is written once."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import longtake.records

SOURCE = Path(longtake.records.__file__)
SUFFIX = re.compile(r"_(\d?[A-Z]+)\Z")
BRACKETS = re.compile(r"\A(\[[^\]]+\](?:\[[^\]]+\])*)\s*")


@dataclass(frozen=True, slots=True)
class Shaped:
    """A field with a shape. Example: Shaped("Prompt", "ids", "tuple[int, ...]", "[P]", "")."""

    record: str
    name: str
    kind: str
    shape: str
    meaning: str


def shaped() -> Iterator[Shaped]:
    """Every field of records.py that has a shape: by its suffix (`_3P` is [3, P]) or by its comment."""
    text = SOURCE.read_text(encoding="utf-8")
    lines = text.splitlines()
    for record in (node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)):
        for field in (node for node in record.body if isinstance(node, ast.AnnAssign)):
            assert isinstance(field.target, ast.Name)
            comment = lines[field.lineno - 1].partition("  # ")[2]
            found, suffix = BRACKETS.match(comment), SUFFIX.search(field.target.id)
            if not (found or suffix):
                continue
            shape = found[1] if found else f"[{', '.join(suffix[1] if suffix else '')}]"
            meaning = comment[found.end() :] if found else comment
            yield Shaped(record.name, field.target.id, ast.unparse(field.annotation), shape, meaning)


def fields() -> str:
    """Markdown table of `shaped`."""
    rows, before = ["| record | field | type | shape | |", "|---|---|---|---|---|"], ""
    for one in shaped():
        record = "" if one.record == before else f"`{one.record}`"
        kind, meaning = (text.replace("|", "\\|") for text in (one.kind, one.meaning))
        rows.append(f"| {record} | `{one.name}` | `{kind}` | `{one.shape}` | {meaning} |")
        before = one.record
    return "\n".join(rows)


def letters() -> set[str]:
    """The letters that records.py uses in shapes."""
    return {letter for one in shaped() for letter in re.findall(r"\b[A-Z]\b", one.shape)}


def row() -> str:
    """A packed row in numbers: two questions, one of them with two answers."""
    import torch

    from longtake.maths.pack import pack
    from longtake.records import Prompt

    def prompt(name: str, *ids: int) -> Prompt:
        return Prompt(name, ids, (), torch.arange(len(ids)).expand(3, -1), None, None)

    asked = [prompt("p", 10, 11, 12), prompt("q", 20, 21)]
    answers = [[[1, 2, 9], [3, 9]], [[4, 5, 9]]]
    packed = pack(asked, answers, [[[0.5] * 3, [-0.5] * 2], [[1.0] * 3]])
    shown = {
        "ids_T": packed.ids_T.tolist(),
        "position_3T[0]": packed.position_3T[0].tolist(),
        "predict_R": packed.predict_R.tolist(),
        "target_R": packed.target_R.tolist(),
        "answer_R": packed.answer_R.tolist(),
        "weight_R": packed.weight_R.tolist(),
    }
    width = max(map(len, shown))
    lines = [f"{name:<{width}}  " + " ".join(f"{number:>4}" for number in numbers) for name, numbers in shown.items()]
    return "\n".join(["```text", f"{'layout':<{width}}  {packed.layout.groups}", *lines, "```"])
