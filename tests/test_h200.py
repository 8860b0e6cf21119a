"""The GPU benchmark with a toy network on the processor: what it measures, and that calls go on where one stopped."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from bench import h200, h200_bench
from bench.h200_bench import CAPPED, CAPS, Bench, next_size
from bench.h200_net import TINY
from bench.h200_step import MODES

ROOT = Path(__file__).parents[1]
FIELDS = {"mode", "family", "frames", "prefix", "answer", "G", "update_s", "step_s", "phases", "peak_mb", "runs"}
SAME = ("encode_once", "exact", "exact_layers", "exact_attention", "exact_host")  # one gradient
AGREE = 1e-5  # relative, of norms in float32
PARTS = {  # seconds of an update; the rollout's are before them
    "encode_once": {"policy", "optimizer"},
    "exact": {"prefill", "answers", "prefix_backward", "optimizer"},
    "exact_layers": {"prefill", "answers", "prefix_backward", "optimizer"},
    "exact_attention": {"prefill", "answers", "prefix_backward", "optimizer"},
    "exact_host": {"prefill", "answers", "prefix_backward", "optimizer"},
    "no_prefix_gradient": {"answers", "optimizer"},
    "alora": {"answers", "optimizer"},
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A results file with everything in it."""
    path = tmp_path_factory.mktemp("h200") / "tiny.json"
    assert h200.main(["--tiny", "--out", str(path), "--seconds", "36000"]) == 0  # however slow the machine is
    return path


@pytest.fixture
def results(measured: Path) -> dict[str, Any]:
    return dict(json.loads(measured.read_text()))


def test_every_mode_is_a_row_of_the_contract(results: dict[str, Any]) -> None:
    assert {"machine", "versions", "date"} <= results.keys()
    for frames in (4, 8):
        rows = {row["mode"]: row for row in results["rows"] if (row["frames"], row["cap_gb"]) == (frames, None)}
        assert list(rows) == ["generate", *MODES]
        for mode in MODES:
            row = rows[mode]
            assert row.keys() >= FIELDS | {"device", "cap_gb"}
            assert (row["prefix"], row["answer"], row["G"]) == (frames * 3 + 12, 6, 3)
            assert row["update_s"] == pytest.approx(sum(row["phases"][part] for part in PARTS[mode]))
            assert row["step_s"] == pytest.approx(sum(row["phases"].values()))
            assert ("prefill" in row["phases"]) == (mode != "alora")
            assert row["phases"]["generate"] == rows["generate"]["phases"]["generate"]
        norms = [rows[mode]["norm"] for mode in SAME]
        assert norms == pytest.approx([norms[0]] * len(norms), rel=AGREE)
        assert abs(rows["alora"]["norm"] / norms[0] - 1) > AGREE


def test_numbers_are_those_of_the_twins(results: dict[str, Any]) -> None:
    checks = {row["check"] for row in results["numerics"]}
    assert checks == {"shared", "extend", "log-sum-exp", "decode", "gradient"}
    assert all(row["ok"] for row in results["numerics"])
    ways = {(row["kind"], row["dtype"], row["way"]) for row in results["numerics"] if row["check"] == "gradient"}
    assert {(kind, "bfloat16", way) for kind in ("full", "lora") for way in ("per_answer", "exact")} <= ways
    assert [row["frames"] for row in results["tower"]] == [4, 8]


def test_every_cap_has_the_largest_frame_count_of_every_mode(results: dict[str, Any]) -> None:
    """Without a limit on the processor the largest of all fits, and less memory that fits need not be tried again."""
    found = {(row["cap_gb"], row["mode"]): row["frames"] for row in results["rows"] if row["cap_gb"]}
    assert found == {(cap, mode): 16 for cap in CAPS for mode in CAPPED}
    assert {row["cap_gb"] for row in results["trials"]} == {min(CAPS)}


def test_what_is_there_is_not_measured_again(measured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = measured.read_bytes()
    assert h200.main(["--tiny", "--out", str(measured)]) == 0
    assert measured.read_bytes() == before
    assert not capsys.readouterr().out


def test_a_call_stops_when_its_time_is_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["--tiny", "--out", str(tmp_path / "a.json"), "--seconds", "0", "tower"]
    assert h200.main(call) == 3
    assert "time is up before tower/8" in capsys.readouterr().out
    assert h200.main(call) == 0
    assert [row["frames"] for row in json.loads((tmp_path / "a.json").read_text())["tower"]] == [4, 8]


def test_results_of_another_machine_are_not_mixed(
    measured: Path, results: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other, mine = tmp_path / "other.json", tmp_path / "mine.json"
    other.write_text(json.dumps(results | {"machine": {"gpus": [{"name": "NVIDIA H200", "gib": 139.7}]}}))
    with pytest.raises(SystemExit):
        h200.main(["--tiny", "--out", str(other)])
    assert "is of another machine" in capsys.readouterr().err
    assert not h200.opened(mine, "cpu", other)["rows"]
    assert h200.opened(mine, "cpu", measured)["rows"] == results["rows"]


def bench(results: dict[str, Any]) -> Bench:
    return Bench(TINY, "cpu", copy.deepcopy(results) | {"rows": [], "trials": []})


def test_a_mode_that_does_not_fit_says_so(results: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    here = bench(results)
    assert here.net

    def none(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(h200_bench, "step", none)
    ((name, row),) = here.timed(4, "exact")
    assert (name, row["update_s"], row["step_s"], row["runs"]) == ("rows", None, None, 0)
    assert "Tried to allocate" in row["out_of_memory"]
    ((_, trial),) = here.tried(24, "exact", 8)
    assert not trial["fits"]


def test_a_failure_is_written_down_and_the_rest_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*_: object) -> None:
        raise TypeError("no such op in this build")

    call = ["--tiny", "--out", str(tmp_path / "a.json"), "tower"]
    with monkeypatch.context() as patched:
        patched.setattr(h200_bench, "encode", wrong)
        assert h200.main(call) == 1
    assert "tower/8: FAILED" in capsys.readouterr().out
    failures = json.loads((tmp_path / "a.json").read_text())["failures"]
    assert [one["item"] for one in failures] == ["tower/4", "tower/8"]
    assert "no such op" in failures[0]["error"]
    assert h200.main(call) == 0
    assert not json.loads((tmp_path / "a.json").read_text())["failures"]


@pytest.mark.parametrize("largest", range(7))
def test_the_largest_that_fits_is_found(largest: int) -> None:
    sizes = (16, 32, 64, 128, 256, 512)
    fits: dict[int, bool] = {}
    while (size := next_size(sizes, fits)) is not None:
        assert size not in fits
        fits[size] = sizes.index(size) < largest
    assert max((size for size, fit in fits.items() if fit), default=0) == (0, *sizes)[largest]
    assert len(fits) <= 3


def test_trials_of_other_caps_count_where_they_say_something(results: dict[str, Any]) -> None:
    here = bench(results)
    tried = ((24, 64, True), (24, 128, False), (80, 512, True), (80, 1024, False))
    here.results["trials"] = [
        {"mode": "exact", "cap_gb": cap, "frames": frames, "fits": fit, "item": ""} for cap, frames, fit in tried
    ]
    assert here.fits(48, "exact") == {64: True, 1024: False}
    assert here.fits(48, "alora") == {}
    ((_, row),) = here.largest(48, "exact")
    assert (row["frames"], row["cap_gb"]) == (64, 48)
    ((_, row),) = here.largest(48, "alora")
    assert row["frames"] == 0


GUARD = """
import builtins, sys
for name in ("pydantic", "av", "rich", "tyro", "jinja2"):
    sys.modules[name] = None
real, met = builtins.__import__, set()
def guard(name, globals=None, locals=None, fromlist=(), level=0):
    if (globals or {}).get("__name__", "").startswith(("longtake", "bench")):
        met.add(name.split(".")[0])
    return real(name, globals, locals, fromlist, level)
builtins.__import__ = guard
import bench.h200
allowed = sys.stdlib_module_names | {"bench", "longtake", "torch", "transformers", "peft", "safetensors"}
sys.exit(", ".join(sorted(met - allowed)) or 0)
"""


def test_it_needs_no_more_than_a_gpu_machine_has() -> None:
    """safetensors comes with transformers."""
    there = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT)))}
    ran = subprocess.run([sys.executable, "-c", GUARD], env=there, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it would begin to measure")
def test_the_script_runs() -> None:
    there = {**os.environ, "PYTHON": sys.executable}
    ran = subprocess.run(["sh", ROOT / "bench/h200.sh"], env=there, capture_output=True, text=True, check=False)
    assert (ran.returncode, "no GPU here" in ran.stderr) == (2, True), ran.stderr


@pytest.mark.parametrize("words", [["--tiny"], ["--tiny", "--out", "a.json", "63"]])
def test_calls_that_make_no_sense_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        h200.main(words)
    assert "--out" in capsys.readouterr().err
