"""Limits that only a visible diff may raise: sizes of files and functions, settings, dependencies."""

from __future__ import annotations

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

from longtake.cli.stages import STAGES
from longtake.config import Settings, block_of

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "tests").rglob("*.py")])
LINES = 300
STATEMENTS = 40
OWN_FIELDS = 25  # of a stage, beside the blocks that it shares with others
BLOCK_FIELDS = 14  # of a block that stages share: Video also says where its caches lie and how large they may be
BASE_DEPENDENCIES = 6


def test_files_are_short() -> None:
    assert len(FILES) > 10
    long = {str(file.relative_to(ROOT)): n for file in FILES if (n := len(file.read_text().splitlines())) > LINES}
    assert not long, f"over {LINES} lines: {long}"


def test_functions_are_short() -> None:
    long: dict[str, int] = {}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                statements = sum(isinstance(part, ast.stmt) for part in ast.walk(node)) - 1
                if statements > STATEMENTS:
                    long[f"{file.relative_to(ROOT)}:{node.lineno} {node.name}"] = statements
    assert not long, f"over {STATEMENTS} statements: {long}"


def test_files_say_what_they_are() -> None:
    silent = [file for file in FILES if file.stat().st_size and not ast.get_docstring(ast.parse(file.read_text()))]
    assert not silent


def test_the_base_install_is_small() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert len(project["dependencies"]) <= BASE_DEPENDENCIES


def shared(block: type[Settings] | None, kind: type[Settings]) -> bool:
    """Whether it stands in a file that stages import."""
    return block is not None and block.__module__ != kind.__module__


@pytest.mark.parametrize("name", list(STAGES))
def test_settings_are_few_and_described(name: str) -> None:
    kind: type[Settings] = importlib.import_module(STAGES[name].module).Config
    own = [field for field, info in kind.model_fields.items() if not shared(block_of(info.annotation), kind)]
    assert len(own) <= OWN_FIELDS
    for field, info in kind.model_fields.items():
        block = block_of(info.annotation)
        if block is None:
            assert info.description, f"{name}.{field} has no description"
            continue
        assert len(block.model_fields) <= BLOCK_FIELDS
        unsaid = [inner for inner, about in block.model_fields.items() if not about.description]
        assert not unsaid, f"{name}.{field}: no description: {unsaid}"
    assert not {"help", "dry_run", "json"} & kind.model_fields.keys(), "these are options of every stage"
