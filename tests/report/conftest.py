"""A small made-up demo folder, built once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.report.fake import demo


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only: tests that change something take `folder`."""
    return demo(tmp_path_factory.mktemp("report") / "demo", steps=40, every=20, groups=4, n=80)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "demo"))
