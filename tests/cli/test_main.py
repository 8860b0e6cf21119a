"""The command line as people meet it: helps, exit codes, short errors, dry runs, JSON; with small stages of our own."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

from longtake.cli.main import MOST_LINES, main
from longtake.cli.stages import STAGES, Stage
from longtake.config import Settings, leaves
from longtake.errors import UserError
from longtake.log import Log, RunFolder, read_json

TABLE = {"fake": Stage("longtake_fake_stage", "a stage for tests", ("rows",), trains=True)}


class Video(Settings):
    """Films."""

    max_frames: int = Field(64, description="frames at most")


class Config(Settings):
    """A stage for tests."""

    rows: Path = Field(description="rows to read")
    out: Path = Field(Path("out/fake"), description="run folder")
    lr: float = Field(0.5, description="learning rate")
    video: Video = Video()


Fake = Callable[[Callable[[Config, Log], dict[str, Any]]], None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    def install(run: Callable[[Config, Log], dict[str, Any]]) -> None:
        module = types.ModuleType("longtake_fake_stage")
        vars(module).update(Config=Config, run=run)
        monkeypatch.setitem(sys.modules, "longtake_fake_stage", module)

    install(lambda config, log: {"loss": config.lr / 2})
    return install


def raising(error: BaseException) -> Callable[[Config, Log], dict[str, Any]]:
    def run(config: Config, log: Log) -> dict[str, Any]:
        raise error

    return run


Captured = pytest.CaptureFixture[str]


def test_help_lists_every_stage(capsys: Captured) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown and stage.sentence in shown for name, stage in STAGES.items())


def test_help_of_the_command_and_of_a_stage_imports_no_torch() -> None:
    code = (
        "import sys; from longtake.cli.main import main; main([{}]);"
        "heavy = {{'torch', 'transformers', 'av'}} & set(sys.modules); sys.exit(len(heavy))"
    )
    for words in ("'--help'", "'doctor', '--help'", "'view', '--help'"):
        subprocess.run([sys.executable, "-c", code.format(words)], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", list(STAGES))
def test_every_stage_module_has_what_the_table_says(name: str, capsys: Captured) -> None:
    assert main([name, "--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"--{field.replace('_', '-')}" in shown for field in STAGES[name].positional)


def test_help_of_a_stage_shows_its_settings_by_group(fake: Fake, capsys: Captured) -> None:
    assert main(["fake", "--help"], TABLE) == 0
    shown = capsys.readouterr().out
    assert "--lr" in shown
    assert "learning rate (default: 0.5)" in shown
    assert "video options" in shown
    assert "--video.max-frames" in shown


def test_a_stage_gets_its_settings(fake: Fake, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("lr: 0.25\n")
    assert main(["fake", str(tmp_path / "a.yaml"), "rows.jsonl"], TABLE) == 0
    assert json.loads(capsys.readouterr().out) == {"summary": {"loss": 0.125}}


def test_json_leaves_stdout_to_the_final_object(fake: Fake, capsys: Captured) -> None:
    def run(config: Config, log: Log) -> dict[str, Any]:
        log.step(1, 2, {"loss": 3.0})
        log.note("a note")
        log.say("for people")
        return {"loss": float("nan"), "out": config.out}

    fake(run)
    assert main(["fake", "rows.jsonl", "--json"], TABLE) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"loss": None, "out": "out/fake"}
    assert [json.loads(line) for line in captured.err.splitlines()] == [
        {"step": 1, "loss": 3.0, "seconds": {}, "total": 2},
        {"note": "a note"},
    ]


def test_wrong_settings_exit_2_in_one_line(fake: Fake, capsys: Captured, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("lr: 1\nvideo:\n\n  max_framse: 8\n")
    assert main(["fake", "rows.jsonl", str(file)], TABLE) == 2
    assert capsys.readouterr().err == f"{file}:4: video.max_framse: unknown key — did you mean 'max_frames'?\n"
    assert main(["fake", "rows.jsonl", "--lrr", "1"], TABLE) == 2
    assert capsys.readouterr().err == "--lrr: unknown option — did you mean '--lr'?\n"
    assert main(["fake"], TABLE) == 2
    assert capsys.readouterr().err == "--rows: needed, but not given\n"


def test_an_unknown_stage_exits_2(capsys: Captured) -> None:
    assert main(["gpro"]) == 2
    assert capsys.readouterr().err == "gpro: unknown stage — did you mean 'grpo'?\n"
    assert main(["zebra"]) == 2
    assert "there are demo, difficulty" in capsys.readouterr().err


def test_a_user_error_exits_1_with_its_text(fake: Fake, capsys: Captured) -> None:
    fake(raising(UserError("cannot read the film", where="a.mp4", why="moov\n" * 20, fix="copy it again")))
    assert main(["fake", "rows.jsonl", "--json"], TABLE) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("cannot read the film\n  where: a.mp4\n")
    assert len(captured.err.splitlines()) <= MOST_LINES
    assert json.loads(captured.out)["error"].startswith("cannot read the film")


def test_a_crash_is_two_lines_and_a_traceback_file(fake: Fake, capsys: Captured, tmp_path: Path) -> None:
    def run(config: Config, log: Log) -> dict[str, Any]:
        log.open(RunFolder.open(config.out, "fake", {}))
        raise RuntimeError("shapes differ\nmore\nmore")

    fake(run)
    assert main(["fake", "rows.jsonl", "--out", str(tmp_path / "run")], TABLE) == 1
    error = tmp_path / "run" / "error.log"
    assert capsys.readouterr().err.splitlines() == [
        "longtake fake failed: RuntimeError: shapes differ",
        f"  where: {error} holds the whole traceback",
    ]
    assert "Traceback" in error.read_text()
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed: shapes differ"


def test_a_crash_before_there_is_a_folder(
    fake: Fake, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    fake(raising(ZeroDivisionError()))
    assert main(["fake", "rows.jsonl"], TABLE) == 1
    (file,) = tmp_path.glob("longtake-*.log")
    assert "ZeroDivisionError" in file.read_text()
    assert str(file) in capsys.readouterr().err


def test_a_full_disk_is_said_in_words(fake: Fake, capsys: Captured) -> None:
    fake(raising(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["fake", "rows.jsonl"], TABLE) == 1
    assert "the disk is full" in capsys.readouterr().err


def test_a_missing_package_names_the_command(fake: Fake, capsys: Captured) -> None:
    fake(raising(ModuleNotFoundError("No module named 'torch'", name="torch")))
    assert main(["fake", "rows.jsonl"], TABLE) == 1
    assert capsys.readouterr().err.splitlines() == [
        "longtake fake needs torch, which is not installed",
        "  do: pip install -e '.[train]' in the clone",
    ]


def test_an_interrupt_says_how_to_go_on(fake: Fake, capsys: Captured, tmp_path: Path) -> None:
    def run(config: Config, log: Log) -> dict[str, Any]:
        log.open(RunFolder.open(config.out, "fake", {}))
        raise KeyboardInterrupt

    fake(run)
    words = ["fake", "my rows.jsonl", "--out", str(tmp_path / "run"), "--fresh"]
    assert main(words[:-1], TABLE) == 130
    assert f"longtake fake 'my rows.jsonl' --out {tmp_path / 'run'}\n" in capsys.readouterr().err
    assert read_json(tmp_path / "run" / "run.json")["status"] == "stopped: interrupted"


def test_a_closed_pipe_is_quiet() -> None:
    code = "import sys; from longtake.cli.main import main; sys.exit(main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        told = process.stderr.read()
        code_out = process.wait()
    assert told == b""
    assert code_out == 141


def test_a_dry_run_touches_nothing(
    fake: Fake, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake(raising(AssertionError("a dry run must not run")))
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "a.yaml").write_text("video:\n  max_frames: 8\n")
    before = sorted(tmp_path.rglob("*"))
    assert main(["fake", "a.yaml", "rows.jsonl", "--lr", "1", "--dry-run"], TABLE) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["video.max_frames", "8", "a.yaml:2"] in shown
    assert ["lr", "1.0", "--lr"] in shown
    assert ["reads", "rows.jsonl", "(0.0", "MB)"] in shown
    assert ["writes", "out/fake", "(new)"] in shown
    assert main(["fake", "rows.jsonl", "--dry-run", "--json"], TABLE) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["config"]["video"] == {"max_frames": 64}
    assert told["from"]["rows"] == "argument 'rows.jsonl'"
    assert told["writes"] == {"out/fake": "new"}
    assert sorted(tmp_path.rglob("*")) == before


def test_a_summary_that_is_not_ok_exits_1(fake: Fake) -> None:
    fake(lambda config, log: {"ok": False})
    assert main(["fake", "rows.jsonl"], TABLE) == 1


def test_no_stage_hides_a_common_option() -> None:
    assert not {"help", "dry_run", "json"} & leaves(Config).keys()
