"""The report says in one sentence how often a cache had what was wanted."""

from __future__ import annotations

from pathlib import Path

from longtake.report import words
from longtake.report.files import Run, RunFile
from longtake.report.training import caches, time


def run(**counts: dict[str, int]) -> Run:
    file = RunFile("grpo", counts=counts, seconds={"update": 2.0})
    return Run("grpo", Path("grpo"), file, (), (), (), None, None)


NOTHING = {"ram": 0, "disk": 0, "made": 0, "remade": 0, "evicted": 0, "damaged": 0}


def test_found_and_computed_over_several_runs() -> None:
    one, two = NOTHING | {"ram": 500, "made": 15, "remade": 5, "damaged": 2}, NOTHING | {"disk": 460, "made": 20}
    (text,) = caches([run(features=one), run(features=two)])
    want = "500 times from memory, 460 from disk, 40 computed, 5 of them again, 2 files damaged"
    assert text == f"Features: {words.percent(0.96)} found ({want})."
    line = time("grpo", [run(features=two)])
    assert line is not None
    assert line.diagnosis.endswith(
        f"Features: {words.percent(0.958)} found (0 times from memory, 460 from disk, 20 computed)."
    )


def test_a_run_without_caches_says_nothing_of_them() -> None:
    assert list(caches([run(), run(features=NOTHING)])) == []
