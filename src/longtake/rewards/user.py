"""A reward of the user's own: `my.py:score`, a function of the answer's text and its row."""

from __future__ import annotations

import difflib
import inspect
import linecache
import math
import numbers
import sys
import traceback
import zlib
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from longtake.errors import UserError
from longtake.protocols import Reward

EXAMPLE = "def score(text, row): return float(row['answer'] in text)"


@dataclass(frozen=True, slots=True)
class UserReward:
    """A loaded function with its name; calling it checks what comes back. Raises UserError naming row and line."""

    name: str  # as given: my.py:score
    path: Path
    function: Callable[[str, dict[str, Any]], Any]

    def __call__(self, text: str, row: dict[str, Any]) -> float:
        where = f"row {row.get('id', '?')}"
        try:
            with redirect_stdout(sys.stderr):  # stdout is for the run's own lines, which programs read
                value = self.function(text, row)
        except (Exception, SystemExit) as error:
            raise UserError(f"the reward {self.name} failed", where=where, why=_said(error, self.path)) from error
        with suppress(OverflowError):  # a whole number beyond all floats
            if isinstance(value, numbers.Real) and math.isfinite(value):
                return float(value)
        forgotten = " (is there a `return` on every path?)" if value is None else ""
        why = f"it returned {value!r:.60}{forgotten}"
        fix = "return a finite number" if isinstance(value, numbers.Real | None) else "return a number, e.g. float(…)"
        raise UserError(f"the reward {self.name} gave no score", where=where, why=why, fix=fix)


def is_user(name: str) -> bool:
    """Whether a reward's name is that of a user's function."""
    return ":" in name or name.endswith(".py")


def load(name: str) -> Reward:
    """The function `score` of `my.py`, given as "my.py:score"; the path counts from the working folder.

    The file is run here and may import modules that lie beside it. Raises UserError where the file or the function is
    missing, the file fails, or the function does not take (text, row).
    """
    path_text, _, function_name = name.rpartition(":")
    if not path_text or not function_name.isidentifier():
        raise UserError("a reward of your own is given as FILE:FUNCTION", where=name, fix="e.g. --reward my.py:score")
    path = Path(path_text)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.py")], n=1)
        fix = f"did you mean {path.parent / near[0]}?" if near else "check the path"
        raise UserError("the reward's file does not exist", where=name, why=f"no file {path.absolute()}", fix=fix)
    module = _run(path, name)
    found = {
        key for key, value in vars(module).items() if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    function = vars(module).get(function_name)
    if not callable(function):
        near = difflib.get_close_matches(function_name, found, n=1)
        fix = f"did you mean {path}:{near[0]}?" if near else f"write it: {EXAMPLE}"
        why = f"it defines {', '.join(sorted(found)[:6])}" if found else "it defines no function"
        raise UserError(f"there is no function {function_name!r} in {path}", where=name, why=why, fix=fix)
    _check_signature(function, name)
    return UserReward(name, path, function)


def _run(path: Path, name: str) -> ModuleType:
    module = ModuleType(f"longtake_reward_{path.stem}_{zlib.crc32(str(path.absolute()).encode()):08x}")
    module.__file__ = str(path)
    folder = str(path.absolute().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that a user's file can hide no module of ours
    sys.modules[module.__name__] = module
    try:
        # Not importlib: it would leave __pycache__ beside the user's file and trust it by the second.
        with redirect_stdout(sys.stderr):
            exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except SyntaxError as error:
        why = f"line {error.lineno}: {(error.text or '').strip()} — {error.msg}"
        raise UserError("the reward's file is not valid Python", where=name, why=why) from None
    except (Exception, SystemExit) as error:
        raise UserError("the reward's file failed while loading", where=name, why=_said(error, path)) from error
    return module


def _check_signature(function: Callable[..., Any], name: str) -> None:
    if inspect.iscoroutinefunction(function):
        raise UserError("a reward must be a plain function", where=name, why="it is async", fix=f"e.g. {EXAMPLE}")
    signature = inspect.signature(function)
    try:
        signature.bind("text", {})
    except TypeError as error:
        why = f"it is {name.rpartition(':')[2]}{signature}: {error}"
        raise UserError("a reward takes (text, row)", where=name, why=why, fix=f"e.g. {EXAMPLE}") from None


def _said(error: BaseException, path: Path) -> str:
    """The last line of the user's file that the error passed through, and the error's own first line."""
    numbers_ = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    source = linecache.getline(str(path), numbers_[-1] or 0).strip() if numbers_ else ""
    place = f"{path}:{numbers_[-1]}: {source}" if numbers_ else f"in {path}"
    return f"{place} — {type(error).__name__}: {str(error).partition(chr(10))[0]:.200}"
