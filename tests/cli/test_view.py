"""`longtake view` builds the page and opens it."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.cli.main import main


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    pages: list[str] = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    monkeypatch.setattr("longtake.report.build", lambda folder: folder / "report.html")
    return pages


def test_the_page_is_opened(opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path)]) == 0
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_or_only_named(opened: list[str], tmp_path: Path) -> None:
    assert main(["view", str(tmp_path), "--no-open"]) == 0
    assert opened == []


def test_a_folder_that_is_not_there(opened: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["view", str(tmp_path / "none")]) == 1
    assert capsys.readouterr().err.startswith(f"no such run folder\n  where: {tmp_path / 'none'}\n")
