"""JSON on disk that survives being killed: whole files replaced at once, lines appended, a torn last line forgiven."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from longtake.errors import UserError

REFUSALS = {errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
REFUSALS |= {errno.ENAMETOOLONG, errno.ELOOP}
ESCAPED = (
    "backslashreplace"  # a file name that is no UTF-8 holds lone surrogates: JSON writes and reads them as \\udcff
)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around anything that writes `path`: a full disk or a read-only folder becomes a UserError."""
    try:
        yield
    except Exception as error:
        if disk_full(error):
            raise full(path) from error
        number = error.errno if isinstance(error, OSError) else None
        if number in REFUSALS:
            why = (os.strerror(number)).lower()
            raise UserError("cannot write here", where=str(path), why=why, fix="choose another place") from error
        raise


def disk_full(error: BaseException | None) -> bool:
    """Whether an exception, or one behind it, means that the disk (or the user's share of it) is full.

    safetensors and torch raise exceptions of their own that carry the system's words, hence the text.
    """
    while error is not None:
        number = error.errno if isinstance(error, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def full(path: Path) -> UserError:
    """The error for a full disk."""
    fix = "free some space, then run the same command again; nothing already written is lost"
    return UserError("the disk is full", where=str(path), fix=fix)


def unreadable(path: Path, error: OSError) -> UserError:
    """The error for a file that cannot be opened."""
    why, fix = (error.strerror or str(error)).lower(), "check that it is there and may be read"
    return UserError("cannot read the file", where=str(path), why=why, fix=fix)


def write_json_atomic(path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write `value` as JSON; whoever reads `path` sees the old file or the new one, never a part."""
    _replace(path, json.dumps(plain(value), indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON of a file. Raises UserError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise UserError("the file is not JSON", where=str(path), why=str(error)) from error


def append_jsonl(path: Path, row: Mapping[str, Any]) -> None:
    """Add one line. A torn last line, left by a kill, is cut off first."""
    line = json.dumps(plain(row), ensure_ascii=False) + "\n"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not _ends_well(path):
            write_jsonl(path, read_jsonl(path))
        with path.open("ab") as file:
            file.write(line.encode(errors=ESCAPED))


def read_jsonl(path: Path, *, forgive_torn: bool = True) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; blank lines are skipped.

    A last line without its newline that is no JSON was cut by a kill: it is left out, unless `forgive_torn` is False.
    Raises UserError for a missing file and for any other line that is no JSON object.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise unreadable(path, error) from error
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:  # bad JSON or bad UTF-8
            if forgive_torn and number == len(lines):
                break
            raise UserError("a line is not JSON", where=where, why=str(error), fix="mend or delete it") from error
        if not isinstance(row, dict):
            raise UserError("a line is not a JSON object", where=where, why=f"it begins with {line[:40]!r}")
        rows.append(row)
    return rows


def write_jsonl(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace a whole file of JSON lines at once."""
    _replace(path, "".join(json.dumps(plain(row), ensure_ascii=False) + "\n" for row in rows))


def plain(value: Any) -> Any:
    """What JSON can hold: paths as text, tuples as lists, nan and infinity as null (JSON has no word for them)."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def _replace(path: Path, text: str) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            beside.write_text(text, encoding="utf-8", errors=ESCAPED)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def _ends_well(path: Path) -> bool:
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 1, 0))
        return file.read(1) in (b"", b"\n")
