"""docs/ranks.md is what bench/results/ranks.json and the cost model say; what was measured keeps its promises."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from bench import ranks, ranks_page, ranks_world
from tests.ranks import run

from longtake.cli.main import main
from longtake.parallel.axis import ALONE

EXACT = 1e-12  # gradients in float64, of the largest
PADDING = 0.02  # of what is computed or sent


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return json.loads(ranks.RESULT.read_text())


@pytest.fixture(scope="module")
def cases(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [case | {"ranks": world["ranks"]} for world in found["worlds"] for case in world["cases"]]


def test_the_page_is_made_of_the_numbers(found: dict[str, Any]) -> None:
    text = ranks_page.PAGE.read_text()
    assert text == ranks_page.page(text, found)


def test_prose_has_no_number() -> None:
    """Every number stands between markers, in a command or in a link."""
    text = re.sub(r"<!-- (\w+):.*?<!-- /\1 -->", "", ranks_page.PAGE.read_text(), flags=re.DOTALL)
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    for name in ("FSDP2", "7B", "LongVILA-R1"):
        text = text.replace(name, "")
    assert not re.findall(r"\d+", text)


def test_n_ranks_have_one_ranks_gradients(cases: list[dict[str, Any]]) -> None:
    assert {(case["ranks"], case["keep"], case["how"]) for case in cases} == {
        *((1, keep, "") for keep in ("graph", "layers")),
        *((n, keep, how) for n in (2, 4) for keep in ("graph", "layers") for how in ("gather", "ulysses")),
    }
    assert max(case["difference"] for case in cases) < EXACT
    odd = [case for case in cases if case["asked"] == "ulysses" and case["how"] == "gather"]
    assert {(case["net"], case["ranks"]) for case in odd} == {("14 and 2", 4)}


def test_every_token_is_computed_once(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        assert len(case["prefix"]) == case["ranks"]
        assert sum(case["prefix"]) == case["tokens"]
        assert max(case["prefix"]) * case["ranks"] <= (1 + PADDING) * case["tokens"]
    assert len({sum(case["answers"]) for case in cases}) == 1


def test_what_travels_is_what_the_formula_says(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        if case["ranks"] > 1:
            sent = 0
            for way in ("forward", "backward"):
                said, counted = sum(case["formula"][way].values()), sum(case[way].values())
                assert said * (1 - PADDING) <= counted <= said * (1 + PADDING), (case["net"], way)
                assert set(case["formula"][way]) <= set(case[way])
                sent += counted
            assert case["padding"] <= PADDING * sent


def test_a_share_needs_less_room(cases: list[dict[str, Any]]) -> None:
    for net in {case["net"] for case in cases}:
        longest = max(case["tokens"] for case in cases if case["net"] == net)
        for keep in ("graph", "layers"):
            own = {
                case["ranks"]: max(case["peak_mb"])
                for case in cases
                if (case["net"], case["tokens"], case["keep"], case["asked"]) == (net, longest, keep, "gather")
            }
            assert own[4] < own[2] < own[1], (net, keep)


def test_the_cost_model_knows_what_is_held(cases: list[dict[str, Any]]) -> None:
    """A graph to a third; layers that are computed again need no more than it says, nor less than half of that."""
    for case in cases:
        if case["asked"] == "gather":
            ratio = case["model_mb"] / max(case["peak_mb"])
            assert 0.95 < ratio < (1.34 if case["keep"] == "graph" else 2.4), (
                case["net"],
                case["tokens"],
                case["ranks"],
            )


def test_frames_go_through_the_tower_once(found: dict[str, Any]) -> None:
    for world in found["worlds"]:
        seen = world["films"]
        assert sum(seen["frames"]) == sum(seen["films"])
        assert sum(seen["read"]) == seen["pixels"]
        assert max(seen["read"]) <= 1.2 * seen["pixels"] / world["ranks"]


@pytest.mark.parametrize(
    ("visual", "over", "ratio", "lost"),
    [(1925, 4, 6.8, 1), (15360, 4, 2.0, 0), (30720, 4, 1.5, 0), (216_000, 8, 1.15, 0), (3903, 4, None, 3)],
)
def test_the_published_slicer(visual: int, over: int, ratio: float | None, lost: int) -> None:
    """Ratios that were measured by running it (600 answer tokens), and what it drops."""
    computed, dropped = ranks_page.slicer(visual, 200, 600, over)
    assert dropped == lost
    if ratio is not None:
        assert computed == pytest.approx(ratio, rel=0.03)


def test_worlds_are_measured(tmp_path: Path) -> None:
    """The same in small: one rank, then three, whose gradients are compared with its."""
    how = ranks_world.plan(tiny=True)
    alone = list(ranks_world.cases(ALONE, how, tmp_path))
    for own in run(3, measured, how, tmp_path):
        assert [(case["how"], case["difference"] < EXACT, sum(case["prefix"])) for case in own] == [
            (told, True, alone[0]["tokens"]) for told in ["gather"] * len(own)
        ]
        assert len(own) == 2 * len(alone)
        rows = own[0]["forward"]["rows"] / own[0]["formula"]["forward"]["rows"]
        assert 1 <= rows < 1.15


def measured(world, how, folder):
    return list(ranks_world.cases(world, how, folder))


def shown() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", ranks_page.PAGE.read_text(), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


@pytest.mark.parametrize("line", shown())
def test_commands_that_are_shown_are_understood(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    start, _, own = line.partition(" -m longtake.cli.main ")
    assert start.startswith("torchrun ")
    assert main([*shlex.split(own), "--dry-run"]) == 0, capsys.readouterr().err
