"""The whole chain on a small scale: every film decoded once, every set of frames encoded once, kills change nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.killing import Death, killed
from tests.world import weights, without

from longtake.cli.demo import FRAMES, Config
from longtake.cli.demo_stages import STAGES, Plan
from longtake.cli.main import main
from longtake.log import read_json, read_jsonl

SCALE = 0.01  # learns nothing, but does everything
DEATHS = [  # in the tower's training, in GRPO, in the last evaluation
    Death("longtake.train.session:Session.checkpoint", 1),
    Death("longtake.train.policy:backward_kept", 2),
    Death("longtake.eval.command:write_jsonl", 20),
]

Captured = pytest.CaptureFixture[str]


def config(out: Path) -> Config:
    return Config(out=out, scale=SCALE, workers=1)


@pytest.fixture(scope="module")
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, one_core: None) -> Path:
    out = tmp_path_factory.mktemp("out") / "demo"
    assert main(["demo", "--out", str(out), "--scale", str(SCALE), "--workers", "1", "--json"]) == 0
    return out


def summary(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "summary.json").read_text()))


@pytest.mark.slow
def test_every_stage_leaves_its_files(demo: Path) -> None:
    found = summary(demo)
    assert (found["max_decodes_per_film"], found["max_encodes_per_set"]) == (1, 1)
    assert found["films"] == sum(Plan(demo, 0, SCALE, 1).films().values())
    assert found["frame_sets"] > found["films"]
    for name in ("base", "sft", "grpo"):
        assert sorted(found[name]["by_frames"], key=int) == [str(frames) for frames in FRAMES]
        assert found[name]["n"] == 8
        assert read_json(demo / name / "run.json")["status"] == "done"
        assert weights(demo / name / "model")
    assert found["blind"].keys() == {"no_video", "shuffled", "one_frame", "chance"}
    assert set(STAGES) - {"start"} <= found["seconds"].keys()
    assert all(seconds > 0 for seconds in found["seconds"].values())
    assert read_json(demo / "run.json")["status"] == "done"
    page = (demo / "report.html").read_text()
    assert page.startswith(("<!doctype html>", "<!DOCTYPE html>"))
    assert read_jsonl(demo / "grpo" / "rollouts" / "000001.jsonl")


@pytest.mark.slow
def test_a_second_run_returns_the_same(demo: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    before = summary(demo)
    made = {file: file.stat().st_mtime_ns for file in demo.rglob("*.safetensors")}
    for step in ("longtake.train.step.step_optimizer", "longtake.train.rollout.rollout"):
        monkeypatch.setattr(step, lambda *_, **__: pytest.fail("it trains or asks again"))
    assert main(["demo", "--out", str(demo), "--scale", str(SCALE), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert without(told, "seconds") == without(before, "seconds")
    assert {file: file.stat().st_mtime_ns for file in demo.rglob("*.safetensors")} == made


@pytest.mark.slow
@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing_but_the_seconds(demo: Path, tmp_path: Path, death: Death) -> None:
    killed("longtake.cli.demo", config(tmp_path / "cut"), death)
    assert not (tmp_path / "cut" / "summary.json").exists()
    assert main(["demo", "--out", str(tmp_path / "cut"), "--scale", str(SCALE), "--workers", "1", "--json"]) == 0
    assert without(summary(tmp_path / "cut"), "seconds") == without(summary(demo), "seconds")
    for name in ("base", "sft", "grpo"):
        assert weights(tmp_path / "cut" / name / "model") == weights(demo / name / "model")


@pytest.mark.slow
def test_another_seed_does_not_fit_into_the_folder(demo: Path, capsys: Captured) -> None:
    assert main(["demo", "--out", str(demo), "--scale", str(SCALE), "--seed", "1"]) == 1
    assert "seed was 0, now 1" in capsys.readouterr().err


def test_a_small_scale_has_a_few_of_everything() -> None:
    plan = Plan(Path("out"), 0, 0.001, 1)
    assert set(plan.films().values()) == {8}
    assert plan.steps(800) == 2
    whole = Plan(Path("out"), 0, 1.0, 1)
    assert all(count % 4 == 0 for count in whole.films().values())
    assert whole.steps(800) == 800
