"""docs/reductions.md and its figure are what bench/results/reductions.json says; its films carry a clock."""

from __future__ import annotations

import json

import numpy as np
import pytest
from bench import reductions, reductions_net, reductions_page, reductions_plot

from longtake.models.reduce import Reduction
from longtake.sim.scenes import FPS, SECONDS, SIZE


@pytest.fixture(scope="module")
def found() -> dict:
    return json.loads(reductions.RESULT.read_text())


def test_the_page_is_made_of_the_numbers(found: dict) -> None:
    assert reductions_page.PAGE.read_text() == reductions_page.page(found)
    run = found["runs"][0]
    assert reductions_page.FIGURE.read_text() == reductions_plot.picture(run, found["start"], "greedy")
    for one in run["settings"]:
        row = f"| {one['tokens']:.0f} | {one['frames']} | `{one['reduce']}` | {100 * one['sampled']['value']:.1f} "
        assert row in reductions_page.PAGE.read_text()


def test_tokens_are_those_of_the_reduction(found: dict) -> None:
    learned = Reduction.parse("before")
    for one in found["runs"][0]["settings"]:
        grid = reductions_net.PIXELS.grid
        assert one["tokens"] == Reduction.parse(one["reduce"], like=learned).tokens(one["frames"], grid, grid)


def test_every_setting_was_asked_of_the_same_questions(found: dict) -> None:
    settings = found["runs"][0]["settings"]
    assert {one["n"] for one in settings} == {600}
    asked = {(one["reduce"], one["frames"]) for one in settings if one["trained"] == found["start"]}
    assert asked == {(reduce, n) for reduce, frames in reductions.ASKED for n in frames}
    assert {one["trained"] for one in settings} == {arm.name for arm in (reductions.START, *reductions.ARMS)}


def test_differences_are_those_of_the_settings(found: dict) -> None:
    run = found["runs"][0]
    at = {(s["trained"] == found["start"], s["reduce"], s["frames"]): s for s in run["settings"]}
    assert len(run["differences"]) > len(reductions.ARMS)
    for one in run["differences"]:
        asleep = one["trained"] == found["start"]
        mine, plain = at[asleep, one["reduce"], 64], at[asleep, reductions.LEARNED, one["against"]]
        assert mine["tokens"] == plain["tokens"] == one["tokens"]
        for way in reductions.WAYS:
            assert one[way]["difference"] == pytest.approx(mine[way]["value"] - plain[way]["value"])


def test_the_clock_shows_the_second() -> None:
    film = reductions_net.clocked(np.full((FPS * SECONDS, SIZE, SIZE, 3), 7, np.uint8))
    for tick, picture in enumerate(film):
        lit = np.flatnonzero(picture[0, :, 0])
        assert (lit // (SIZE // SECONDS) == tick // FPS).all()
        assert len(lit) == SIZE // SECONDS
        assert (picture[reductions_net.BAR :] == 7).all()


def test_a_line_for_every_reduction() -> None:
    start = reductions.START.name
    asked = [{"reduce": reduce, "frames": n, "trained": start} for reduce, frames in reductions.ASKED for n in frames]
    lines = {(one["reduce"], one["frames"]): reductions_plot.kind(one, start) for one in asked}
    assert lines["merge:0.5,pool:2", 64] == "both"
    assert lines[reductions.LEARNED, 48] == "odd"
    assert lines[reductions.LEARNED, 64] == reductions.LEARNED
    assert set(lines.values()) == {line[0] for line in reductions_plot.LINES}


def test_only_equal_tokens_are_compared() -> None:
    """Three right answers of four against one: on the same questions, at as many tokens, trained like each other."""

    def setting(trained: str, reduce: str, frames: int, tokens: float, right: list[int]) -> dict:
        own = dict.fromkeys(reductions.WAYS, right)
        return {"trained": trained, "reduce": reduce, "frames": frames, "tokens": tokens, "right": own}

    start = reductions.START.name
    plain = setting(start, reductions.LEARNED, 16, 64.0, [1, 0, 0, 0])
    same = setting(start, "time:4", 64, 64.0, [1, 1, 1, 0])
    others = [
        setting(start, "time:2", 64, 128.0, [0, 0, 0, 0]),
        setting(start, "pool:2", 16, 64.0, [0, 0, 0, 0]),
        setting("time:4@64", "time:4", 64, 64.0, [0, 0, 0, 0]),
    ]
    (found,) = reductions.differences([plain, same, *others])
    assert (found["reduce"], found["against"], found["tokens"]) == ("time:4", 16, 64.0)
    assert found["greedy"]["difference"] == 0.5
