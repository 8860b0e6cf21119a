"""`demo --full` on a small scale: goes on where the short demo ended, and adds what AI feedback taught."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.killing import Death, killed
from tests.world import without

from longtake.cli.demo import FRAMES, Config
from longtake.cli.main import main
from longtake.log import read_json

SCALE = 0.01  # learns nothing, but does everything
ADDED = ("judge", "judge_plain", "referee", "reward", "dpo", "ppo")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def made(out: Path, *more: str) -> dict[str, Any]:
    assert main(["demo", "--out", str(out), "--scale", str(SCALE), "--workers", "1", "--json", *more]) == 0
    return dict(json.loads((out / "summary.json").read_text()))


def test_full_adds_to_a_short_demo(tmp_path: Path) -> None:
    short, full = made(tmp_path / "demo"), made(tmp_path / "demo", "--full")
    assert without(short, "seconds", "frame_sets") == {
        name: full[name] for name in short if name not in ("seconds", "frame_sets")
    }
    assert full["judge"].keys() >= {"with_context", "without_context", "flip_rate", "kept"}
    assert full["reward_model"].keys() == {"accuracy", "n", "length_correlation"}
    for name in ("dpo", "ppo"):
        assert full[name].keys() == full["sft"].keys()
        assert sorted(full[name]["by_frames"], key=int) == [str(frames) for frames in FRAMES]
    assert set(ADDED) | {"eval_dpo", "eval_ppo"} <= full["seconds"].keys()
    assert all(read_json(tmp_path / "demo" / name / "run.json")["status"] == "done" for name in ADDED)
    again = made(tmp_path / "demo", "--full")
    assert without(again, "seconds") == without(full, "seconds")

    killed(
        "longtake.cli.demo",
        Config(out=tmp_path / "cut", scale=SCALE, workers=1, full=True),
        Death("longtake.recipes.ppo:learn", 2),
    )
    assert without(made(tmp_path / "cut", "--full"), "seconds") == without(full, "seconds")
