"""Golden runs: every file of runs/ is a valid config of the stage that its first line names, and says what it is."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from longtake.cli.arguments import parse
from longtake.cli.stages import STAGES
from longtake.config import Loaded, Settings, load

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "runs").glob("*.yaml"))
FIRST = re.compile(r"# longtake (\w+) (runs/\w+\.yaml)((?: \S+)*)")


def stated(file: Path) -> tuple[str, list[str]]:
    """The stage of the first line, and its words."""
    found = FIRST.fullmatch(file.read_text().splitlines()[0])
    assert found, f"{file.name}: the first line is no `# longtake STAGE runs/{file.name} …`"
    assert ROOT / found[2] == file
    return found[1], [str(file), *found[3].split()]


def loaded(file: Path) -> Loaded[Settings]:
    stage, words = stated(file)
    kind: type[Settings] = importlib.import_module(STAGES[stage].module).Config
    given = parse(kind, words, STAGES[stage].positional)
    return load(kind, given.files, given.given, given.problems)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_is_a_config_of_its_stage(file: Path) -> None:
    """The command in its first line would be accepted."""
    made = loaded(file)
    assert f"{file}:" in "".join(made.provenance.values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_run_says_where_it_is_from(file: Path) -> None:
    header = file.read_text().partition("\n\n")[0]
    lines = [line for line in header.splitlines() if line.startswith("#")]
    text = " ".join(line.lstrip("# ") for line in lines)
    for wanted in (r"[Pp]aper", r"[Hh]ardware", r"[Mm]easured there", r"longtake has not measured"):
        assert re.search(wanted, text), f"{file.name}: no {wanted!r} in its header"


@pytest.mark.parametrize("file", [f for f in FILES if stated(f)[0] == "sft"], ids=lambda file: file.stem)
def test_warm_up_is_three_percent_of_the_steps(file: Path) -> None:
    config = loaded(file).config.model_dump()
    assert config["optim"]["warmup"] in {int(0.03 * config["steps"]) + k for k in (0, 1)}
