"""The words of a command line: what they set, and one line for each that does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from longtake.cli.arguments import Arguments, parse
from longtake.config import Settings, load


class Video(Settings):
    max_frames: int = 64
    flip: bool = True


class Config(Settings):
    rows: Path = Path("rows.jsonl")
    learning_rate: float = 1e-3
    frames: tuple[int, ...] = (16,)
    mix: tuple[tuple[int, float], ...] = ()
    reward: str | None = "exact"
    blind: bool = False
    video: Video = Video()


def read(*words: str) -> Arguments:
    return parse(Config, words, ("rows",))


def config(*words: str) -> Config:
    found = read(*words)
    assert not found.problems
    return load(Config, found.files, found.given).config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("data/a.jsonl", Config(rows=Path("data/a.jsonl"))),
        ("--learning-rate 1e-5", Config(learning_rate=1e-5)),
        ("--learning_rate=1e-5", Config(learning_rate=1e-5)),
        ("--learning-rate -1", Config(learning_rate=-1.0)),
        ("--video.max-frames 8 --video.no-flip", Config(video=Video(max_frames=8, flip=False))),
        ("--frames 8 16 32 --blind", Config(frames=(8, 16, 32), blind=True)),
        ("--frames 8,16,32 --no-blind", Config(frames=(8, 16, 32))),
        ("--frames=8,16", Config(frames=(8, 16))),
        ("--mix [[8,1],[64,.5]]", Config(mix=((8, 1.0), (64, 0.5)))),
        ("--reward none", Config(reward=None)),
        ("--reward my.py:score a.jsonl", Config(reward="my.py:score", rows=Path("a.jsonl"))),
        ("--blind a.jsonl", Config(blind=True, rows=Path("a.jsonl"))),
    ],
)
def test_what_words_set(words: str, expected: Config) -> None:
    assert config(*words.split()) == expected


def test_settings_files_and_common_options_are_told_apart() -> None:
    found = read("base.yaml", "a.jsonl", "over.yml", "--dry-run", "--json", "-h")
    assert found.files == [Path("base.yaml"), Path("over.yml")]
    assert found.common == {"dry-run", "json", "help"}
    assert [(item.name, item.value, item.where) for item in found.given] == [("rows", "a.jsonl", "argument 'a.jsonl'")]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--learning-rat 1", "--learning-rat: unknown option — did you mean '--learning-rate'?"),
        ("--learning_rat=1", "--learning_rat: unknown option — did you mean '--learning-rate'?"),
        ("--learning 1", "--learning: unknown option"),  # a prefix is not the option
        ("--max-frames 8", "--max-frames: unknown option — did you mean '--video.max-frames'?"),
        ("--no-blnd", "--no-blnd: unknown option — did you mean '--no-blind'?"),
        ("--no-learning-rate", "--no-learning-rate: unknown option — did you mean '--learning-rate'?"),
        ("--zebra 1 2", "--zebra: unknown option"),
        ("-l 1", "-l: unknown option; options begin with two dashes"),
        ("--learning-rate", "--learning-rate: needs a value"),
        ("--frames", "--frames: needs a value"),
        ("--rows=", "--rows: needs a value"),
        ("--learning-rate --blind", "--learning-rate: needs a value"),
        ("--blind=yes", "--blind: takes no value; write --blind or --no-blind"),
        ("--blind --no-blind", "--no-blind: given twice, first by --blind"),
        ("a.jsonl --rows b.jsonl", "argument 'a.jsonl': given twice, first by --rows"),
        ("a.jsonl b.jsonl", "b.jsonl: one argument too many; this stage takes rows"),
        ("--mix [[8", "--mix: not valid YAML: '[[8'"),
    ],
)
def test_what_does_not_fit(words: str, line: str) -> None:
    told = read(*words.split()).problems
    assert told[0].startswith(line)
    assert line == told[0] or not line.endswith("'?")


def test_prefixes_are_not_accepted() -> None:
    assert not read("--learning", "1").given


def test_the_last_positional_takes_the_rest_if_it_holds_several() -> None:
    class Many(Settings):
        film: Path
        words: tuple[str, ...]

    found = parse(Many, ["a.mp4", "who", "is", "it"], ("film", "words"))
    assert load(Many, [], found.given).config == Many(film=Path("a.mp4"), words=("who", "is", "it"))
