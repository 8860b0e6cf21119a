"""The study of cheap gradients: its page says what its numbers say, its runs are the demo's, its pairs are pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from bench import learning, learning_page, learning_plot, readme
from bench.learning import COMPARED, MODES, RATES, gather, rate_of
from tests.world import write

from longtake.cli import demo_stages
from longtake.eval import command as evaluation
from longtake.log import Log
from longtake.recipes import grpo

SEEDS = (3, 5)
STEPS = 40
ASKED = 10
RIGHT = {"start": 4, "exact": 8, "repeat": 7, "none": 8, "quarter": 8, "lora": 8, "alora": 2}  # sampled; greedy: 1 more
TUNED = {
    "seed": 3,
    "steps": 20,
    "tried": {
        "lora": [{"lr": 0.001, "reward": 0.5}, {"lr": 0.003, "reward": 0.4}],
        "alora": [{"lr": 0.001, "reward": 0.5}, {"lr": 0.003, "reward": 0.6}],
    },
}


def judged(folder: Path, right: int) -> None:
    for way, more in (("sampled", 0), ("greedy", 1)):
        rows = [{"id": f"test-{n}", "correct": n < right + more, "tokens": 30 + n % 2} for n in range(ASKED)]
        write(
            folder / "eval" / "outcomes" / f"64-{way}-none.jsonl", [row | {"receipt": {"tokens": 32}} for row in rows]
        )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs: rewards rise from 0.5 by a hundredth a step, an update takes 1 s but for the first."""
    folder = tmp_path_factory.mktemp("learning")
    for seed in SEEDS:
        for name, right in RIGHT.items():
            judged(folder / str(seed) / name, right)
            rows = [
                {
                    "step": n,
                    "reward": 0.49 + n / 100,
                    "grad_norm": 1 / n,
                    "seconds": {"rollout": 2.0, "update": 9.0 if n == 1 else 1.0},
                }
                for n in range(1, STEPS + 1)
            ]
            write(folder / str(seed) / name / "grpo" / "metrics.jsonl", rows)
    return folder


@pytest.fixture(scope="module")
def measured(out: Path) -> dict[str, Any]:
    return gather(SEEDS, out, TUNED)


def test_the_page_is_as_its_numbers_say() -> None:
    made = learning_page.pages(
        json.loads(learning.RESULT.read_text()), (readme.ROOT / learning_page.PAGE).read_text(encoding="utf-8")
    )
    stale = [name for name, text in made.items() if (readme.ROOT / name).read_text(encoding="utf-8") != text]
    assert not stale, "run: python -m bench.learning"


def test_every_run_is_there_with_its_numbers(measured: dict[str, Any]) -> None:
    assert [(run["seed"], run["mode"]) for run in measured["runs"]] == [(s, m.name) for s in SEEDS for m in MODES]
    run = measured["runs"][0]
    assert (len(run["curve"]), run["curve"][0], run["curve"][-1]) == (STEPS, 0.5, 0.89)
    assert (run["sampled"], run["greedy"], run["length"]) == (0.8, 0.9, 30.5)
    assert (run["update_s"], run["rollout_s"], run["first_norm"]) == (1.0, 2.0, 1.0)
    assert run["interval"]["sampled"][0] < 0.8 < run["interval"]["sampled"][1]
    assert [start["sampled"] for start in measured["starts"]] == [0.4, 0.4]


def test_an_adapter_gets_the_rate_that_did_best_and_the_rest_the_demos(measured: dict[str, Any]) -> None:
    rates = {mode.name: rate_of(mode, TUNED) for mode in MODES}
    assert (rates["lora"], rates["alora"]) == (0.001, 0.003)
    assert {rates[name] for name in ("exact", "repeat", "none", "quarter")} == {learning.RATE}
    assert {run["mode"]: run["lr"] for run in measured["runs"]} == rates


def test_differences_are_of_pairs_by_seed_and_together(measured: dict[str, Any]) -> None:
    found = {(one["mode"], one["against"], tuple(one["seeds"])): one for one in measured["differences"]}
    assert list(found) == [(*pair, seeds) for pair in COMPARED for seeds in ((3,), (5,), (3, 5))]
    worse = found["alora", "exact", (3, 5)]["sampled"]
    assert worse["difference"] == pytest.approx(-0.6)
    assert (worse["n"], found["alora", "exact", (3,)]["sampled"]["n"]) == (2 * ASKED, ASKED)
    assert worse["interval"][1] < 0
    same = found["none", "exact", (3, 5)]["sampled"]
    assert same["difference"] == 0.0
    assert same["interval"][0] < 0 < same["interval"][1]


def test_outcomes_that_are_no_pairs_are_refused(out: Path, tmp_path: Path) -> None:
    judged(tmp_path / "3" / "exact", 8)
    judged(tmp_path / "3" / "none", 8)
    file = tmp_path / "3" / "none" / "eval" / "outcomes" / "64-sampled-none.jsonl"
    file.write_text("".join(reversed(file.read_text().splitlines(keepends=True))))
    with pytest.raises(AssertionError, match="same order"):
        learning.difference(tmp_path, "none", "exact", (3,))


@pytest.mark.parametrize(
    ("difference", "interval", "said"),
    [
        (-0.01, [-0.03, 0.01], "no difference seen"),
        (0.01, [0.0, 0.02], "no difference seen"),
        (0.06, [0.01, 0.11], "more right"),
        (-0.06, [-0.11, -0.01], "fewer right"),
        (-0.05, [-0.08, -0.02], "fewer right, within what two exact runs differ by"),
    ],
)
def test_what_a_difference_allows_to_say(difference: float, interval: list[float], said: str) -> None:
    assert learning_page.verdict({"difference": difference, "interval": interval}, 0.05) == said


def test_the_text_tells_every_comparison(measured: dict[str, Any]) -> None:
    answer, _, *lines = learning_page.reading(measured).splitlines()
    assert len(lines) == len(COMPARED) - 1
    assert "**aLoRA** against exact: sampled -60.0 [" in lines[3]
    assert lines[3].count("fewer right;") == lines[3].count("fewer right.") == 1
    assert lines[0].count("no difference seen") == 2
    assert answer.startswith("Seen to learn worse than exact: aLoRA. Two exact runs")
    assert "are apart by sampled 10.0 and 10.0; greedy 10.0 and 10.0 points (seed 3 and 5)." in answer
    assert len(learning_page.differences(measured).splitlines()) == 2 + 3 * len(COMPARED)
    rows = learning_page.table(measured).splitlines()
    assert len(rows) == 2 + len(SEEDS) * (1 + len(MODES))
    assert rows[3] == "| 3 | exact | 0.0003 | 0.695 | 0.795 | 80.0 | 90.0 | 30 | 2.00 | 1.00 |"
    setting = learning_page.setting(measured)
    assert "LoRA: 0.001 → 0.500, 0.003 → 0.400; aLoRA: 0.001 → 0.500, 0.003 → 0.600" in setting
    assert f"GRPO for {STEPS} steps" in setting


def test_what_two_exact_runs_differ_by_too_is_not_called_worse(measured: dict[str, Any]) -> None:
    far = {**measured, "differences": [further(one) for one in measured["differences"]]}
    assert learning_page.reading(far).startswith("No cheap mode (none, p = ¼, aLoRA) was seen to learn worse")


def further(one: dict[str, Any]) -> dict[str, Any]:
    """A comparison; the two exact runs are as far apart as aLoRA is from exact."""
    if one["mode"] != "repeat":
        return one
    return one | {way: one[way] | {"difference": -0.6} for way in ("sampled", "greedy")}


def test_a_page_follows_its_numbers(measured: dict[str, Any]) -> None:
    page = (readme.ROOT / learning_page.PAGE).read_text(encoding="utf-8")
    before = learning_page.pages(measured, page)
    measured["runs"][0]["curve"][-1] += 0.1
    after = learning_page.pages(measured, page)
    measured["runs"][0]["curve"][-1] -= 0.1
    assert all(before[name] != after[name] for name in before)


def test_the_figure_shows_means_of_twenty_steps_in_a_panel_a_seed(measured: dict[str, Any]) -> None:
    drawn = learning_plot.picture(measured)
    lines = [one.split() for one in re.findall(r'<polyline[^>]*points="([^"]*)"', drawn)]
    assert len(lines) == len(SEEDS) * len(MODES)
    assert {len(points) for points in lines} == {STEPS - learning_plot.SMOOTH + 1}
    assert drawn.count("seed 3<") == drawn.count("seed 5<") == 1
    curve = [0.0] * 20 + [1.0] * 20
    assert learning_plot.smoothed(curve) == pytest.approx([n / 20 for n in range(21)])
    assert learning_plot.smoothed([0.0, 1.0]) == [0.5]


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("colour", [colour for *_, colour, _ in learning_plot.LINES])
def test_lines_are_seen_on_a_light_and_on_a_dark_page(colour: str) -> None:
    light, dark = luminance("#ffffff"), luminance("#0d1117")
    assert (light + 0.05) / (luminance(colour) + 0.05) >= 4
    assert (luminance(colour) + 0.05) / (dark + 0.05) >= 4


def test_runs_are_the_demos_own_but_for_their_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "difficulty").mkdir()
    (tmp_path / "difficulty" / "summary.json").write_text('{"medium": 700}')
    plan, asked = demo_stages.Plan(tmp_path, 7, 1.0, 1), []
    monkeypatch.setattr(grpo, "run", lambda config, log: asked.append(config))
    monkeypatch.setattr(evaluation, "run", lambda config, log: asked.append(config))
    demo_stages.reinforce(plan, Log())
    demo_stages.evaluated("sft")(plan, Log())
    trained, judged_by = asked
    exact = learning.training(plan, MODES[0], learning.RATE, learning.GRPO_STEPS, plan.out / "grpo")
    assert exact.model_dump() == trained.model_dump()
    ours = learning.judging(plan, plan.out / "sft" / "model", plan.out / "eval" / "sft").model_dump()
    theirs = judged_by.model_dump()
    assert ours.pop("video") | {"frames": 0} == theirs.pop("video") | {"frames": 0}
    assert ours == theirs
    assert judged_by.video.frames[-1] == learning.MOST


def test_modes_are_what_they_are_called(tmp_path: Path) -> None:
    (tmp_path / "difficulty").mkdir()
    (tmp_path / "difficulty" / "summary.json").write_text('{"medium": 700}')
    plan = demo_stages.Plan(tmp_path, 7, 1.0, 1)
    made = {mode.name: learning.training(plan, mode, RATES[0], 2, tmp_path / mode.name) for mode in MODES}
    assert {name: (one.adapter.kind, one.prefix_gradient) for name, one in made.items()} == {
        "exact": ("full", "exact"), "repeat": ("full", "exact"), "none": ("full", "none"), "quarter": ("full", 0.25),
        "lora": ("lora", "exact"), "alora": ("alora", "exact"),
    }  # fmt: skip
    assert {name for name, one in made.items() if one.seed != 7} == {"repeat"}
    for one in made.values():
        one.memory.check(one.adapter.kind, one.prefix_gradient)
    assert {one.adapter.rank for one in made.values() if one.adapter.kind != "full"} == {learning.RANK}
    assert {name for name, *_ in learning_plot.LINES} == {mode.name for mode in MODES}
