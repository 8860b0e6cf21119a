"""What caches say of themselves: a share in the row of every step, sums over all sittings in run.json."""

from __future__ import annotations

import io
from pathlib import Path

from longtake.log import Log, RunFolder, read_json, read_jsonl


def sitting(folder: Path) -> Log:
    log = Log(stream=io.StringIO())
    log.open(RunFolder.open(folder, "sft", {}))
    return log


def test_a_step_says_which_share_since_the_step_before(tmp_path: Path) -> None:
    log = sitting(tmp_path)
    log.share("hit", 1, 4)
    log.share("hit", 2, 2)
    log.share("none", 0, 0)
    log.step(1, 3, {"loss": 1.0})
    log.step(2, 3, {"loss": 1.0})
    log.share("hit", 0, 2)
    log.step(3, 3, {"loss": 1.0})
    rows = read_jsonl(tmp_path / "metrics.jsonl")
    assert [row.get("hit") for row in rows] == [0.5, None, 0.0]
    assert not any("none" in row for row in rows)


def test_counts_add_up_over_sittings(tmp_path: Path) -> None:
    for made in (3, 4):
        log, counts = sitting(tmp_path), {"made": 0}
        log.count("features", lambda counts=counts: counts)  # type: ignore[misc]
        for counts["made"] in range(made + 1):
            log.step(counts["made"] + 1, 9, {})
        log.close()
    assert read_json(tmp_path / "run.json")["counts"] == {"features": {"made": 7}}


def test_counts_are_those_of_the_folder_that_is_open(tmp_path: Path) -> None:
    log = sitting(tmp_path / "one")
    log.count("features", lambda: {"made": 3})
    log.share("hit", 1, 1)
    log.open(RunFolder.open(tmp_path / "two", "grpo", {}))
    log.step(1, 1, {})
    log.close()
    assert read_json(tmp_path / "one" / "run.json")["counts"] == {"features": {"made": 3}}
    assert "counts" not in read_json(tmp_path / "two" / "run.json")
    assert "hit" not in read_jsonl(tmp_path / "two" / "metrics.jsonl")[0]
