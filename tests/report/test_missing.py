"""What is missing, half written or wrong becomes a sentence on the page, never a traceback."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from tests.report.fake import run_file, write_json, write_lines
from tests.report.test_page import page

LINES = "grpo/rollouts/000001.jsonl"


def change_lines(path: Path, **new: object) -> None:
    """Set keys in every line of a JSONL file."""
    write_lines(path, [json.loads(line) | new for line in path.read_text().splitlines()])


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_json(tmp_path / "run.json", run_file("grpo", 1, {}, status="running"))
    _, seen = page(tmp_path)
    for said in (
        "No step has been written yet.", "grpo is running.", "No evaluation here", "there are no curves",
        "No seconds by phase", "No rollouts here", "None was quarantined",
    ):  # fmt: skip
        assert said in seen.text, said


@pytest.mark.parametrize(
    ("gone", "said"),
    [
        ("eval", "No evaluation here (no eval.json)"),
        ("eval/sft", "sampled accuracy"),
        ("eval/sft/outcomes", "differences have no paired interval"),
        ("eval/grpo/outcomes", "differences have no paired interval"),
        ("eval/grpo/eval.json", "Sampled accuracy went from"),
        ("grpo/metrics.jsonl", "By kind"),
        ("grpo/rollouts", "No rollouts here"),
        ("grpo/thumbs", "No filmstrip was kept for this group"),
        ("difficulty/summary.json", "By kind"),
        ("summary.json", "Chance is not known here"),
    ],
)
def test_a_part_that_is_not_there(folder: Path, gone: str, said: str) -> None:
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert said.lower() in page(folder)[1].text.lower()


@pytest.mark.parametrize("name", ["grpo/metrics.jsonl", LINES, "eval/grpo/outcomes/64-sampled-none.jsonl"])
def test_a_half_written_last_line_is_skipped_and_said(folder: Path, name: str) -> None:
    path = folder / name
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines)[: -len(lines[-1]) // 2])
    assert f"{name}: 1 of {len(lines)} lines skipped (line {len(lines)} is half written)." in page(folder)[1].text


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"settings": 3, "stage": 3, "seconds": 3}'])
def test_a_broken_file_is_said(folder: Path, content: bytes) -> None:
    names = ("eval/grpo/eval.json", "summary.json", "sft/run.json", "difficulty/summary.json")
    for name in names:
        (folder / name).write_bytes(content)
    text = page(folder)[1].text
    for name in names:
        assert f"{name} could not be read" in text


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"nonsense\n", b"[1]\n", b'{"step": "x"}\n', b'{"step": 1}\n', b"\x00\n"]
)
def test_lines_that_say_nothing(folder: Path, content: bytes) -> None:
    for name in ("grpo/metrics.jsonl", LINES, "eval/grpo/outcomes/64-greedy-none.jsonl"):
        (folder / name).write_bytes(content)
    page(folder)


def test_a_step_with_nan_or_null_is_left_out_of_its_curve(folder: Path) -> None:
    rows = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": None},
        {"step": 3, "loss": float("nan")},
        {"step": 4, "loss": 1.0},
    ]
    write_lines(folder / "sft" / "metrics.jsonl", rows)
    html, seen = page(folder)
    assert "Loss 2 → 1" in seen.text
    assert not re.search(r"\bnan\b", seen.text, re.I)
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', html))


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xc0\x00\x11\x08\x00\x00\x00\x00\x00\x00", b"GIF89a"])
def test_a_strip_that_is_no_picture(folder: Path, data: bytes) -> None:
    for path in (folder / "grpo" / "thumbs").iterdir():
        path.write_bytes(data)
    assert "is not a readable JPEG file" in page(folder)[1].text


def test_a_strip_outside_the_run_is_not_shown(folder: Path) -> None:
    outside = folder / "outside.jpg"
    shutil.copy(next((folder / "grpo" / "thumbs").iterdir()), outside)
    change_lines(folder / LINES, strip="../outside.jpg")
    assert "The filmstrip grpo/../outside.jpg is not there." in page(folder)[1].text


def test_groups_without_receipt_options_or_marks(folder: Path) -> None:
    change_lines(folder / LINES, receipt=None, options=[], answer="left", evidence=[], strip=None, kind="", hops=0)
    change_lines(folder / LINES, answers=[{"text": "left", "tokens": 1, "finish": "length", "correct": None}])
    text = page(folder)[1].text
    for said in ("This group has no receipt.", "truth: left", "· not checked", "cut at the limit"):
        assert said in text, said


def test_what_receipts_say_was_cut(folder: Path) -> None:
    receipt = json.loads((folder / LINES).read_text().splitlines()[0])["receipt"]
    change_lines(folder / LINES, receipt=receipt | {"cut": "capped at 64 of 128 frames asked for"})
    assert "capped at 64 of 128 frames asked for" in page(folder)[1].text


def test_an_evaluation_at_the_rows_own_frames(folder: Path) -> None:
    for model in ("base", "sft", "grpo"):
        path = folder / "eval" / model / "eval.json"
        found = json.loads(path.read_text())
        found["settings"] = [row | {"frames": 0} for row in found["settings"] if row["frames"] == 64]
        path.write_text(json.dumps(found))
    assert "(the rows' own frames, 80 questions)" in page(folder)[1].text


def test_an_unfinished_stage_is_named(folder: Path) -> None:
    write_json(folder / "grpo" / "run.json", run_file("grpo", 8, {}, status="failed: the disk is full"))
    text = page(folder)[1].text
    assert "grpo is failed: the disk is full." in text
    assert "demo is running" not in text, "the folder of all stages runs until this page is written"
