"""From a file of rows to numbered JSON objects: JSONL, a JSON list, or a JSON object that holds one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.errors import UserError

TABLES = (".parquet", ".arrow", ".csv", ".tsv", ".xlsx", ".feather")
ROW_KEYS = {
    "messages",
    "conversations",
    "problem",
    "question",
    "questions",
    "qa",
    "chosen",
}  # an object with one of these is itself a row


class Malformed(ValueError):
    """One row that cannot be used: why, and what its author can do. Caught in `data.rows`, never seen by people."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason, self.fix = reason, fix


@dataclass(frozen=True, slots=True)
class Numbered:
    """One row and its place: the line of a JSONL file, else the row's number; both count from 1.

    Example: Numbered(17, {"id": "cups-7", …}, "").
    """

    place: int
    row: dict[str, Any]
    flaw: str  # why the row could not be read, "" if it could


def numbered_rows(path: Path) -> list[Numbered]:
    """All rows of a file, unreadable ones with their flaw. Raises UserError where the whole file is none."""
    raw = _text(path)
    text = raw.strip()
    if not text:
        raise UserError(
            "the file holds no rows", where=str(path), fix="give JSONL, one row a line, or a JSON list of rows"
        )
    try:
        whole = json.loads(text, parse_constant=_no_number)
    except json.JSONDecodeError as error:
        if text.startswith("{") and text.split("\n", 1)[0].strip() != "{":  # else a pretty-printed document
            return list(_lines(raw))  # not stripped: lines are counted
        fix = "give JSONL, one row a line, or a JSON list of rows"
        raise UserError("the file is not JSON", where=f"{path}:{error.lineno}", why=error.msg, fix=fix) from None
    doubted = _halves(text)  # once: a file is as long as all its rows
    return [_numbered(place, row, doubted) for place, row in enumerate(_list_in(whole, path), start=1)]


def _halves(source: str) -> bool:
    """Whether JSON may hold half a character: escapes of those beyond 16 bits, in pairs, cut between the two."""
    return "\\ud" in source or "\\uD" in source


def _numbered(place: int, row: Any, doubted: bool) -> Numbered:
    """A row and what is wrong with it before anybody looks at its keys; `doubted`: perhaps half a character."""
    if not isinstance(row, dict):
        return Numbered(place, {}, f"a row is an object {{…}}, not {row!r:.60}")
    if doubted:
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return Numbered(place, row, f"half a character in the text: {error.object[error.start]!a}")
    return Numbered(place, row, "")


def _text(path: Path) -> str:
    if path.suffix.lower() in TABLES:
        fix = 'convert it, e.g. with pandas: table.to_json("rows.jsonl", orient="records", lines=True)'
        raise UserError(
            "rows are read from JSON or JSONL", where=str(path), why=f"it is a {path.suffix} table", fix=fix
        )
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError("the file is not text in UTF-8", where=str(path), why=str(error)) from None
    except IsADirectoryError:
        raise UserError("this is a folder, not a file of rows", where=str(path), fix="name the .jsonl inside") from None
    except OSError as error:
        why, fix = (error.strerror or str(error)).lower(), "check the path"
        raise UserError("cannot read the rows", where=str(path), why=why, fix=fix) from None


def _lines(text: str) -> Iterator[Numbered]:
    # Not splitlines(): it also cuts at U+2028, which may stand inside a JSON string.
    for place, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            yield Numbered(place, {}, f"not JSON: {error.msg} at column {error.colno}")
            continue
        yield _numbered(place, row, _halves(line))


def _list_in(whole: Any, path: Path) -> list[Any]:
    """The rows of a JSON document: a list, the only list in an object, an object of rows keyed by id, or one row."""
    if isinstance(whole, list):
        return whole
    if not isinstance(whole, dict) or ROW_KEYS & whole.keys():
        return [whole]
    lists = [value for value in whole.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if len(lists) == 1:
        return lists[0]
    if whole and all(isinstance(value, dict) for value in whole.values()):
        return [{"id": key, **value} for key, value in whole.items()]
    why = f"it is one object with the keys {', '.join(map(str, list(whole)[:6]))}"
    raise UserError("no list of rows in this file", where=str(path), why=why, fix="give JSONL or a JSON list of rows")


def _no_number(_: str) -> None:
    """NaN, as tables write for an empty cell, means nothing here."""
