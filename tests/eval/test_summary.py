"""Outcomes to the numbers of eval.json, and paired differences."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from longtake.eval.summary import Outcome, numbers, paired, summary

CLOSE = 1e-9


def outcome(id: str, correct: bool, **changes: object) -> Outcome:
    base = Outcome(id, "spatial", 3, correct, True, 20, "<think>", "B", 64, 1.0)
    return replace(base, **changes)  # type: ignore[arg-type]


def test_numbers_of_one_setting() -> None:
    rows = [
        outcome("a", True),
        outcome("b", False, hops=0, tokens=40, format=False, extracted=None),
        outcome("c", True, kind="plot"),
        outcome("d", True, kind=""),
    ]
    found = numbers(rows)
    assert (found["frames"], found["temperature"], found["control"]) == (64, 1.0, "")
    assert (found["accuracy"], found["n"]) == (0.75, 4)
    assert found["interval"] == pytest.approx([0.30064, 0.95441], abs=1e-4)  # Wilson, 3 of 4
    assert {kind: (part["accuracy"], part["n"]) for kind, part in found["by_kind"].items()} == {
        "plot": (1.0, 1),
        "spatial": (0.5, 2),
    }
    assert {hops: part["n"] for hops, part in found["by_hops"].items()} == {"3": 3}
    assert (found["chain_length"], found["format"], found["unread"]) == (25.0, 0.75, 0.25)


def test_settings_are_told_apart_and_ordered() -> None:
    rows = [
        outcome(name, correct, frames=frames, temperature=temperature, control=control)
        for frames, temperature, control, correct in [
            (64, 1.0, "no_video", False),
            (64, 1.0, "", True),
            (8, 1.0, "", False),
            (64, 0.0, "", True),
        ]
        for name in "ab"
    ]
    found = summary("out/sft", rows)
    assert (found["model"], found["rows"]) == ("out/sft", 2)
    order = [(entry["control"], entry["temperature"], entry["frames"]) for entry in found["settings"]]
    assert order == [("", 0.0, 64), ("", 1.0, 8), ("", 1.0, 64), ("no_video", 1.0, 64)]
    assert [entry["accuracy"] for entry in found["settings"]] == [1.0, 0.0, 1.0, 0.0]
    json.dumps(found, allow_nan=False)
    with pytest.raises(ValueError, match="4 settings"):
        numbers(rows)
    with pytest.raises(ValueError, match="0 settings"):
        numbers([])
    assert summary("m", []) == {"model": "m", "rows": 0, "settings": []}


def test_paired_difference() -> None:
    before = [outcome(str(i), i < 4, kind="plot" if i % 2 else "spatial") for i in range(10)] + [outcome("x", True)]
    after = [outcome(str(i), i != 0, kind="plot" if i % 2 else "spatial") for i in range(10)]
    found = paired(before, after)
    assert (found["before"], found["after"], found["n"], found["unpaired"]) == (0.4, 0.9, 10, 1)
    assert (found["difference"], found["gained"], found["lost"]) == (pytest.approx(0.5, abs=CLOSE), 6, 1)
    low, high = found["interval"]
    assert low < 0.5 < high
    assert (low + high) / 2 == pytest.approx(5 / 12, abs=CLOSE)  # half a pair more in each of four cells
    assert found["by_kind"]["plot"]["n"] == 5
    assert found["by_frames"]["64"]["n"] == 10
    assert found["by_hops"]["3"]["difference"] == pytest.approx(0.5, abs=CLOSE)
    json.dumps(found, allow_nan=False)


def test_pairs_must_be_pairs() -> None:
    with pytest.raises(ValueError, match="no question"):
        paired([outcome("a", True)], [outcome("a", True, frames=8)])
    with pytest.raises(ValueError, match="twice in after"):
        paired([outcome("a", True)], [outcome("a", True), outcome("a", False)])
    assert paired([outcome("a", True)], [outcome("a", True)])["interval"] is None
