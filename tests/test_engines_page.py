"""docs/engines.md is what bench/results/engines.json says, and so is docs/support.md of docs/support.json."""

from __future__ import annotations

import json

from bench import engines
from tests import support, support_page, support_stages

from longtake.runtime.load import FAMILIES


def test_the_page_is_made_of_the_numbers() -> None:
    found = json.loads(engines.RESULT.read_text())
    assert engines.PAGE.read_text() == engines.page(found)
    for run in found["runs"]:
        assert f"| {run['seed']} | {run['engine']} | {100 * run['sampled']:.1f} |" in engines.PAGE.read_text()
    assert {run["engine"] for run in found["runs"]} == {"local", "vllm"}


def test_both_ways_learn_the_same() -> None:
    """Within two standard errors, on both seeds together."""
    (both,) = (one for one in json.loads(engines.RESULT.read_text())["differences"] if len(one["seeds"]) == 2)
    for way in ("sampled", "greedy"):
        low, high = both[way]["interval"]
        assert low <= 0 <= high


def test_the_support_page_is_made_of_what_was_tried() -> None:
    found = json.loads(support.RESULT.read_text())
    assert support.PAGE.read_text() == support_page.page(found)
    assert set(found) == {family.family for family in FAMILIES}
    for stages in found.values():
        assert set(stages) == set(support_stages.STAGES)
        for own in stages.values():
            assert set(own) == set(support.ENGINES)
            for cell in own.values():
                assert set(cell) == set(support.ASPECTS)
                assert all(one == "pass" or one.startswith(("refused: ", "not run: ")) for one in cell.values())


def test_everything_passes_on_the_local_engine() -> None:
    for family, stages in json.loads(support.RESULT.read_text()).items():
        for stage, own in stages.items():
            blind = "refused: this model reads text only"
            allowed = ({"pass"}, {"pass", blind}) if family == "qwen3" else ({"pass"},)
            assert set(own["local"].values()) in allowed, (family, stage, own["local"])
