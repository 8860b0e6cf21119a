"""Every one-place break of the maths and the loops turns its tests red (tests/mutants.py)."""

import subprocess
import sys
from pathlib import Path

import pytest
from tests.mutants import MUTANTS, TESTS, group

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", ["core", pytest.param("families", marks=pytest.mark.slow)])
def test_every_mutant_is_caught(name):
    command = [sys.executable, "-m", "tests.mutants", name]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert f"{len(group(name))} of {len(group(name))} mutants caught" in ran.stdout


def test_the_groups_are_all():
    assert sorted(map(repr, (*group("core"), *group("families")))) == sorted(map(repr, MUTANTS))


def test_every_maths_file_has_its_mutants():
    files = {f"maths/{path.name}" for path in (ROOT / "src/longtake/maths").glob("*.py")} - {"maths/__init__.py"}
    assert files <= set(TESTS)
    for name in files:
        assert sum(mutant.file == name for mutant in MUTANTS) >= 3, name
    assert {mutant.file for mutant in MUTANTS} == set(TESTS)
