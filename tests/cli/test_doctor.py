"""The doctor finds what is missing and names one command for it."""

from __future__ import annotations

import json
import tomllib
from collections import namedtuple
from pathlib import Path

import pytest

from longtake.cli import doctor
from longtake.cli.main import main

ROOT = Path(__file__).parents[2]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def empty_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever else lies on the disk of the machine that runs the tests."""
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(2**50, 0, 2**50))


def test_a_working_computer_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("✓") for line in lines if "memory" not in line and "do:" not in line)
    assert any("H.264 written and read" in line for line in lines)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    assert {"python", "torch", "transformers", "av", "hardware", "film", "disk", "memory"} == {
        check["name"] for check in told["checks"]
    }


def test_a_full_disk_fails_with_a_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(1, 1, 0))
    assert main(["doctor", "--out", str(tmp_path / "not" / "there")]) == 1
    lines = capsys.readouterr().out.splitlines()
    at = lines.index("✗ disk          0.0 GiB free")
    assert lines[at + 1] == f"    do: du -sh {tmp_path}/* | sort -h | tail"


def test_packages_that_are_missing_broken_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = doctor.package("longtake_no_such_package", (1, 0))
    assert not missing.ok
    assert missing.fix == "pip install --force-reinstall 'longtake_no_such_package>=1.0'"
    old = doctor.package("av", (999, 0))
    assert (old.ok, old.fix) == (False, "pip install --upgrade 'av>=999.0'")

    def broken(name: str) -> object:
        raise OSError("libnvrtc.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr("importlib.import_module", broken)
    assert (
        doctor.package("torch", (2, 11)).found == "cannot be imported: libnvrtc.so.13: cannot open shared object file"
    )


def test_a_film_that_cannot_be_made_is_a_finding() -> None:
    def fails() -> str:
        raise ValueError("no encoder")

    assert doctor.guarded("film", fails, "do this") == doctor.Check("film", False, "ValueError: no encoder", "do this")


def test_floors_are_those_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [f"{name}>={'.'.join(map(str, floor))}" for name, floor in doctor.NEEDED.items()]
    wanted = [text.removesuffix(".0") for text in wanted]
    assert set(wanted) <= set(project["optional-dependencies"]["train"])
