"""What must be set before Python starts is set, once, and what the user set stays."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from longtake.cli import environment

SHOW = "import json, os; print(json.dumps(dict(os.environ)))"


def test_the_launcher_sets_what_is_not_set() -> None:
    words = [sys.executable, "-m", "longtake.cli.environment", "-c", SHOW]
    run = subprocess.run(words, env={"OMP_WAIT_POLICY": "ACTIVE"}, check=True, capture_output=True)
    seen = json.loads(run.stdout)
    assert seen["OMP_WAIT_POLICY"] == "ACTIVE"
    assert {name: seen[name] for name in environment.BEFORE_START} == environment.BEFORE_START | {
        "OMP_WAIT_POLICY": "ACTIVE"
    }


def test_a_restart_happens_once() -> None:
    code = f"import sys; from longtake.cli.environment import restart; restart(sys.orig_argv[1:]); {SHOW}"
    run = subprocess.run([sys.executable, "-c", code], env={}, check=True, capture_output=True, timeout=120)
    assert environment.BEFORE_START.items() <= json.loads(run.stdout).items()


def test_nothing_happens_where_all_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.BEFORE_START.items():
        monkeypatch.setenv(name, value)
    environment.restart(["-c", "raise SystemExit(9)"])
