"""Settings: merged, checked whole, and every problem one line that says where."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
import pytest
from pydantic import Field

from longtake.config import MOST_LINES, ConfigError, Given, Settings, leaves, load, suggest


class Video(Settings):
    max_frames: int = Field(64, gt=0)
    fps: float | None = None


class Config(Settings):
    rows: Path
    lr: float = 3e-4
    mode: Literal["lora", "full"] = "full"
    frames: tuple[int, ...] = (16, 32)
    flip: bool = True
    video: Video = Video()
    extra: Video | None = None

    @pydantic.model_validator(mode="after")
    def check(self) -> Config:
        if self.mode == "lora" and not self.flip:
            raise ValueError("mode 'lora' does not read flip")
        return self


ROWS = Given("rows", "a.jsonl", "--rows")


def problems(files: list[Path], given: list[Given]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(Config, files, given)
    return str(caught.value).splitlines()


def yaml(folder: Path, text: str, name: str = "bad.yaml") -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_files_merge_left_to_right_and_options_win(tmp_path: Path) -> None:
    one = yaml(tmp_path, "rows: a.jsonl\nlr: 1e-3\nvideo:\n  max_frames: 8\n  fps: 2\n", "one.yaml")
    two = yaml(tmp_path, "\nvideo:\n  max_frames: 32\n", "two.yaml")
    loaded = load(Config, [one, two], [Given("lr", "1e-5", "--lr")])
    assert loaded.config == Config(rows=Path("a.jsonl"), lr=1e-5, video=Video(max_frames=32, fps=2.0))
    assert loaded.provenance["video.max_frames"] == f"{two}:3"
    assert loaded.provenance["video.fps"] == f"{one}:5"
    assert (loaded.provenance["lr"], loaded.provenance["flip"]) == ("--lr", "default")


class Preset(Settings):
    video: Video = Video(max_frames=8)
    pair: tuple[float, float] = (0.1, 0.2)


def test_naming_one_setting_of_a_block_leaves_the_others_at_the_stages_defaults(tmp_path: Path) -> None:
    for files, given in (([], [Given("video.fps", "2", "--video.fps")]), ([yaml(tmp_path, "video:\n  fps: 2\n")], [])):
        loaded = load(Preset, files, given)
        assert loaded.config.video == Video(max_frames=8, fps=2.0)
        assert loaded.provenance["video.max_frames"] == "default"


def test_one_number_where_two_are_needed_is_said() -> None:
    with pytest.raises(ConfigError, match=r"^--pair: needs more values than were given$"):
        load(Preset, [], [Given("pair", ["0.1"], "--pair")])


def test_a_typo_is_one_line_with_the_line_number_and_the_word_meant(tmp_path: Path) -> None:
    file = yaml(tmp_path, "rows: a\nlr: 1\nvideo:\n  max_framse: 8\n")
    assert problems([file], []) == [f"{file}:4: video.max_framse: unknown key — did you mean 'max_frames'?"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("max_frames: 8", "1: max_frames: unknown key — did you mean 'video.max_frames'?"),
        ("max-frames: 8", "1: max-frames: unknown key — did you mean 'video.max_frames'?"),
        ("vidoe:\n  fps: 1", "1: vidoe: unknown key — did you mean 'video'?"),
        ("zebra: 8", "1: zebra: unknown key"),
        ("lr: 1\nlr: 2", "2: lr: given twice, first in line 1"),
        ("video: 8", "1: video: is a block of settings, got 8"),
        ("lr: fast", "1: lr: should be a valid number, unable to parse string as a number, got 'fast'"),
        ("lr: .nan", "1: lr: should be a finite number, got nan"),
        ("lr: yes", "1: lr: expected a value, got true"),
        ("video:\n  max_frames: 0", "2: video.max_frames: should be greater than 0, got 0"),
        ("frames: [8, x]", "1: frames: should be a valid integer, unable to parse string as an integer, got 'x'"),
        ("mode: lorra", "1: mode: should be 'lora' or 'full', got 'lorra'"),
        ("lr: [1", "2: not valid YAML: expected ',' or ']', but got '<stream end>'"),
        ("- 1", "1: expected lines of 'key: value'"),
        ("lr: !!python/name:os.system", "1: not valid YAML: could not determine a constructor for the tag"),
    ],
)
def test_what_is_wrong_in_a_file(tmp_path: Path, text: str, line: str) -> None:
    file = yaml(tmp_path, text + "\n")
    (only,) = problems([file], [ROWS])
    assert only.startswith(f"{file}:{line}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    missing, binary = tmp_path / "none.yaml", tmp_path / "film.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x80")
    assert problems([missing, binary], [ROWS]) == [
        f"{missing}: cannot be read: no such file or directory",
        f"{binary}: not a text file",
    ]


def test_everything_wrong_is_told_at_once_but_no_more_than_fits(tmp_path: Path) -> None:
    file = yaml(tmp_path, "lrr: 1\nmode: x\n")
    told = problems([file], [Given("video.fps", "x", "--video.fps")])
    assert [line.split(":")[-2].strip() for line in told] == ["lrr", "--rows", "mode", "--video.fps"]
    file = yaml(tmp_path, "".join(f"zebra{n}: 1\n" for n in range(9)))
    told = problems([file], [ROWS])
    assert len(told) == MOST_LINES
    assert told[-1] == "… and 4 more"


def test_options_are_named_as_they_are_typed() -> None:
    assert problems([], [ROWS, Given("lr", "x", "--lr")])[0].startswith("--lr: should be a valid number")
    assert problems([], []) == ["--rows: needed, but not given"]


def test_a_misspelled_setting_is_not_missing_as_well(tmp_path: Path) -> None:
    file = yaml(tmp_path, "rwos: a\n")
    assert problems([file], []) == [f"{file}:1: rwos: unknown key — did you mean 'rows'?"]


def test_the_branches_of_a_union_share_a_line() -> None:
    class Union(Settings):
        size: int | Literal["all"] = 1

    with pytest.raises(ConfigError) as caught:
        load(Union, [], [Given("size", "x", "--size")])
    assert str(caught.value) == (
        "--size: should be a valid integer, unable to parse string as an integer, got 'x' or should be 'all', got 'x'"
    )


def test_rules_between_settings_are_sentences() -> None:
    told = problems([], [ROWS, Given("mode", "lora", "--mode"), Given("flip", False, "--no-flip")])
    assert told == ["settings: mode 'lora' does not read flip"]


def test_a_block_can_be_switched_off_and_on_again(tmp_path: Path) -> None:
    on = yaml(tmp_path, "extra:\n  fps: 1\n", "on.yaml")
    off = yaml(tmp_path, "extra: null\n", "off.yaml")
    assert load(Config, [on, off], [ROWS]).config.extra is None
    assert load(Config, [off, on], [ROWS]).config.extra == Video(fps=1.0)


def test_anchors_and_merge_keys_work(tmp_path: Path) -> None:
    file = yaml(tmp_path, "video: &v\n  fps: 1\n  max_frames: 9\nextra:\n  <<: *v\n  fps: 3\n")
    loaded = load(Config, [file], [ROWS])
    assert loaded.config.extra == Video(fps=3.0, max_frames=9)
    assert loaded.config.video == Video(fps=1.0, max_frames=9)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(Config, [yaml(tmp_path, "# nothing\n")], [ROWS]).config == Config(rows=Path("a.jsonl"))


def test_leaves_open_blocks() -> None:
    assert {"rows", "video.max_frames", "extra.fps"} < leaves(Config).keys()
    assert not {"video", "extra"} & leaves(Config).keys()
    assert leaves(Config)["video.fps"].optional


def test_suggestions_need_a_likeness() -> None:
    assert suggest("sfr", ["sft", "grpo"]) == "sft"
    assert suggest("serve", ["sft", "grpo"]) == ""
