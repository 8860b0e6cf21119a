"""Runs on bad rows, bad rewards and damaged folders, as their users meet them: a few lines, and nothing lost."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.world import World, metrics, weights, write

from longtake.cli.main import MOST_LINES, main
from longtake.log import read_json, read_jsonl

Captured = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, str, str]]
MORE = {
    "grpo": ("--adapter.kind", "full", "--steps", "2", "--questions", "2", "--group-size", "2"),
    "sft": ("--adapter.kind", "full", "--steps", "2", "--batch", "2", "--checkpoint-every", "1"),
    "difficulty": ("--answers", "2"),
    "eval": (),
}


@pytest.fixture
def run(world: World, tmp_path: Path, capsys: Captured) -> Run:
    """(exit code, stdout, stderr) of a small stage in tmp_path/run."""

    def stage(name: str, rows: Path, *more: str) -> tuple[int, str, str]:
        words = [name, "--rows", str(rows), "--model", world.model, "--out", str(tmp_path / "run"), *MORE[name]]
        words += ["--video.tier", str(world.folder / "tier"), "--video.frames", "4", *more]
        code = main([*words, *([] if name == "sft" else ["--max-tokens", "4"])])
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) <= MOST_LINES or "--json" in more
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return stage


def changed(world: World, path: Path, change: Callable[[int, dict[str, Any]], None]) -> Path:
    """The world's questions, each changed, with paths that count from anywhere."""
    rows = read_jsonl(world.rows("rl"))
    for number, row in enumerate(rows):
        video = row["messages"][0]["content"][0]
        video["video"] = str(world.rows("rl").parent / video["video"])
        change(number, row)
    return write(path, rows)


@pytest.mark.parametrize("stage", ["grpo", "difficulty", "eval"])
def test_rows_without_answers_are_not_scored_as_wrong(world: World, run: Run, tmp_path: Path, stage: str) -> None:
    rows = changed(world, tmp_path / "rows.jsonl", lambda n, row: row.pop("answer") if n % 4 == 3 else None)
    code, _, said = run(stage, rows)
    assert code == 1
    assert "needs a right answer\n  where: row q3\n  why: so it is with 2 of 8 rows\n" in said
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_gate_of_sft_needs_answers_too(world: World, run: Run, tmp_path: Path) -> None:
    rows = changed(world, tmp_path / "rows.jsonl", lambda _, row: row.pop("answer"))
    code, _, said = run("sft", world.rows("sft"), "--gate.rows", str(rows))
    assert (code, "so it is with 8 of 8 rows" in said) == (1, True)


def test_a_mistake_in_the_rows_can_be_mended_in_the_same_folder(world: World, run: Run, tmp_path: Path) -> None:
    assert run("grpo", tmp_path / "none.jsonl")[0] == 1
    assert run("grpo", world.rows("rl"))[0] == 0


def test_a_step_does_not_ask_one_question_twice(world: World, run: Run, tmp_path: Path) -> None:
    rows = changed(world, tmp_path / "rows.jsonl", lambda *_: None)
    write(rows, read_jsonl(rows)[:1])
    code, _, said = run("grpo", rows)
    assert (code, "--questions 1" in said) == (1, True)


def test_words_that_the_tokenizer_does_not_know_are_noted(world: World, run: Run, tmp_path: Path) -> None:
    def change(number: int, row: dict[str, Any]) -> None:
        if number < 3:
            row["messages"][0]["content"][1]["text"] = "球在哪里 ? A left B middle C right"

    assert run("eval", changed(world, tmp_path / "rows.jsonl", change))[0] == 0
    notes = read_json(tmp_path / "run" / "run.json")["notes"]
    assert any(note.startswith("3 of 8 questions hold words") and "'球在哪里'" in note for note in notes)


def test_a_reward_that_prints_leaves_stdout_to_the_run(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text('print("loaded")\ndef score(text, row):\n    print("scored")\n    return 1.0\n')
    code, out, said = run("grpo", world.rows("rl"), "--reward", f"{tmp_path / 'my.py'}:score", "--json")
    assert (code, json.loads(out)["reward"]) == (0, 1.0)
    assert said.count("loaded") == 1
    assert said.count("scored") == 2 * 2 * 2


def test_a_reward_cannot_end_the_process_unheard(world: World, run: Run, tmp_path: Path) -> None:
    (tmp_path / "my.py").write_text("def score(text, row):\n    raise SystemExit(0)\n")
    code, _, said = run("grpo", world.rows("rl"), "--reward", f"{tmp_path / 'my.py'}:score")
    assert (code, "SystemExit" in said) == (1, True)


def test_a_reward_given_twice_is_refused(world: World, run: Run) -> None:
    code, _, said = run("grpo", world.rows("rl"), "--reward", "accuracy", "accuracy=0.5")
    assert (code, "given twice" in said) == (1, True)


@pytest.mark.parametrize("name", ["optimizer.pt", "model.safetensors", "progress.json", "tokenizer.json"])
def test_a_damaged_checkpoint_says_which_and_how_to_go_on(world: World, run: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    assert run("sft", world.rows("sft"))[0] == 0
    before, numbers = weights(folder / "model"), metrics(folder)
    shutil.rmtree(folder / "model")
    checkpoint = folder / "checkpoints" / "000002"
    (checkpoint / name).write_bytes((checkpoint / name).read_bytes()[:10])
    code, _, said = run("sft", world.rows("sft"))
    assert code == 1
    assert said.startswith(f"the checkpoint is damaged\n  where: {checkpoint}\n")
    assert "delete this folder and run the same command" in said
    shutil.rmtree(checkpoint)
    assert run("sft", world.rows("sft"))[0] == 0
    assert (weights(folder / "model"), metrics(folder)) == (before, numbers)
    assert any("begins again at step 1: 2 steps" in note for note in read_json(folder / "run.json")["notes"])


def test_a_model_that_was_deleted_is_written_again(world: World, run: Run, tmp_path: Path) -> None:
    assert run("grpo", world.rows("rl"))[0] == 0
    before = weights(tmp_path / "run" / "model")
    shutil.rmtree(tmp_path / "run" / "model")
    assert run("grpo", world.rows("rl"))[0] == 0
    assert weights(tmp_path / "run" / "model") == before


def test_a_model_of_nans_does_not_answer(world: World, run: Run, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(world.model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    save_file({name: x * torch.nan for name, x in load_file(file).items()}, file, {"format": "pt"})
    words = ["ask", str(world.film(0)), "where is the ball ?", "--model", str(tmp_path / "model")]
    assert main(words) == 1
