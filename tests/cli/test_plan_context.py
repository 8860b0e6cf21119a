"""What a plan says of the context: how many positions a film needs, and by which factor they must be scaled."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_plan import TEXT, planned

from longtake.cli.main import main

Captured = pytest.CaptureFixture[str]
VICUNA = {
    "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
    "vocab_size": 32064, "max_position_embeddings": 4096, "rope_parameters": {"rope_type": "default"},
}  # fmt: skip
CLIP = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "image_size": 336, "patch_size": 14}
LLAVA = {"model_type": "llava_next_video", "text_config": VICUNA, "vision_config": CLIP, "spatial_pool_stride": 2}


def folder(tmp_path: Path, config: dict[str, Any]) -> str:
    (tmp_path / "config.json").write_text(json.dumps(config))
    return str(tmp_path)


def test_the_rule_of_llava_next_videos_demo(capsys: Captured, tmp_path: Path) -> None:
    """s = ceil((F · (24 // stride)² + 1000) / 4096), with 1000 tokens for words."""
    name = folder(tmp_path, LLAVA)
    words = ("--device", "h100", "--question-tokens", "500", "--max-tokens", "500", "--frames", "8", "16", "32", "64")
    found = planned(capsys, "plan", name, *words)
    assert found["context"] == 4096
    assert found["notes"][-1] == "tokens a frame: 144, by config.json"
    for column in found["columns"]:
        assert column["context_factor"] == math.ceil((column["frames"] * (24 // 2) ** 2 + 1000) / 4096)
    assert [column["context_factor"] for column in found["columns"]] == [1, 1, 2, 3]
    assert main(["plan", name, *words]) == 0
    out = capsys.readouterr().out
    line = next(line for line in out.splitlines() if line.startswith("context of 4,096"))
    assert line.split()[3:] == ["fits", "fits", "linear:2", "linear:3"]
    assert "beyond the context a run is refused: --context.rope" in out


def test_a_context_that_is_scaled_already(capsys: Captured, tmp_path: Path) -> None:
    scaled = VICUNA | {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}
    for text in (scaled, VICUNA | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": None}):
        name = folder(tmp_path, LLAVA | {"text_config": text})
        for kept, reach in (({"rope": "linear:2"}, 8192), ({"rope": None}, 4096), (None, 4096)):
            file = tmp_path / "context.json"
            file.unlink(missing_ok=True)
            if kept:  # a run's own model, which counts from the length before
                file.write_text(json.dumps(kept))
            found = planned(capsys, "plan", name, "--device", "h100", "--frames", "24")
            assert found["context"] == reach
            assert found["columns"][0]["context_factor"] == (1 if reach == 8192 else 2)
    stated = folder(tmp_path, LLAVA | {"text_config": scaled | {"max_sequence_length": 16384}})  # Vicuna 16k
    assert planned(capsys, "plan", stated, "--device", "h100")["context"] == 16384


def test_nvilas_own_config(capsys: Captured, tmp_path: Path) -> None:
    own = {
        "model_type": "llava_llama", "llm_cfg": TEXT | {"max_position_embeddings": 32768},
        "vision_tower_cfg": CLIP | {"image_size": 448}, "mm_projector_cfg": {"mm_projector_type": "mlp_downsample"},
    }  # fmt: skip
    for kind, tokens in (("mlp_downsample", 257), ("mlp_downsample_2x2_fix", 257), ("mlp_downsample_3x3_fix", 122)):
        name = folder(tmp_path, own | {"mm_projector_cfg": {"mm_projector_type": kind}})
        found = planned(capsys, "plan", name, "--device", "h100", "--frames", "256", "--max-tokens", "16")
        assert found["columns"][0]["prefix"] == 256 * tokens + 256
        assert found["columns"][0]["context_factor"] == math.ceil((256 * tokens + 256 + 16) / 32768)
    pooled = own | {"video_encoder": {"_target_": "TSPVideoEncoder", "pool_sizes": [[8, 1, 1]]}}
    assert "are assumed" in planned(capsys, "plan", folder(tmp_path, pooled), "--device", "h100")["notes"][-1]


def test_positions_of_m_rope_are_fewer_than_tokens(capsys: Captured, tmp_path: Path) -> None:
    """So nothing is said of them before a film is known."""
    text = TEXT | {"max_position_embeddings": 128, "rope_parameters": {"mrope_section": [1, 1, 1]}}
    found = planned(capsys, "plan", folder(tmp_path, {"text_config": text}), "--device", "h100")
    assert found["context"] is None
    assert all(column["context_factor"] is None for column in found["columns"])
    assert planned(capsys, "plan", "qwen2.5-vl-7b", "--device", "h100")["context"] is None
