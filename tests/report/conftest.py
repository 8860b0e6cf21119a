"""A small made-up demo folder, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.report.fake import demo
from tests.report.fake_pairs import full

OTHERS = ("eval", "base", "sft", "grpo", "difficulty")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that change something take `folder`."""
    return demo(tmp_path_factory.mktemp("report") / "demo", steps=40, every=20, groups=4, n=80)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "demo"))


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with the stages of feedback. Read only: tests that change something take `heard`."""
    return full(tmp_path_factory.mktemp("report") / "demo", steps=40, n=40, pairs=60)


@pytest.fixture
def heard(everything: Path, tmp_path: Path) -> Path:
    """Only the stages of feedback."""
    return Path(shutil.copytree(everything, tmp_path / "demo", ignore=shutil.ignore_patterns(*OTHERS, "report.html")))
