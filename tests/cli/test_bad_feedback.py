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
LORA = {"--adapter.rank": "4", "--adapter.alpha": "8"}
SHORT = {"--max-tokens": "4", "--judge.max-tokens": "4", "--context.kind": "none"}
MORE: dict[str, dict[str, str]] = {
    "judge": SHORT,
    "reward": LORA | {"--batch": "2", "--held-out": "0.3", "--epochs": "0.1"},
    "dpo": LORA | {"--batch": "2", "--held-out": "0.3", "--epochs": "0.1"},
    "ppo": LORA | {"--steps": "1", "--questions": "2", "--max-tokens": "4"},
    "rounds": SHORT | {"--rounds": "2", "--batch": "2"},
}


@pytest.fixture(scope="module")
def made(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs.jsonl and runs that learned from it: reward/, reward-full/, reward-alora/, dpo/."""
    folder = tmp_path_factory.mktemp("made")
    rows = write(folder / "pairs.jsonl", right_ones(world))
    given: dict[str, Any] = {"rows": rows, "model": world.model, "video": world.video(4), "epochs": 0.1, "batch": 2}
    lora, alora = (Adapter(kind=kind, rank=4, alpha=8.0) for kind in ("lora", "alora"))
    for name, adapter in {"reward": lora, "reward-full": Adapter(kind="full"), "reward-alora": alora}.items():
        reward.run(reward.Config(**given, out=folder / name, held_out=0.3, adapter=adapter), silent())
    dpo.run(dpo.Config(**given, out=folder / "dpo", held_out=0.3, adapter=lora), silent())
    return folder


@pytest.fixture
def run(world: World, made: Path, tmp_path: Path, capsys: Captured) -> Run:
    """(exit code, stdout, stderr) of a small stage in tmp_path/run; `words` replace settings, {made} in them a path."""

    def stage(name: str, *words: str) -> tuple[int, str, str]:
        given = {"--model": world.model, "--out": str(tmp_path / "run"), **MORE[name], "--video.frames": "4"}
        given["--rows"] = str(made / "pairs.jsonl" if name in ("reward", "dpo") else world.rows("rl"))
        given["--video.tier"] = str(world.folder / "tier")
        if name == "ppo":
            given["--reward-model"] = str(made / "reward" / "model")
        given |= {option: value.format(made=made) for option, value in zip(words[::2], words[1::2], strict=True)}
        code = main([name, *(part for pair in given.items() for part in pair)])
        captured = capsys.readouterr()
        assert len(captured.err.splitlines()) <= MOST_LINES
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return stage


UNKNOWN = [
    (name, ("--rows", "none.jsonl"), "cannot read the rows\n  where: none.jsonl\n")
    for name in ("reward", "dpo", "ppo", "judge", "rounds")
]
REMOTE = ("--judge.url", "http://127.0.0.1:9/v1", "--judge.model", "x")
UNKNOWN += [
    ("reward", ("--human", "none.jsonl"), "cannot read the rows\n  where: none.jsonl\n"),
    ("ppo", ("--reward-model", "nowhere"), "no such model\n  where: nowhere\n"),
    ("judge", ("--judge.model", "nowhere"), "no such model\n  where: nowhere\n"),
    (
        "judge",
        ("--context.kind", "narrative", "--context.captioner", "nowhere"),
        "no such model\n  where: nowhere\n",
    ),
    ("judge", (*REMOTE, "--judge.key-file", "none.key"), "the key cannot be read\n  where: none.key\n"),
    ("judge", ("--prompts", "none.yaml"), "the prompts cannot be read\n  where: none.yaml\n"),
    ("judge", ("--judge.model", "{made}/reward/model"), "this is a reward model\n"),
]


@pytest.mark.parametrize(("name", "words", "said"), UNKNOWN)
def test_what_is_not_there_is_said_before_a_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch, name: str, words: tuple[str, ...], said: str
) -> None:
    """That may take minutes, and sampling hours."""
    monkeypatch.setattr("longtake.models.qwen_vl.network", lambda *_: pytest.fail("a model was loaded"))
    code, _, err = run(name, *words)
    assert (code, err[: len(said)]) == (1, said)
    assert "  do: " in err


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("dpo", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("dpo", ("--model", "{made}/reward-full/model"), "this is a reward model"),
        ("dpo", ("--model", "{made}/reward"), "do: name its {made}/reward/model"),
        ("dpo", ("--model", "{made}/dpo/model", "--adapter.rank", "8"), "--adapter.rank 4 --adapter.alpha 8, or"),
        ("ppo", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("judge", ("--model", "{made}/reward/model"), "this is a reward model"),
        ("ppo", ("--reward-model", "{made}/reward"), "do: name {made}/reward/model"),
        ("ppo", ("--reward-model", "{made}/dpo/model"), "why: no reward.json in it"),
        ("ppo", ("--reward-model", "{made}/reward-full/model"), "the reward model is no adapter"),
        ("ppo", ("--reward-model", "{made}/reward-alora/model"), "do: --adapter.kind alora, or train that one as lora"),
        ("ppo", ("--questions", "100"), "do: --questions 8"),
        ("rounds", ("--rounds", "9"), "do: --rounds 8"),
        ("rounds", ("--batch", "5"), "do: give more questions, or a smaller --batch"),
        ("dpo", ("--batch", "1000"), "why: a step learns from 1000 different ones"),
        ("reward", ("--batch", "1000"), "why: a step learns from 1000 different ones"),
        ("dpo", ("--held-out", "0.999"), "why: no film may be on both sides"),
        ("reward", ("--margin", "1"), "a margin would have no effect"),
        ("dpo", ("--out", "{made}/dpo/model"), "there is adapter_config.json, but no run.json"),
        ("dpo", ("--out", "{made}/reward"), "why: it is of `reward`"),
    ],
)
def test_what_cannot_work_is_said(
    run: Run, made: Path, tmp_path: Path, name: str, words: tuple[str, ...], said: str
) -> None:
    code, _, err = run(name, *words)
    assert (code, said.format(made=made) in err) == (1, True), err
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("ppo", ("--clip", "0.2"), "--clip: needs more values than were given"),
        ("ppo", ("--kl.horizon", "5"), "horizon has no effect on a fixed weight"),
        ("reward", ("--human-epochs", "2"), "human_epochs has no effect without human"),
        ("dpo", ("--gamma", "1"), "gamma has no effect on dpo"),
        ("dpo", ("--bata", "1"), "did you mean '--beta'?"),
        ("judge", ("--judge.retries", "3"), "retries has no effect without an endpoint"),
        ("judge", ("--pairs", "5"), "pairs is 5, but 2 answers make 1"),
        ("rounds", ("--video.root", "."), "video.root is not for rounds"),
    ],
)
def test_settings_without_effect_are_refused(run: Run, name: str, words: tuple[str, ...], said: str) -> None:
    code, _, err = run(name, *words)
    assert (code, said in err) == (2, True), err


def test_a_model_on_another_base_is_no_value_model(run: Run, made: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["merge", str(made / "dpo" / "model"), "--out", str(tmp_path / "merged")]) == 0
    capsys.readouterr()
    code, _, err = run("ppo", "--model", str(tmp_path / "merged"))
    assert (code, err.splitlines()[0]) == (1, "the reward model has another base")


def test_too_many_malformed_pairs_end_the_run_and_few_do_not(run: Run, made: Path, tmp_path: Path) -> None:
    rows = read_jsonl(made / "pairs.jsonl")
    rows[3]["rejected"] = rows[3]["chosen"]
    file = write(tmp_path / "rows.jsonl", rows)
    code, _, err = run("dpo", "--rows", str(file), "--video.most-failed", "0")
    assert (code, "rows.jsonl:4: both answers are the same" in err) == (1, True)
    assert run("dpo", "--rows", str(file))[0] == 0
    assert [bad["place"] for bad in read_jsonl(tmp_path / "run" / "bad_rows-rows.jsonl")] == [4]


def test_a_judge_that_keeps_nothing_says_why_and_what_to_do(run: Run, tmp_path: Path) -> None:
    code, out, err = run("judge")
    assert code == 1
    assert err.startswith("judge came to nothing\n  why: the judge kept none of ")
    assert "longtake view" in err
    assert json.loads(out.splitlines()[-1])["summary"]["kept"] == 0
    assert read_json(tmp_path / "run" / "run.json")["status"] == "done"
    assert run("judge")[0] == 1  # and again, from its folder
    assert main(["view", str(tmp_path / "run"), "--no-open"]) == 0


def test_the_rate_of_a_stage_stays_where_another_setting_of_the_optimizer_is_given(run: Run, tmp_path: Path) -> None:
    assert run("reward", "--optim.warmup", "0")[0] == 0
    assert read_jsonl(tmp_path / "run" / "metrics.jsonl")[0]["lr"] == reward.Config.model_fields["optim"].default.lr
