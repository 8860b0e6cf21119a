"""Run folders: one run each, gone on with, never written over by another."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.errors import UserError
from longtake.log import RunFolder, read_json
from longtake.log.folder import DONE, AnotherRun

CONFIG = {"lr": 0.1, "frames": (16, 32), "video": {"fps": None}, "out": "a", "fresh": False}


def test_a_new_folder_says_what_runs_where(tmp_path: Path) -> None:
    folder = RunFolder.open(tmp_path / "x" / "sft", "sft", CONFIG)
    run = read_json(folder.path / "run.json")
    assert list(run) == ["stage", "config", "versions", "machine", "started", "status", "notes", "seconds", "films"]
    assert run["config"] == CONFIG | {"frames": [16, 32]}
    assert run["status"] == folder.status == "running"
    assert run["versions"]["numpy"]
    assert run["machine"]["processors"] >= 1
    assert not folder.resumed


def test_the_same_settings_go_on(tmp_path: Path) -> None:
    first = RunFolder.open(tmp_path, "sft", CONFIG)
    first.set_seconds({"decode": 2.0})
    first.set_films(3, [("a.mp4", "empty file")])
    first.add_note("one")
    first.add_note("one")
    free = {"out": "elsewhere", "frames": [16, 32], "video": {"fps": None, "workers": 4}}
    second = RunFolder.open(tmp_path, "sft", CONFIG | free)
    assert (second.resumed, second.was_done) == (True, False)
    assert second.seconds == {"decode": 2.0}
    run = read_json(tmp_path / "run.json")
    assert run["films"] == {"used": 3, "quarantined": [{"path": "a.mp4", "reason": "empty file"}]}
    assert run["notes"] == ["one"]
    second.set_status("done")
    third = RunFolder.open(tmp_path, "sft", CONFIG)
    assert (third.was_done, third.status) == (True, "running")


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "sft", CONFIG)
    (tmp_path / "metrics.jsonl").touch()
    before = (tmp_path / "run.json").read_bytes()
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, "sft", CONFIG | {"lr": 0.2, "video": {"fps": 1.0}})
    assert "lr was 0.1, now 0.2, video.fps was None, now 1.0" in str(caught.value)
    assert "--fresh" in caught.value.fix
    with pytest.raises(UserError, match="it is of `sft`"):
        RunFolder.open(tmp_path, "grpo", CONFIG)
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, "sft", {str(n): n for n in range(9)})
    assert caught.value.why.endswith("and 8 more")
    assert (tmp_path / "run.json").read_bytes() == before


def test_fresh_moves_the_old_run_aside(tmp_path: Path) -> None:
    for lr in (1, 2, 3):
        RunFolder.open(tmp_path / "sft", "sft", {"lr": lr}, fresh=True)
    found = {path.name: read_json(path / "run.json")["config"]["lr"] for path in tmp_path.iterdir()}
    assert found == {"sft.old-1": 1, "sft.old-2": 2, "sft": 3}


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write here"):
        RunFolder.open(tmp_path / "file", "sft", CONFIG)


def test_a_run_that_got_nowhere_gives_way(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "sft", CONFIG).set_status("failed: no such film")
    second = RunFolder.open(tmp_path, "grpo", CONFIG | {"lr": 0.2})
    assert (second.resumed, second.begun, read_json(tmp_path / "run.json")["stage"]) == (False, False, "grpo")
    second.set_status("done")
    with pytest.raises(UserError, match="holds another run"):
        RunFolder.open(tmp_path, "sft", CONFIG)


@pytest.mark.parametrize("text", ['{"stage": "sf', "[]", "{}", ""])
def test_a_broken_run_json_is_not_taken_for_a_run(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UserError) as caught:
        RunFolder.open(tmp_path, "sft", CONFIG)
    assert str(tmp_path / "run.json") in str(caught.value)
    assert "--fresh" in caught.value.fix
    assert (tmp_path / "run.json").read_text() == text


@pytest.mark.parametrize("name", ["model", "checkpoints", "outcomes"])
def test_what_is_no_run_of_ours_is_not_written_over(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=f"there is {name}, but no run.json"):
        RunFolder.open(tmp_path, "sft", CONFIG)
    assert not (tmp_path / "run.json").exists()


def test_the_folder_one_is_in_is_not_moved_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RunFolder.open(tmp_path, "sft", CONFIG)
    (tmp_path / "below").mkdir()
    for place in (tmp_path, tmp_path / "below"):
        monkeypatch.chdir(place)
        with pytest.raises(UserError, match="cannot be moved aside"):
            RunFolder.open(tmp_path, "sft", CONFIG, fresh=True)


def test_a_setting_that_older_code_did_not_have_is_at_its_default(tmp_path: Path) -> None:
    """So a run goes on, or is known to be done, when a newer version has more settings."""
    RunFolder.open(tmp_path, "sft", CONFIG).set_status(DONE)
    newer = CONFIG | {"engine": {"kind": "local", "cap": 3.0}}
    assert RunFolder.open(tmp_path, "sft", newer, chosen=CONFIG).was_done
    RunFolder.open(tmp_path / "x", "sft", CONFIG).set_status(DONE)
    with pytest.raises(AnotherRun, match="other settings"):
        RunFolder.open(tmp_path / "x", "sft", newer, chosen=CONFIG | {"engine": {"kind": "local"}})
    with pytest.raises(AnotherRun, match="other settings"):  # what it did have counts, default or not
        RunFolder.open(tmp_path / "x", "sft", CONFIG | {"lr": 0.3}, chosen={})


def test_what_a_failing_engine_asks_for_may_be_changed(tmp_path: Path) -> None:
    """A run that ran out of memory goes on with less of it; another model's `memory` block is not meant."""
    given = CONFIG | {"engine": {"kind": "vllm", "memory": 4.0, "python": "a"}, "memory": {"keep": "graph"}}
    RunFolder.open(tmp_path, "grpo", given).set_status(DONE)
    less = given | {"engine": {"kind": "vllm", "memory": 0.5, "python": "b"}}
    again = RunFolder.open(tmp_path, "grpo", less)
    assert again.was_done
    again.set_status(DONE)
    with pytest.raises(AnotherRun):
        RunFolder.open(tmp_path, "grpo", given | {"engine": {"kind": "local", "memory": 4.0, "python": "a"}})
    with pytest.raises(AnotherRun):
        RunFolder.open(tmp_path, "grpo", given | {"memory": {"keep": "layers"}})


def test_our_own_model_may_be_served_elsewhere_but_an_endpoint_is_another_model(tmp_path: Path) -> None:
    for kind in ("vllm", "remote"):
        given, moved = (CONFIG | {"engine": {"kind": kind, "url": f"tcp://{host}:1"}} for host in "ab")
        RunFolder.open(tmp_path / kind, "eval", given).set_status(DONE)
        if kind == "remote":
            with pytest.raises(AnotherRun, match=r"engine.url was tcp://a:1"):
                RunFolder.open(tmp_path / kind, "eval", moved)
        else:
            assert RunFolder.open(tmp_path / kind, "eval", moved).was_done
