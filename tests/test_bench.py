"""`make bench`: every mode steps on a tiny network, twins agree, rows are medians, page and picture show them."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench import cpu, cpu_page, cpu_picture, cpu_worker
from bench.cpu_worker import MODES, OURS, PEERS, SAME
from bench.cpu_world import TOKENS, Shape, World, build
from tests.world import silent

from longtake.errors import UserError

FRAMES, GROUP, ANSWER = 16, 2, 3
SHAPE = Shape(layers=2, width=32, heads=2, kv_heads=1, tower_width=16, tower_layers=2)
NORM = 1e-4  # relative difference of gradient norms in float32
HERE = [mode for mode in (*OURS, *PEERS) if mode != "prefix_grouper" or importlib.util.find_spec("prefix_grouper")]
KEYS = {"mode", "family", "frames", "prefix", "answer", "G", "update_s", "step_s", "phases", "peak_mb", "runs"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build(tmp_path_factory.mktemp("bench"), SHAPE, (FRAMES,))


@pytest.fixture(scope="module")
def steps(world: World) -> dict[str, dict[str, Any]]:
    """Numbers of one step of every mode that is installed."""
    found: dict[str, dict[str, Any]] = {}
    for mode in HERE:
        wanted = iter((True, False))
        told: list[dict[str, Any]] = []
        cpu_worker.opened(world, mode, FRAMES, GROUP, ANSWER)(lambda wanted=wanted: next(wanted), told.append)
        (found[mode],) = told
    return found


def test_every_mode_makes_a_step(steps: Mapping[str, Any]) -> None:
    assert set(HERE) <= set(MODES)
    for mode, step in steps.items():
        assert all(seconds > 0 for seconds in step["phases"].values()), mode
        assert {"decode", "encode", "optimizer"} < step["phases"].keys()
        assert 0 < step["update_s"] < sum(step["phases"].values())
        assert step["norm"] > 0


def test_twins_compute_the_gradient_that_exact_computes(steps: Mapping[str, Any]) -> None:
    norms = {mode: step["norm"] for mode, step in steps.items()}
    for mode in SAME:
        if mode in norms:
            assert norms[mode] == pytest.approx(norms["exact"], rel=NORM), mode
    assert norms["no_prefix_gradient"] != pytest.approx(norms["exact"], rel=100 * NORM)


def test_the_update_of_exact_modes_counts_one_prefix_forward(steps: Mapping[str, Any]) -> None:
    for mode in ("exact", "exact_layers", "no_prefix_gradient", "alora"):
        phases = steps[mode]["phases"]
        own = phases["update"] + phases["optimizer"] + (phases["prefill"] if mode in SAME else 0.0)
        assert steps[mode]["update_s"] == pytest.approx(own)


def test_three_passes_are_three(steps: Mapping[str, Any]) -> None:
    assert {"old", "reference", "policy"} < steps["per_answer_3pass"]["phases"].keys()
    assert not {"old", "reference"} & steps["per_answer"]["phases"].keys()


@pytest.mark.parametrize(("mode", "times"), [("per_answer", 1), ("per_answer_3pass", 3), ("encode_once", 0)])
def test_films_are_encoded_as_often_as_is_said(
    world: World, mode: str, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bench import cpu_peers
    from bench.cpu_scene import Clock, opened

    scene = opened(world, FRAMES, GROUP, ANSWER)
    films: list[Any] = []
    encode = scene.model.encode
    with scene.touched(world.folder / mode, Clock()):
        monkeypatch.setattr(scene.model, "encode", lambda asked: films.extend(asked) or encode(asked))
        getattr(cpu_peers, mode)(scene)
    assert len(films) == times * GROUP


def test_prompts_have_the_length_that_is_told(world: World) -> None:
    from bench.cpu_scene import Clock, opened

    scene = opened(world, FRAMES, GROUP, ANSWER)
    with scene.touched(world.folder / "room", Clock()):
        assert len(scene.prompt.ids) == TOKENS * FRAMES == cpu.Setting(FRAMES, GROUP, ()).prefix
        assert scene.prompt.receipt is not None
        assert len(scene.prompt.receipt.indices) == FRAMES


def step(update: float, norm: float = 1.0, peak: float = 10.0) -> dict[str, Any]:
    phases = {"decode": 1.0, "encode": 2.0, "rollout": 0.5, "policy": update}
    return {"phases": phases, "update_s": update, "norm": norm, "peak_mb": peak}


class Pretended:
    """Workers whose steps are known."""

    def __init__(self) -> None:
        self.asked: list[str] = []  # in the order in which steps were made
        self.updates = {"exact": [9.0, 1.0, 5.0, 2.0], "per_answer": [30.0]}
        self.norms: dict[str, float] = {}

    def __call__(self, folder: Path, mode: str, setting: cpu.Setting, answer: int) -> PretendedWorker:
        return PretendedWorker(self, mode)


class PretendedWorker:
    """Stands for cpu.Worker."""

    def __init__(self, all_of_them: Pretended, mode: str) -> None:
        self.all, self.mode, self.left = all_of_them, mode, iter(all_of_them.updates[mode])

    def listen(self) -> None:
        """The network is loaded."""

    def step(self) -> dict[str, Any]:
        self.all.asked.append(self.mode)
        return step(next(self.left), self.all.norms.get(self.mode, 1.0))

    def end(self) -> None:
        self.all.asked.append("end")


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    them = Pretended()
    monkeypatch.setattr(cpu, "Worker", them)
    return them


def test_rows_are_medians_of_steps_made_in_turn(tmp_path: Path, pretended: Pretended) -> None:
    setting = cpu.Setting(16, 2, ("exact", "per_answer"))
    exact, slow = cpu.measure(tmp_path, setting, silent())
    assert pretended.asked == ["exact", "per_answer", "end", *["exact"] * 3, "end", "end"]
    assert exact.keys() > KEYS
    assert (exact["update_s"], exact["step_s"], exact["first_s"]) == (2.0, 2.5, 5.5)
    assert (exact["runs"], exact["spread"], exact["peak_mb"]) == (3, [1.0, 5.0], 10.0)
    assert (slow["update_s"], slow["runs"]) == (30.0, 1)
    assert (exact["frames"], exact["prefix"], exact["G"], exact["answer"]) == (16, 256, 2, 64)


def test_a_mode_with_another_gradient_is_refused(tmp_path: Path, pretended: Pretended) -> None:
    pretended.norms = {"per_answer": 1.01}
    with pytest.raises(UserError, match="per_answer computes another gradient"):
        cpu.measure(tmp_path, cpu.Setting(16, 2, ("exact", "per_answer")), silent())
    assert pretended.asked[-2:] == ["end", "end"], "no process is left behind"


def test_a_mode_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(UserError, match="mode exact cannot be measured"):
        cpu.measure(tmp_path, cpu.Setting(16, 2, ("exact",)), silent())


def test_quick_is_what_the_contract_says() -> None:
    timed = [setting for setting in cpu.QUICK if setting.group == 8]
    assert [(setting.prefix, "trl" in setting.modes) for setting in timed] == [(2048, True), (8192, False)]
    assert all(set(MODES) - {"trl"} <= set(setting.modes) for setting in timed)


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return dict(json.loads(cpu_page.RESULT.read_text()))


def test_the_result_has_the_keys_of_the_contract(measured: Mapping[str, Any]) -> None:
    assert {"machine", "versions", "date", "rows"} <= measured.keys()
    assert all(row.keys() >= KEYS for row in measured["rows"])
    assert {row["mode"] for row in measured["rows"]} == set(MODES)


def test_ratios_are_of_the_rows_they_name(measured: Mapping[str, Any]) -> None:
    rows = [dict(row) for row in measured["rows"]]
    before = cpu_page.ratios(rows)
    exact = cpu_page.find(rows, "exact", 8192)
    assert exact is not None
    exact["update_s"] *= 2
    after = cpu_page.ratios(rows)
    halved = [name for name in before if after[name] == pytest.approx(before[name] / 2)]
    assert halved == [name for name in before if name.startswith("update at 8k, exact")]
    assert len(halved) == 3


def test_page_and_picture_show_what_was_measured(measured: Mapping[str, Any]) -> None:
    rows = [dict(row) for row in measured["rows"]]
    shown = cpu_picture.picture(rows)
    updates, memory = cpu_picture.curves(rows)
    points = sum(len(line) for line in (*updates.values(), *memory.values()))
    assert shown.count("<circle") == points
    row = cpu_page.find(rows, "exact", 2048)
    assert row is not None
    row["update_s"] = 0.1234
    assert "| 0.123 |" in cpu_page.table({**measured, "rows": rows})
    assert cpu_picture.picture(rows) != shown
