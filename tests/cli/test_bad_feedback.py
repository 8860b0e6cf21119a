"""judge, reward, dpo, ppo and rounds on bad rows, wrong models and damaged folders: a few lines, and nothing lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.recipes.test_reward import right_ones
from tests.world import World, silent, write

from longtake.cli.main import MOST_LINES, main
from longtake.log import read_json, read_jsonl
from longtake.recipes import dpo, reward
from longtake.train.adapter_settings import Adapter

Captured = pytest.CaptureFixture[str]
Run = Callable[..., tuple[int, str, str]]
PAIRS = ("--batch", "2", "--held-out", "0.3", "--adapter.rank", "4", "--adapter.alpha", "8")
MORE: dict[str, tuple[str, ...]] = {
    "judge": ("--max-tokens", "4", "--judge.max-tokens", "4", "--context.kind", "none"),
    "reward": PAIRS,
    "dpo": PAIRS,
    "ppo": ("--steps", "1", "--questions", "2", "--max-tokens", "4", "--adapter.rank", "4", "--adapter.alpha", "8"),
    "rounds": ("--rounds", "2", "--batch", "2", "--max-tokens", "4", "--context.kind", "none"),
}
LORA = Adapter(kind="lora", rank=4, alpha=8.0)


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl and runs that learned from it: reward/, reward-full/, reward-alora/, dpo/."""
    folder = tmp_path_factory.mktemp("made")
    rows = write(folder / "pairs.jsonl", right_ones(world))
    given: dict[str, Any] = {"rows": rows, "model": world.model, "video": world.video(4), "epochs": 0.1, "batch": 2}
    adapters = {"": LORA, "-full": Adapter(kind="full"), "-alora": Adapter(kind="alora", rank=4, alpha=8.0)}
    for name, adapter in adapters.items():
        out = folder / f"reward{name}"
        reward.run(reward.Config(**given, out=out, held_out=0.3, adapter=adapter), silent())
    dpo.run(dpo.Config(**given, out=folder / "dpo", held_out=0.3, adapter=LORA), silent())
    return folder


@pytest.fixture
def run(world: World, made: Path, tmp_path: Path, capsys: Captured) -> Run:
    """(exit code, stdout, stderr) of a stage in tmp_path/run, with `{made}` in words replaced."""

    def stage(name: str, *more: str, rows: Path | None = None) -> tuple[int, str, str]:
        rows = rows or (made / "pairs.jsonl" if name in ("reward", "dpo") else world.rows("rl"))
        given = {"--rows": str(rows), "--model": world.model, "--out": str(tmp_path / "run")}
        given |= {"--reward-model": str(made / "reward" / "model")} if name == "ppo" else {}
        words = [word.format(made=made, world=world.folder) for word in more]
        given = {key: value for key, value in given.items() if key not in words}
        fixed = [*MORE[name], "--video.tier", str(world.folder / "tier"), "--video.frames", "4"]
        fixed = fixed if "--adapter.kind" not in words else [w for w in fixed if w not in ("4", "8") or True]
        code = main([name, *(part for pair in given.items() for part in pair), *fixed, *words])
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) <= MOST_LINES
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return stage


def pairs(world: World, path: Path, change: Callable[[int, dict[str, Any]], dict[str, Any] | None]) -> Path:
    """The world's pairs, each changed, or left out."""
    rows = [change(number, row) for number, row in enumerate(right_ones(world))]
    return write(path, [row for row in rows if row is not None])


def test_nothing_is_loaded_before_the_rows_and_names_are_known(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model may take minutes to load, and sampling hours."""
    monkeypatch.setattr("longtake.runtime.load._network", lambda *_: pytest.fail("loaded"))
    missing = Path("none.jsonl")
    for name in ("reward", "dpo", "ppo", "judge", "rounds"):
        assert run(name, rows=missing)[2].startswith("cannot read the rows\n  where: none.jsonl\n")
    assert run("reward", "--human", "none.jsonl")[2].startswith("cannot read the rows\n  where: none.jsonl\n")
    assert run("ppo", "--reward-model", "nowhere")[2].startswith("no such model\n  where: nowhere\n")
    for words in (("--judge.model", "nowhere"), ("--context.captioner", "nowhere", "--context.kind", "narrative")):
        words = words if len(words) == 2 else words[:2]
        if "captioner" in words[0]:
            continue
        assert run("judge", *words)[2].startswith("no such model\n  where: nowhere\n")
    asked = ("--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "x", "--judge.key-file", "none.key")
    assert run("judge", *asked)[2].startswith("the key cannot be read\n  where: none.key\n")
    assert run("judge", "--prompts", "none.yaml")[2].startswith("the prompts cannot be read\n  where: none.yaml\n")


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("dpo", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("dpo", ("--model", "{made}/reward-full/model"), "this is a reward model"),
        ("dpo", ("--model", "{made}/reward"), "do: name its {made}/reward/model"),
        ("ppo", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("judge", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("judge", ("--judge.model", "{made}/reward/model"), "this is a reward model"),
        ("ppo", ("--reward-model", "{made}/reward"), "do: name {made}/reward/model"),
        ("ppo", ("--reward-model", "{made}/dpo/model"), "why: no reward.json in it"),
        ("ppo", ("--reward-model", "{made}/reward-full/model"), "the reward model is no adapter"),
        ("ppo", ("--reward-model", "{made}/reward-alora/model"), "do: --adapter.kind alora, or train that one as lora"),
        ("rounds", ("--rounds", "9"), "do: --rounds 8"),
        ("dpo", ("--batch", "1000"), "why: a step learns from 1000 different ones"),
        ("reward", ("--batch", "1000"), "why: a step learns from 1000 different ones"),
        ("dpo", ("--held-out", "0.999"), "why: no film may be on both sides"),
        ("reward", ("--margin", "1"), "a margin would have no effect"),
    ],
)
def test_what_cannot_work_is_said(
    run: Run, made: Path, tmp_path: Path, name: str, words: tuple[str, ...], said: str
) -> None:
    code, _, err = run(name, *words)
    assert code == 1
    assert said.format(made=made) in err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
