"""Every one-place break of the maths and the loops turns its tests red (tests/mutants.py)."""

import subprocess
import sys
from pathlib import Path

from tests.mutants import MUTANTS, TESTS

ROOT = Path(__file__).parent.parent


def test_every_mutant_is_caught():
    ran = subprocess.run([sys.executable, "-m", "tests.mutants"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-2000:]
    assert f"{len(MUTANTS)} of {len(MUTANTS)} mutants caught" in ran.stdout


def test_every_maths_file_has_its_mutants():
    files = {f"maths/{path.name}" for path in (ROOT / "src/longtake/maths").glob("*.py")} - {"maths/__init__.py"}
    assert files <= set(TESTS)
    for name in files:
        assert sum(mutant.file == name for mutant in MUTANTS) >= 3, name
    assert {mutant.file for mutant in MUTANTS} == set(TESTS)
