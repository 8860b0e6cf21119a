"""`longtake plan`: numbers from sizes alone, in a table and as JSON; every wrong word ends in a few lines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from longtake.cli import plan
from longtake.cli.main import main
from longtake.config import Given, resolve
from longtake.maths.algorithms import ALGORITHMS
from longtake.maths.cost import Both, predict
from longtake.maths.devices import DEVICES
from longtake.maths.shapes import PRESETS

Captured = pytest.CaptureFixture[str]
SEVEN = ("plan", "qwen2.5-vl-7b", "--device", "h100")
TEXT = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 100,
}  # fmt: skip


def planned(capsys: Captured, *words: str) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: Captured, *words: str) -> list[str]:
    """The lines of an error, which are few."""
    assert main(["plan", *words]) in (1, 2)
    lines = capsys.readouterr().err.splitlines()
    assert 0 < len(lines) <= 6
    return lines


def test_a_plan_imports_no_torch() -> None:
    code = (
        "import sys; from longtake.cli.main import main; assert main(['plan', 'qwen3-vl-2b', '--device', 'h200']) == 0;"
        "sys.exit(len({'torch', 'transformers', 'numpy', 'av'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_table_has_a_column_for_every_number_of_frames(capsys: Captured) -> None:
    assert main([*SEVEN, "--adapter.kind", "lora", "--frames", "3600", "64"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("H100 80 GB, 80 GB; seconds: a model of the device")
    by_name = {line[:30].strip(): line.split() for line in lines if line}
    assert by_name["frames"][1:] == ["64", "3,600"]
    assert by_name["prefix tokens"][2:] == ["4,736", "252,256"]
    assert max(map(len, lines)) < 110
    assert any(line.startswith("what to change at 3,600 frames") for line in lines)
    assert lines[-1] == "70 tokens a frame are assumed; set --tokens-per-frame"


def test_json_has_the_numbers_of_the_cost_model(capsys: Captured) -> None:
    found = planned(capsys, *SEVEN, "--frames", "512", "--adapter.kind", "lora", "--memory.keep", "layers")
    (column,) = found["columns"]
    config = resolve(
        plan.Config,
        [Given("model", "x", ""), Given("adapter.kind", "lora", ""), Given("memory.keep", "layers", "")],
    ).config
    work = plan.Work(512, 35_840, 256, 1, 8, 768)
    way = plan.way_of(config, PRESETS["qwen2.5-vl-7b"], DEVICES["h100"], 2.0)
    expected = predict(PRESETS["qwen2.5-vl-7b"], work, way, DEVICES["h100"].rates(2.0))
    assert column["seconds"]["prefix_backward"] == pytest.approx(expected.prefix_backward)
    assert column["step_s"] == pytest.approx(16 * (expected.cached - expected.optimizer) + expected.optimizer)
    first = 200 * 16 * (expected.decode + expected.encode)
    assert column["hours"] == pytest.approx((200 * column["step_s"] + first) / 3600)
    held = sum(column["gb"][name] for name in ("weights", "learning", "kv", "kept", "working"))
    assert column["gb"]["peak"] == pytest.approx(held)
    assert set(found["largest"]) == {name for name, _, _ in plan.MODES}
    assert list(found["largest"]["none"]) == ["24", "48", "80", "141"]
    assert list(found["largest"]["none"].values()) == sorted(found["largest"]["none"].values())
    assert found["rates"] == "model"
    assert column["fits"]


def test_what_is_asked_changes_the_numbers(capsys: Captured) -> None:
    def column(*words: str) -> dict[str, Any]:
        return planned(capsys, *SEVEN, "--frames", "256", *words)["columns"][0]

    plain = column("--adapter.kind", "lora")
    assert column("--adapter.kind", "alora")["seconds"]["prefill"] == 0
    assert column("--adapter.kind", "lora", "--prefix-gradient", "none")["seconds"]["prefix_backward"] == 0
    off_policy = column("--adapter.kind", "lora", "--epochs", "2")
    assert off_policy["seconds"]["score"] == pytest.approx(2 * plain["seconds"]["prefill"])
    first = column("--adapter.kind", "lora", "--algorithm", "reinforce_pp")
    assert first["seconds"]["score"] == pytest.approx(plain["seconds"]["prefill"])
    shared = column("--adapter.kind", "lora", "--questions-per-film", "4")
    assert shared["step_s"] < plain["step_s"]
    assert shared["disk_gb"]["tier"] == pytest.approx(plain["disk_gb"]["tier"] / 4)
    assert column("--adapter.kind", "lora", "--adapter.targets", "q_proj")["gb"]["learning"] < plain["gb"]["learning"]
    assert column("--adapter.kind", "lora", "--adapter.quantize", "nf4")["gb"]["weights"] < plain["gb"]["weights"]
    assert column("--adapter.kind", "full", "--dtype", "float32")["gb"]["weights"] == pytest.approx(
        2 * column("--adapter.kind", "full")["gb"]["weights"]
    )
    assert column("--adapter.kind", "lora", "--films", "10")["disk_gb"]["features"] < plain["disk_gb"]["features"]
    assert column("--adapter.kind", "lora", "--kl")["seconds"]["score"] > plain["seconds"]["prefill"]
    assert not column("--adapter.kind", "full", "--gb", "20")["fits"]


def test_prefixes_of_an_alora_are_computed_again_where_they_are_not_kept(capsys: Captured) -> None:
    words = (*SEVEN, "--frames", "3600", "--adapter.kind", "alora", "--films", "10")
    few = planned(capsys, *words)["columns"][0]
    assert few["disk_gb"]["prefixes"] == pytest.approx(10 * 252_256 * 57_344 / 1e9)
    many = planned(capsys, *words, "--memory.prefixes", "prefixes")["columns"][0]
    assert many["hours"] < few["hours"] - 10


def test_a_folder_is_read_config_alone(capsys: Captured, tmp_path: Path) -> None:
    config = {"model_type": "qwen3_vl", "text_config": TEXT, "tie_word_embeddings": True}
    config["vision_config"] = {
        "hidden_size": 32, "intermediate_size": 64, "depth": 2, "spatial_merge_size": 2, "out_hidden_size": 64,
        "deepstack_visual_indexes": [0],
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = planned(capsys, "plan", str(tmp_path), "--device", "cpu", "--frames", "10")
    assert found["shape"]["layers"] == 2
    assert found["shape"]["levels"] == 1
    assert "exact, host" not in found["largest"]
    assert found["columns"][0]["prefix"] == 10 * 70 + 256
    constants = {"size": {"longest_edge": 25_165_824}, "patch_size": 16, "merge_size": 2, "temporal_patch_size": 2}
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(constants))
    found = planned(capsys, "plan", str(tmp_path), "--device", "cpu", "--frames", "10", "2048")
    few, many = found["columns"]
    assert few["prefix"] == 256 + 10 * (900 // 2) + 45  # 1280 x 720 in tokens of 32 x 32 for two frames, and times
    assert many["prefix"] == 256 + 2048 * 12 // 2 + 2048 * 9 // 2  # 25165824 pixels for all of them
    assert found["notes"] == ["tokens a frame: video_preprocessor_config.json, films of 1280 x 720"]
    given = planned(capsys, "plan", str(tmp_path), "--device", "cpu", "--frames", "10", "--tokens-per-frame", "2.5")
    assert given["columns"][0]["prefix"] == 256 + 25


def test_a_hub_id_is_read_from_the_local_cache(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--me--small"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc" / "config.json").write_text(json.dumps(TEXT))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    assert planned(capsys, "plan", "me/small", "--device", "h100")["shape"]["width"] == 64
    found = planned(capsys, "plan", "Qwen/Qwen3-VL-8B-Instruct", "--device", "h100")
    assert found["shape"]["width"] == 4096
    assert "no copy of Qwen/Qwen3-VL-8B-Instruct here" in found["notes"][0]


def test_errors_say_what_to_do(capsys: Captured, tmp_path: Path) -> None:
    assert "did you mean 'qwen2.5-vl-7b'?" in refused(capsys, "qwen2.5-vl-8b")[-1]
    assert "qwen3-vl-2b" in refused(capsys, "nobody/nothing")[-1]
    assert refused(capsys, str(tmp_path))[0] == "not a model: no config.json"
    (tmp_path / "config.json").write_text('{"hidden_size": 8}')
    assert refused(capsys, str(tmp_path))[0] == "config.json does not say num_hidden_layers"
    (tmp_path / "config.json").write_text("{")
    assert refused(capsys, str(tmp_path))[0] == "the file is not JSON"
    assert refused(capsys, str(tmp_path / "config.json"))[0] == "a model is a folder, this is a file"
    seven = "qwen2.5-vl-7b"
    assert "did you mean 'h100'?" in refused(capsys, seven, "--device", "h10")[-1]
    assert "did you mean 'dapo'?" in refused(capsys, seven, "--algorithm", "dapoo")[-1]
    lora = ("--adapter.kind", "lora")
    assert "did you mean 'q_proj'?" in refused(capsys, seven, *lora, "--adapter.targets", "q_prj")[-1]
    assert "alpha" in refused(capsys, seven, *lora, "--adapter.alpha", "3")[0]
    assert "--model" in refused(capsys, "--frames", "8")[0]
    assert "multiple" in refused(capsys, seven, "--questions-per-film", "3")[0]
    assert refused(capsys, seven, "--frames", "0")
    assert refused(capsys, seven, "--adapter.kind", "alora", "--memory.keep", "layers")[1].endswith("--memory.keep")
    sizes = {"layers": 4, "width": 256, "heads": 8, "kv-heads": 3, "head-width": 32, "inner": 1280, "vocab": 300}
    words = [word for name, value in sizes.items() for word in (f"--sizes.{name}", str(value))]
    assert refused(capsys, *words) == ["sizes: kv_heads 3 must divide heads 8"]


def test_dry_run_touches_nothing(capsys: Captured) -> None:
    found = planned(capsys, *SEVEN, "--dry-run")
    assert found["stage"] == "plan"
    assert found["config"]["device"] == "h100"


def test_algorithms_are_those_of_the_table() -> None:
    assert set(plan.ALGORITHMS) == set(ALGORITHMS)
    assert set(plan.REWARDS_FIRST) == {name for name, line in ALGORITHMS.items() if line.scale is None}


def test_a_probe_puts_measured_rates_in_their_place(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    def probe(shape: Any, rates: Any, where: Any) -> Any:
        assert where.device == "cpu"
        return plan.replace(rates, linear=Both(1e15, 1e15))

    monkeypatch.setattr("longtake.cli.probe.probe", probe)
    words = ("plan", "qwen3-vl-2b", "--device", "cpu", "--frames", "64")
    slow, fast = planned(capsys, *words), planned(capsys, *words, "--probe")
    assert (slow["rates"], fast["rates"]) == ("model", "probed")
    assert fast["columns"][0]["seconds"]["prefill"] < slow["columns"][0]["seconds"]["prefill"]


def test_a_gpu_that_is_not_here_cannot_be_probed(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert refused(capsys, "qwen3-vl-2b", "--device", "h200", "--probe")[0] == "cannot probe h200"
