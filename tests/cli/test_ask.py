"""`longtake ask`: an answer with its receipt for a real film, a few plain lines for a bad one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.data.films import cut, render, sound
from tests.world import World

from longtake.cli.ask import told
from longtake.cli.main import MOST_LINES, main
from longtake.records import Receipt

QUESTION = "where is the ball at the end ? A left B middle C right"
Captured = pytest.CaptureFixture[str]
Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ask(world: World, capsys: Captured) -> Ask:
    """(exit code, stdout, stderr) of asking about a film."""

    def run(film: Path, *more: str, question: str = QUESTION, model: str = world.model) -> tuple[int, str, str]:
        words = ["ask", str(film), question, "--model", model, *more]
        words += [] if "--max-tokens" in more else ["--max-tokens", "6"]
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def answer(ask: Ask, film: Path, *more: str) -> dict[str, Any]:
    code, out, err = ask(film, *more, "--json")
    assert (code, err) == (0, "")
    return dict(json.loads(out))


def test_an_answer_and_what_was_seen(ask: Ask, world: World) -> None:
    code, out, _ = ask(world.film(0), "--video.frames", "8")
    assert code == 0
    assert f"saw 8 frames of {world.film(0)} at 0.5 1.5 2.5 3.5 4.5 5.5 6.5 7.5 s" in out
    assert "pixels" in out
    assert "visual tokens, pyav" in out
    assert "raise --max-tokens" in out


def test_the_same_as_json(ask: Ask, world: World) -> None:
    found = answer(ask, world.film(0), "--video.frames", "8")
    assert found.keys() == {"answer", "finish", "unknown_words", "receipt"}
    assert found["unknown_words"] == []
    assert found["finish"] == "length"
    assert found["receipt"]["indices"] == list(range(8, 128, 16))
    assert found["receipt"]["path"] == str(world.film(0))
    _, out, _ = ask(world.film(0), "--video.frames", "8")
    assert out.startswith(found["answer"])


def test_key_frames_and_a_budget(ask: Ask, world: World) -> None:
    free = answer(ask, world.film(0), "--video.frames", "8")["receipt"]
    half = ("--context.budget", str(free["tokens"] // 2), "--context.pick", "keyframes")
    seen = answer(ask, world.film(0), "--video.frames", "8", *half)["receipt"]
    assert seen["cut"].startswith(f"capped at 4 of 8 frames asked for: at most {free['tokens'] // 2} visual tokens")
    assert seen["tokens"] == free["tokens"] // 2
    assert answer(ask, world.film(0), "--video.frames", "1", "--context.pick", "keyframes")["receipt"]["cut"] == ""
    code, _, err = ask(world.film(0), "--video.seconds", "1", "2", "3", "--context.budget", "1")
    assert (code, len(err.splitlines())) == (1, 4)
    assert "3 frames of a film are beyond the budget" in err
    code, _, err = ask(world.film(0), "--video.seconds", "1", "2", "--context.pick", "keyframes")
    assert (code, len(err.splitlines())) == (1, 3)
    assert "explicit seconds take no window, no max_frames and no pick" in err


def test_greedy_unless_told_otherwise(ask: Ask, world: World) -> None:
    greedy = [answer(ask, world.film(0))["answer"] for _ in range(2)]
    warm = [answer(ask, world.film(0), "--temperature", "2", "--seed", str(seed))["answer"] for seed in (0, 1, 1)]
    assert greedy[0] == greedy[1]
    assert warm[0] != warm[1] == warm[2]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--seed", "1"), "seed has no effect at temperature 0"),
        (("--video.frames", "8", "16"), "one number of video.frames"),
        (("--context.subtitles", "off"), "context.subtitles has no effect"),
        (("--video.workers", "2", "--video.most-failed", "1"), "video.most_failed, video.workers"),
    ],
)
def test_what_would_have_no_effect_is_refused(ask: Ask, world: World, words: tuple[str, ...], says: str) -> None:
    code, _, err = ask(world.film(0), *words)
    assert (code, len(err.splitlines())) == (2, 1)
    assert says in err


def test_words_that_a_small_tokenizer_does_not_know_are_named(ask: Ask, world: World) -> None:
    _, out, _ = ask(world.film(0), question="where is 球 🎈 球 ?")
    assert "does not know, read as <|endoftext|>: 球, 🎈\n" in out


def test_a_filmstrip_of_what_was_seen(ask: Ask, world: World, tmp_path: Path) -> None:
    answer(ask, world.film(0), "--video.frames", "4", "--strip", str(tmp_path / "seen" / "strip.jpg"))
    strip = np.asarray(Image.open(tmp_path / "seen" / "strip.jpg"))
    assert strip.shape[:2] == (64, 256)


def test_nothing_is_left_behind(ask: Ask, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answer(ask, world.film(0))
    assert list(tmp_path.iterdir()) == []


def test_a_film_of_one_frame(ask: Ask, tmp_path: Path) -> None:
    found = answer(ask, render(tmp_path / "one.mp4", 1))
    assert (found["receipt"]["indices"], found["receipt"]["padded"]) == ([0, 0], 1)
    assert "1 frames taken where 64" in found["receipt"]["cut"]
    _, out, _ = ask(tmp_path / "one.mp4")
    assert "saw 1 frame of" in out
    assert "cut: " in out


def test_a_folder_of_frames_is_a_film(ask: Ask, tmp_path: Path) -> None:
    for number in (1, 2, 10):
        Image.new("RGB", (64, 64), (number * 20, 0, 0)).save(tmp_path / f"{number}.png")
    seen = answer(ask, tmp_path, "--video.frames", "2")["receipt"]
    assert (seen["path"], seen["indices"], seen["backend"][:6]) == (str(tmp_path), [0, 2], "pillow")
    found = answer(ask, tmp_path / "{1,10}.png#fps=1", "--video.frames", "2")
    assert found["receipt"]["seconds"] == [0.0, 1.0]
    code, _, err = ask(tmp_path / "{1..3}.png", "--video.frames", "2", model="/no/such/model")
    assert (code, "3.png" in err, "no such model" in err) == (1, True, False)


def bad(folder: Path, kind: str) -> Path:
    """A file that is no usable film."""
    path = folder / f"{kind}.mp4"
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "truncated":
        cut(render(folder / "whole.mp4", 100), path)
    elif kind == "text":
        path.write_text("not a film at all\n" * 50)
    elif kind == "audio":
        sound(path)
    elif kind == "directory":
        path.mkdir()
    return path


@pytest.mark.parametrize("kind", ["missing", "empty", "truncated", "text", "audio", "directory"])
def test_a_bad_film_is_said_in_a_few_lines(ask: Ask, tmp_path: Path, kind: str) -> None:
    code, out, err = ask(bad(tmp_path, kind), "--json")
    assert code == 1
    lines = err.splitlines()
    assert 2 <= len(lines) <= MOST_LINES
    assert any(str(tmp_path / f"{kind}.mp4") in line for line in lines)
    assert "Traceback" not in err
    assert json.loads(out)["error"] == err.rstrip("\n")


def test_bad_films_are_told_apart(ask: Ask, tmp_path: Path) -> None:
    said = {ask(bad(tmp_path, kind))[2].splitlines()[0] for kind in ("missing", "empty", "truncated", "text", "audio")}
    assert len(said) >= 4


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--video.fps", "2", "--video.frames", "4"), "exclude each other"),
        (("--max-tokens", "0"), "--max-tokens"),
    ],
)
def test_wrong_settings(ask: Ask, world: World, more: tuple[str, ...], said: str) -> None:
    code, out, err = ask(world.film(0), *more)
    assert code == 2
    assert said in err
    assert out == ""


def test_a_model_that_is_not_there(ask: Ask, world: World) -> None:
    code, _, err = ask(world.film(0), model="/no/such/model")
    assert code == 1
    assert err.startswith("no such model")


def test_an_empty_question(ask: Ask, world: World) -> None:
    code, _, err = ask(world.film(0), question="  ")
    assert code == 1
    assert err.startswith("the question is empty")


def test_a_long_receipt_is_shortened() -> None:
    seconds = tuple(k / 2 for k in range(12))
    seen = Receipt("a.mp4", "9f", (*range(12), 11), (*seconds, 5.5), 32, 32, "pyav 1", 1, 6, "capped at 12 of 60")
    assert told(seen).splitlines() == [
        "saw 12 frames of a.mp4 at 0.0 0.5 1.0 1.5 … 4.5 5.0 5.5 s",
        "32 x 32 pixels, 6 visual tokens, pyav 1",
        "cut: capped at 12 of 60",
    ]
