"""The command line of a stage, `[file.yaml …] [rows.jsonl …] [--key value …]`, into settings.

Ours and not argparse's or tyro's: no abbreviations are guessed, every problem is one line, and what was given
remembers how and is told from what is a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longtake.config import Given, Leaf, Settings, leaves, option, suggest

COMMON = {"help": "show this", "dry-run": "show the settings and what would be read and written; touch nothing"}
COMMON["json"] = "print one JSON object at the end, progress to stderr"


@dataclass(slots=True)
class Arguments:
    """What the words of a command line mean; filled while they are read, then only read."""

    files: list[Path] = field(default_factory=list)
    given: list[Given] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    common: set[str] = field(default_factory=set)  # of COMMON


def parse(kind: type[Settings], words: Sequence[str], positional: Sequence[str] = ()) -> Arguments:
    """Sort words into YAML files, positional values (fields `positional` of `kind`, in order) and options.

    A word ending in .yaml or .yml is a settings file. An option with several values takes all words up to the next one.
    """
    table, found, plain = leaves(kind), Arguments(), list[str]()
    at = 0
    while at < len(words):
        word = words[at]
        at += 1
        if word == "-h":
            found.common.add("help")
        elif word.startswith("--"):
            at = _option(table, words, at, found)
        elif Path(word).suffix in (".yaml", ".yml"):
            found.files.append(Path(word))
        elif word.startswith("-") and len(word) > 1:
            found.problems.append(f"{word}: unknown option; options begin with two dashes")
        else:
            plain.append(word)
    _positional(table, plain, positional, found)
    return found


def _option(table: dict[str, Leaf], words: Sequence[str], at: int, found: Arguments) -> int:
    """Read the option at words[at - 1] with its values; returns where to go on."""
    typed, equals, attached = words[at - 1].partition("=")
    spelled = typed[2:]
    if spelled in COMMON and not equals:
        found.common.add(spelled)
        return at
    leaf, value = _lookup(table, spelled)
    stop = at
    while stop < len(words) and not words[stop].startswith("--"):
        stop += 1
    values, after = ([attached], at) if equals else (list(words[at:stop]), stop)
    if leaf is None:
        meant = _meant(table, spelled)
        found.problems.append(f"{typed}: unknown option{meant}")
        return after  # its values are not looked at: one mistake, one line
    if value is not None:  # a switch
        if equals:
            found.problems.append(f"{typed}: takes no value; write {_spell(leaf)} or {_spell(leaf, no=True)}")
        else:
            _give(found, Given(leaf.name, value, typed))
        return at
    if not equals and not leaf.many:
        values, after = values[:1], at + len(values[:1])
    if not any(values):  # "" is what an unset shell variable leaves, and as a path it would mean this folder
        found.problems.append(f"{typed}: needs a value")
        return after
    try:
        _give(found, Given(leaf.name, convert(leaf, values), typed))
    except yaml.YAMLError:
        found.problems.append(f"{typed}: not valid YAML: {' '.join(values)!r}")
    return after


def _lookup(table: dict[str, Leaf], spelled: str) -> tuple[Leaf | None, bool | None]:
    """The leaf an option names, and the value of a switch: `video.no-flip` → (video.flip, False)."""
    name = spelled.replace("-", "_")
    if name in table:
        return table[name], True if table[name].boolean else None
    *blocks, last = name.split(".")
    positive = ".".join([*blocks, last.removeprefix("no_")])
    if last.startswith("no_") and positive in table and table[positive].boolean:
        return table[positive], False
    return None, None


def _meant(table: dict[str, Leaf], spelled: str) -> str:
    switches = [_spell(leaf, no=True)[2:] for leaf in table.values() if leaf.boolean]
    name = suggest(spelled.replace("_", "-"), [*(_spell(leaf)[2:] for leaf in table.values()), *switches, *COMMON])
    return f" — did you mean '--{name}'?" if name else ""


def _spell(leaf: Leaf, *, no: bool = False) -> str:
    *blocks, last = leaf.name.split(".")
    return option(".".join([*blocks, f"no_{last}" if no else last]))


def convert(leaf: Leaf, values: Sequence[str]) -> Any:
    """Words to what pydantic can check: it turns "64" into 64 by itself, but knows no lists, nothing and pairs."""
    if len(values) == 1 and leaf.optional and values[0].lower() in ("none", "null"):
        return None
    if leaf.nested:
        return yaml.safe_load(" ".join(values))
    if leaf.many:
        return [part for word in values for part in word.split(",") if part]
    return values[0]


def _give(found: Arguments, item: Given) -> None:
    for other in found.given:
        if item.name == other.name:
            found.problems.append(f"{item.where}: given twice, first by {other.where}")
    found.given.append(item)


def _positional(table: dict[str, Leaf], plain: Sequence[str], positional: Sequence[str], found: Arguments) -> None:
    """Fill the fields named in `positional`; the last one takes all that is left if it holds several values."""
    left = list(plain)
    for name in positional:
        leaf = table[name]
        take = len(left) if leaf.many else 1
        values, left = left[:take], left[take:]
        if values:
            _give(found, Given(name, convert(leaf, values), f"argument {values[0]!r}"))
    if left:
        takes = " and ".join(positional) or "options only"
        found.problems.append(f"{left[0]}: one argument too many; this stage takes {takes}")
