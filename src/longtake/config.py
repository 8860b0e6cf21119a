"""How a run is described: YAML files, then the command line, checked whole into one frozen pydantic model.

Every value remembers where it came from (`base.yaml:4`, `--lr`), so that an error names the line to mend and
`--dry-run` can say who set what. tyro writes the help (cli/help.py) but does not parse: its errors are boxes of eight
lines, it reads no YAML lines, and it cannot tell a value that was given from a default.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin

import pydantic
import yaml

from longtake.errors import UserError

MOST_LINES = 6  # an error that scrolls is not read
DEFAULT = "default"


class Settings(pydantic.BaseModel):
    """Base of every config: frozen, unknown keys refused. Nested `Settings` are blocks: `video.max_frames`."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


ConfigType = TypeVar("ConfigType", bound=Settings)


class ConfigError(UserError):
    """One line for each problem of a config, at most MOST_LINES.

    Example: ConfigError(["bad.yaml:4: video.max_framse: unknown key — did you mean 'max_frames'?"]).
    """

    def __init__(self, problems: Sequence[str]) -> None:
        lines = list(dict.fromkeys(problems))
        if len(lines) > MOST_LINES:
            lines = [*lines[: MOST_LINES - 1], f"… and {len(lines) - MOST_LINES + 1} more"]
        super().__init__("\n".join(lines))


@dataclass(frozen=True, slots=True)
class Given:
    """A value that somebody set. Example: Given("video.max_frames", 64, "base.yaml:4"), Given("lr", "1e-4", "--lr")."""

    name: str
    value: Any
    where: str


@dataclass(frozen=True, slots=True)
class Loaded(Generic[ConfigType]):
    """A checked config, and where each leaf came from: "base.yaml:4", "--lr" or "default"."""

    config: ConfigType
    provenance: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field that holds a value. Example: Leaf("video.max_frames", int)."""

    name: str
    annotation: Any

    @property
    def choices(self) -> tuple[Any, ...]:
        """The annotation, or the members of a union: `int | None` → (int, NoneType)."""
        is_union = get_origin(self.annotation) in (Union, types.UnionType)
        return get_args(self.annotation) if is_union else (self.annotation,)

    @property
    def optional(self) -> bool:
        return type(None) in self.choices

    @property
    def boolean(self) -> bool:
        return bool in self.choices

    @property
    def many(self) -> bool:
        """Several values behind one option: `--frames 16 32 64`."""
        return any(get_origin(choice) in (tuple, list, set, frozenset) for choice in self.choices)

    @property
    def nested(self) -> bool:
        """Values inside values (pairs, mappings): written as YAML on the command line, `--mix '[[8, 1], [64, 3]]'`."""
        inner = [part for choice in self.choices if get_origin(choice) is not Literal for part in get_args(choice)]
        mapped = any(get_origin(choice) is dict for choice in self.choices)
        return mapped or any(get_args(part) for part in inner if get_origin(part) is not Literal)


def load(
    kind: type[ConfigType], files: Sequence[Path] = (), given: Sequence[Given] = (), problems: Sequence[str] = ()
) -> Loaded[ConfigType]:
    """Merge YAML files left to right, then `given` (the command line), and check everything at once.

    `problems` found on the way here are reported together with new ones.
    Raises ConfigError with one line for each unknown key, wrong type or missing value.
    """
    settings: list[Given] = []
    wrong = list(problems)
    for file in files:
        found, bad = read_yaml(kind, file)
        settings += found
        wrong += bad
    return resolve(kind, [*settings, *given], wrong)


def leaves(kind: type[Settings], prefix: str = "") -> dict[str, Leaf]:
    """Every leaf by dotted name, blocks opened."""
    found: dict[str, Leaf] = {}
    for name, info in kind.model_fields.items():
        inner = block_of(info.annotation)
        if inner is None:
            found[prefix + name] = Leaf(prefix + name, info.annotation)
        else:
            found |= leaves(inner, f"{prefix}{name}.")
    return found


def block_of(annotation: Any) -> type[Settings] | None:
    """The Settings class of a block's annotation (`Video` or `Video | None`), None for a leaf."""
    for choice in (annotation, *get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, Settings):
            return choice
    return None


def suggest(word: str, known: Collection[str]) -> str:
    """The known name that was probably meant, "" if none is near. A name of another block counts by its last part."""
    by_last = {name.rsplit(".", 1)[-1]: name for name in reversed(list(known))}  # the first of several wins
    by_name = {name: name for name in known}
    last = word.rsplit(".", 1)[-1]
    for table, wanted, cutoff in ((by_last, last, 1.0), (by_name, word, 0.6), (by_last, last, 0.75)):
        near = difflib.get_close_matches(wanted, table, n=1, cutoff=cutoff)
        if near:
            return table[near[0]]
    return ""


def read_yaml(kind: type[Settings], file: Path) -> tuple[list[Given], list[str]]:
    """What a YAML file sets, each with its line, and the lines that do not fit `kind`."""
    problems: list[str] = []
    try:
        root = yaml.compose(file.read_text(encoding="utf-8"), yaml.SafeLoader)
        if root is None:
            return [], []
        if not isinstance(root, yaml.MappingNode):
            return [], [f"{file}:{root.start_mark.line + 1}: expected lines of 'key: value'"]
        return list(_walk(kind, root, str(file), "", problems)), problems
    except OSError as error:
        return [], [f"{file}: cannot be read: {(error.strerror or str(error)).lower()}"]
    except UnicodeDecodeError:
        return [], [f"{file}: not a text file"]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        return [], [f"{where}: not valid YAML: {error.problem or error.context}"]
    except yaml.YAMLError as error:  # characters that YAML does not allow
        return [], [f"{file}: not valid YAML: {' '.join(str(error).split())}"]


def _walk(kind: type[Settings], node: yaml.MappingNode, file: str, prefix: str, problems: list[str]) -> Iterator[Given]:
    loader = yaml.SafeLoader("")
    lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key, line = str(key_node.value), key_node.start_mark.line + 1
        if lines.setdefault(key, line) != line:
            problems.append(f"{file}:{line}: {prefix}{key}: given twice, first in line {lines[key]}")
    loader.flatten_mapping(node)  # opens `<<: *anchor`; what it brings comes first, so that the mapping's own keys win
    for key_node, value_node in node.value:
        key, where = str(loader.construct_object(key_node)), f"{file}:{key_node.start_mark.line + 1}"
        info = kind.model_fields.get(key)
        if info is None:
            problems.append(f"{where}: {prefix}{key}: unknown key{_meant(kind, key)}")
            continue
        inner = block_of(info.annotation)
        if inner is not None and isinstance(value_node, yaml.MappingNode):
            yield from _walk(inner, value_node, file, f"{prefix}{key}.", problems)
            continue
        value = loader.construct_object(value_node, deep=True)
        if inner is None or (value is None and type(None) in get_args(info.annotation)):
            yield Given(prefix + key, value, where)
        elif value is not None:
            problems.append(f"{where}: {prefix}{key}: is a block of settings, got {value!r}")


def _meant(kind: type[Settings], key: str) -> str:
    name = suggest(key.replace("-", "_"), [*kind.model_fields, *leaves(kind)])
    return f" — did you mean '{name}'?" if name else ""


def resolve(kind: type[ConfigType], given: Sequence[Given], problems: Sequence[str] = ()) -> Loaded[ConfigType]:
    """Later settings win over earlier ones; `problems` found so far are reported together with new ones."""
    table = leaves(kind)
    tree: dict[str, Any] = {}
    where = dict.fromkeys(table, DEFAULT)
    wrong = list(problems)
    for item in given:
        leaf = table.get(item.name)
        if leaf and isinstance(item.value, bool) and not leaf.boolean:
            wrong.append(f"{_label(item.where, item.name)}: expected a value, got {str(item.value).lower()}")
            continue
        *blocks, last = item.name.split(".")
        place, own = tree, kind.model_fields
        for block in blocks:
            inner = place.get(block)
            if not isinstance(inner, dict):  # absent, or set to nothing by an earlier file
                inner = place[block] = _told(own[block].default)
            place, own = inner, _fields(own[block].annotation)
        place[last] = item.value
        where[item.name] = item.where
    try:
        config = kind.model_validate(tree)
    except pydantic.ValidationError as error:
        meant = " ".join(wrong)  # a setting whose misspelling is named already is not missing as well
        lines = _sentences(error, where)
        wrong += [
            text for name, text in lines.items() if f"'{name}'?" not in meant and f"'{option(name)}'?" not in meant
        ]
    if wrong:
        raise ConfigError(wrong)
    return Loaded(config, where)


def _told(default: Any) -> dict[str, Any]:
    """What a block's default sets itself, as `Optim(lr=5e-6)`: naming another of its settings leaves that as it is."""
    return default.model_dump(exclude_unset=True) if isinstance(default, Settings) else {}


def _fields(annotation: Any) -> dict[str, pydantic.fields.FieldInfo]:
    inner = block_of(annotation)
    return inner.model_fields if inner else {}


def option(name: str) -> str:
    """How a setting is spelled on the command line: "video.max_frames" → "--video.max-frames"."""
    return "--" + name.replace("_", "-")


def _sentences(error: pydantic.ValidationError, where: Mapping[str, str]) -> dict[str, str]:
    """One line for each setting by its name; the branches of a union are joined by "or"."""
    lines: dict[str, str] = {}
    for item in error.errors(include_url=False):
        parts = [str(part) for part in item["loc"]]
        name = next((n for k in range(len(parts), 0, -1) if (n := ".".join(parts[:k])) in where), ".".join(parts))
        given = where.get(name, DEFAULT)
        if item["type"] == "missing" and name in where and given != DEFAULT:  # of a pair, the second
            lines[name] = f"{_label(given, name)}: needs more values than were given"
            continue
        if item["type"] == "missing":
            lines[name] = f"{option(name)}: needed, but not given"
            continue
        text = item["msg"].removeprefix("Value error, ").removeprefix("Input ")
        if item["type"] != "value_error":
            text += f", got {item['input']!r}"
        if name not in lines:
            head = _label("" if given == DEFAULT else given, name) if name else "settings"
            lines[name] = f"{head}: {text}"
        elif not lines[name].endswith(text):
            lines[name] += f" or {text}"
    return lines


def _label(where: str, name: str) -> str:
    """`base.yaml:4: video.frames` for a file, `--video.frames` for an option."""
    return where if where.startswith("--") else f"{where}: {name}" if where else name
