"""GRPO end to end on real films: every algorithm learns, rewards decide what, and a kill changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary, weights

from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.maths.algorithms import ALGORITHMS
from longtake.recipes import grpo
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.settings import Optim

TOKENS = 8
MOVED = 1e-4  # how far learning moves some weight, at least
SINGLE = 1e-4  # weights of two runs in float32 whose sums were added in another order
DEATHS = [
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.log.log:Log.step", 6),
    Death("longtake.train.session:step_optimizer", 4),
    Death("longtake.train.keep:save_strip", 3),
    Death("longtake.models.qwen3_vl:Qwen3VL.save", 2),
    Death("torch:save", 3),
    Death("longtake.recipes.grpo:finish", 1),
]

Make = Callable[..., grpo.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    """A reward in which nearly all answers differ."""
    (tmp_path / "my.py").write_text("def score(text, row):\n    return sum(map(ord, text)) % 17 / 16\n")
    return f"{tmp_path / 'my.py'}:score"


@pytest.fixture
def config(world: World, tmp_path: Path, rewards: str) -> Make:
    def make(name: str = "run", **changed: Any) -> grpo.Config:
        given = {
            "rows": world.rows("rl"), "model": world.model, "out": tmp_path / name, "steps": 7, "questions": 3,
            "group_size": 4, "max_tokens": TOKENS, "reward": (rewards,), "checkpoint_every": 2, "keep_rollouts": 3,
            "video": world.video(), "optim": Optim(lr=0.003, warmup=0), "seed": 1, "adapter": Adapter(kind="full"),
        }  # fmt: skip
        return grpo.Config(**given | changed)

    return make


def run(config: grpo.Config) -> dict[str, Any]:
    log = silent()
    done = grpo.run(config, log)
    log.close()
    return done


def steps(config: grpo.Config) -> list[dict[str, Any]]:
    return read_jsonl(config.out / "metrics.jsonl")


def learned(config: grpo.Config) -> dict[str, torch.Tensor]:
    return load_file(config.out / "model" / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in other)


@pytest.fixture
def start(world: World) -> dict[str, torch.Tensor]:
    return load_file(Path(world.model) / "model.safetensors")


def rollouts(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "rollouts").iterdir())}


@pytest.mark.parametrize("name", list(ALGORITHMS))
def test_every_algorithm_takes_a_step(config: Make, start: dict[str, torch.Tensor], name: str) -> None:
    run(config(algorithm=name, steps=1))
    after = learned(config())
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert distance(after, start) > MOVED
    assert all(torch.equal(after[part], start[part]) for part in start if "visual" in part)
    (row,) = steps(config())
    assert row["clipped"] == row["kl"] == 0.0  # one pass over fresh answers: the ratio is 1
    assert row["groups_kept"] > 0
    assert row["grad_norm"] > 0


def test_algorithms_differ(config: Make) -> None:
    made = {}
    for name in ("grpo", "dr_grpo", "rloo", "reinforce_pp"):
        run(config(name, algorithm=name, steps=1))
        made[name] = steps(config(name))[0]["grad_norm"]
    assert len(set(made.values())) == 4
    run(config("again", algorithm="grpo", steps=1))
    assert steps(config("again"))[0]["grad_norm"] == made["grpo"]


def test_it_learns_what_is_rewarded(config: Make, tmp_path: Path) -> None:
    """A share of one word in the answer, up from about one in a hundred and seventy."""
    (tmp_path / "word.py").write_text("def score(text, row):\n    return text.split().count('gem') / 8\n")
    reward = (f"{tmp_path / 'word.py'}:score",)
    run(config(steps=25, questions=8, group_size=16, reward=reward, optim=Optim(lr=0.01, warmup=0)))
    found = [row["reward"] for row in steps(config())]
    assert sum(found[:3]) / 3 < 0.1
    assert sum(found[-3:]) / 3 > 0.5
    assert read_json(config().out / "summary.json")["reward"] == pytest.approx(sum(found[-2:]) / 2)


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    whole, cut = config("whole"), config("cut")
    want = run(whole)
    killed("longtake.recipes.grpo", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) | {"model": want["model"]} == want
    assert weights(cut.out / "model") == weights(whole.out / "model")
    assert metrics(cut.out) == metrics(whole.out)
    assert rollouts(cut.out) == rollouts(whole.out)
    assert summary(cut.out) == summary(whole.out)


def test_a_kill_changes_nothing_off_policy_with_refill(config: Make) -> None:
    given = {"epochs": 2, "minibatches": 2, "refill": 1, "reward": ("accuracy",), "clip": (0.2, 0.3), "overlong": 3}
    whole, cut = config("whole", **given), config("cut", **given)
    run(whole)
    killed("longtake.recipes.grpo", cut, Death("longtake.log.log:Log.step", 5))
    run(cut)
    assert weights(cut.out / "model") == weights(whole.out / "model")
    assert metrics(cut.out) == metrics(whole.out)


def test_rollouts_are_kept_for_the_report(config: Make, rewards: str) -> None:
    run(config())
    assert list(rollouts(config().out)) == ["000001.jsonl", "000003.jsonl", "000006.jsonl", "000007.jsonl"]
    for row in read_jsonl(config().out / "rollouts" / "000003.jsonl"):
        assert row["step"] == 3
        assert (config().out / row["strip"]).is_file()
        assert len(row["answers"]) == 4
        for answer in row["answers"]:
            assert answer["parts"] == {rewards: answer["reward"]}
        assert sum(answer["advantage"] for answer in row["answers"]) == pytest.approx(0, abs=1e-5)


def test_what_is_watched(config: Make) -> None:
    run(config(steps=2))
    row = steps(config())[0]
    (group, *_) = read_jsonl(config().out / "rollouts" / "000001.jsonl")
    assert {"reward", "reward_std", "accuracy", "format", "length", "finished", "entropy", "groups_kept"} <= row.keys()
    assert row["groups_all_right"] == 0.0
    assert 0 < row["entropy"] <= torch.log(torch.tensor(180.0))
    every = [a for g in read_jsonl(config().out / "rollouts" / "000001.jsonl") for a in g["answers"]]
    for name, values in (("reward", [a["reward"] for a in every]), ("length", [a["tokens"] for a in every])):
        assert row[name] == pytest.approx(sum(values) / len(values))
    assert row["accuracy"] == pytest.approx(sum(a["correct"] for a in every) / len(every))
    assert row["finished"] == pytest.approx(sum(a["finish"] == "stop" for a in every) / len(every))
    assert group["receipt"]["backend"].startswith("pyav")


def test_groups_without_a_difference_teach_nothing(
    config: Make, tmp_path: Path, start: dict[str, torch.Tensor]
) -> None:
    (tmp_path / "same.py").write_text("def score(text, row):\n    return 1.0\n")
    run(config(steps=2, reward=(f"{tmp_path / 'same.py'}:score",), refill=2))
    assert distance(learned(config()), start) == 0.0
    rows = steps(config())
    assert [row["groups_kept"] for row in rows] == [0.0, 0.0]
    progress = read_json(config().out / "checkpoints" / "000002" / "progress.json")
    assert progress["taken"] == 19 + 3  # three draws a step, two in an epoch of eight: they begin at 0 3 8 and 11 16 19


def test_refill_asks_further_questions_until_enough_groups_differ(config: Make, tmp_path: Path) -> None:
    (tmp_path / "some.py").write_text(
        "def score(text, row):\n    return len(text) * (row['kind'] in ('goal', 'plot'))\n"
    )
    reward = (f"{tmp_path / 'some.py'}:score",)
    run(config(steps=1, questions=4, reward=reward, refill=5, keep_rollouts=1))
    (row,) = steps(config())
    taken = read_json(config().out / "checkpoints" / "000001" / "progress.json")["taken"]
    assert taken % 4 == 0
    assert 8 <= taken <= 24
    asked = read_jsonl(config().out / "rollouts" / "000001.jsonl")
    assert sum(group["kind"] in ("goal", "plot") for group in asked) >= 4
    differ = [len({answer["reward"] for answer in group["answers"]}) > 1 for group in asked]
    assert sum(differ) >= 4
    assert row["groups_kept"] == 4 / taken  # four are learned from, of all that were asked
    rewards = [answer["reward"] for group in asked for answer in group["answers"]]
    assert row["reward"] == pytest.approx(sum(rewards) / len(rewards))  # nobody is left out of what is watched
    assert len(asked) == taken


def test_no_step_asks_a_question_twice(config: Make) -> None:
    """Eight questions in steps of three: a third step would cross the border of the epoch, so it begins the next."""
    run(config(steps=6, keep_rollouts=1, group_size=2, max_tokens=2))
    asked = [[group["id"] for group in read_jsonl(config().out / f"rollouts/{n:06d}.jsonl")] for n in range(1, 7)]
    assert all(len(set(step)) == 3 for step in asked)
    for first, second in zip(asked[::2], asked[1::2], strict=True):
        assert not set(first) & set(second)
    assert read_json(config().out / "checkpoints" / "000006" / "progress.json")["taken"] == 22


def test_more_questions_a_step_than_there_are_are_refused(config: Make) -> None:
    with pytest.raises(UserError, match="only 8 questions to ask"):
        run(config(questions=9))


def test_several_passes_leave_the_policy_that_sampled(config: Make) -> None:
    run(config(steps=1, epochs=3, minibatches=3, optim=Optim(lr=0.01, warmup=0)))
    (row,) = steps(config())
    assert row["kl"] > 0
    run(config("tight", steps=1, epochs=3, minibatches=3, clip=(1e-4, 1e-4)))
    (tight,) = steps(config("tight"))
    assert tight["clipped"] > 0.2


def test_packing_changes_nothing(config: Make) -> None:
    for name, tokens in (("one", 10**6), ("many", 1)):
        run(config(name, memory=Memory(row_tokens=tokens), steps=1))
    assert distance(learned(config("one")), learned(config("many"))) < SINGLE


def test_long_answers_are_punished_softly(config: Make, tmp_path: Path) -> None:
    (tmp_path / "same.py").write_text("def score(text, row):\n    return float('a' in text)\n")
    reward = (f"{tmp_path / 'same.py'}:score",)
    for name, margin in (("off", 0), ("on", 6)):
        run(config(name, steps=1, algorithm="grpo", reward=reward, overlong=margin, group_size=8))
    assert steps(config("off"))[0]["reward"] == steps(config("on"))[0]["reward"]  # what is watched is the reward
    ended = [a["finish"] for g in read_jsonl(config("on").out / "rollouts/000001.jsonl") for a in g["answers"]]
    assert "stop" in ended
    assert distance(learned(config("off")), learned(config("on"))) > 0


def test_what_is_done_is_not_done_again(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(config(steps=2))
    monkeypatch.setattr("longtake.train.session.load_model", lambda *_: pytest.fail("it loads the model"))
    assert run(config(steps=2)) == want
    with pytest.raises(UserError, match="other settings"):
        run(config(steps=2, group_size=5))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"algorithm": "grop"}, "did you mean 'grpo'"),
        ({"algorithm": "zebra"}, "one of longtake, grpo"),
        ({"clip": (0.1, 0.2)}, "no effect"),
        ({"clip": (0.1, 0.1), "algorithm": "rloo"}, "rloo has no clip"),
        ({"algorithm": "rloo", "epochs": 2}, "rloo makes one pass"),
        ({"algorithm": "rloo", "minibatches": 2}, "rloo makes one pass"),
        ({"algorithm": "grpo", "refill": 1}, "grpo keeps groups of equal rewards"),
        ({"reward": ("accuracy", "accuracy=0.5")}, "accuracy is given twice"),
        ({"reward": ("acuracy",)}, "did you mean accuracy"),
        ({"reward": ("accuracy=much",)}, "its weight is 'much'"),
        ({"reward": ("none.py:score",)}, "does not exist"),
        ({"model": "no/where/at-all"}, "no such model"),
    ],
)
def test_wrong_settings_end_in_words(config: Make, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        run(config(**wrong))
    assert len(str(caught.value).splitlines()) <= 6


def test_a_reward_that_fails_names_row_and_line(config: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def score(text, row):\n    return row['gold']\n")
    with pytest.raises(UserError, match=r"bad\.py:2: return row\['gold'\]"):
        run(config(reward=(f"{tmp_path / 'bad.py'}:score",)))
