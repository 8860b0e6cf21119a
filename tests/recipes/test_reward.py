"""Reward models on real films of the simulated world: what they learn, what they say of themselves, kills."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, stories, summary, write

from longtake.data.pairs import read_pairs
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.maths.reward import batch_sign, bradley_terry
from longtake.recipes import reward
from longtake.sim.rows import chain
from longtake.train import comparing
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.settings import Optim

Make = Callable[..., reward.Config]
PAIRS = 3  # on every film
FILMS = 8
SINGLE = 1e-5  # of sums of float32 in another order
LORA = Adapter(kind="lora", rank=4, alpha=8.0)
DEATHS = [
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.log.log:Log.step", 5),
    Death("longtake.models.qwen3_vl:Qwen3VL.save", 2),
    Death("longtake.rewards.model:write", 1),
    Death("longtake.recipes.reward:finish", 1),
]

pytestmark = pytest.mark.usefixtures("one_thread")


def pair(world: World, number: int, place: int, chosen: str, rejected: str, **more: Any) -> dict[str, Any]:
    """A preference row on a film of the world."""
    asked = read_jsonl(world.rows("rl"))[number]
    content = asked["messages"][0]["content"]
    content[0]["video"] = str(world.film(number))
    row = {"id": f"p{number}-{place}", "question_id": f"q{number}", "prompt": [{"role": "user", "content": content}]}
    row |= {"options": asked["options"], "answer": asked["answer"]}
    answers = {"chosen": chosen, "rejected": rejected}
    return row | {key: [{"role": "assistant", "content": text}] for key, text in answers.items()} | more


def right_ones(world: World, **more: Any) -> list[dict[str, Any]]:
    """A careful chain with the right answer, against short ones with a wrong answer."""
    rows = []
    for number, story in enumerate(stories()):
        wrong = [option for option in story.options if option != story.truth]
        for place in range(PAIRS):
            word = wrong[place % len(wrong)]
            bad = f"<think> so {word} </think> <answer> {word} </answer>" + " ?" * place
            rows.append(pair(world, number, place, chain(story, "full") + " ?" * place, bad, **more))
    return rows


def long_ones(world: World, longer: int = FILMS * PAIRS) -> list[dict[str, Any]]:
    """The same words again and again; in the first `longer` rows the longer answer is the better one."""
    rows = []
    for number in range(FILMS):
        for place in range(PAIRS):
            short, long = (" ".join(["left"] * count) for count in (1 + place, 4 + 3 * place + number % 3))
            answers = (long, short) if len(rows) < longer else (short, long)
            rows.append(pair(world, number, place, *answers))
    return rows


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    rows = write(tmp_path / "pairs.jsonl", right_ones(world))

    def make(name: str = "run", **changed: Any) -> reward.Config:
        given = {
            "rows": rows, "model": world.model, "out": tmp_path / name, "batch": 4, "epochs": 1.5, "held_out": 0.3,
            "checkpoint_every": 2, "video": world.video(), "optim": Optim(lr=0.01, warmup=0), "seed": 1,
            "adapter": LORA,
        }  # fmt: skip
        return reward.Config(**given | changed)

    return make


def run(config: reward.Config) -> dict[str, Any]:
    log = silent()
    done = reward.run(config, log)
    log.close()
    return done


def learned(folder: Path) -> dict[str, torch.Tensor]:
    files = ("adapter_model.safetensors", "scalar_head.safetensors")
    return {name: x for file in files for name, x in load_file(folder / "model" / file).items()}


def test_it_learns_to_score(config: Make) -> None:
    done = run(config(epochs=4))
    first, *_, last = read_jsonl(config().out / "metrics.jsonl")
    assert last["loss"] < first["loss"] / 2
    assert done["accuracy"] == 1.0  # on films that it never learned from
    assert done["pairs"] + done["n"] == FILMS * PAIRS
    assert done["n"] % PAIRS == 0
    assert done["by_source"] == {"rows": {"accuracy": 1.0, "n": done["n"]}}
    assert done["truth"] == {"accuracy": 1.0, "labels": 1.0, "n": done["n"]}
    assert sum(b["n"] for b in done["calibration"]["bins"]) == done["n"]
    assert last["held_accuracy"] == 1.0
    assert read_json(config().out / "model" / "reward.json") == {"suffix": [], "suffix_ids": []}


def test_scores_are_kept_beside_the_pairs(config: Make) -> None:
    done = run(config())
    rows = read_jsonl(config().out / "scores.jsonl")
    assert len(rows) == done["n"]
    again = read_pairs(config().out / "scores.jsonl")
    assert [p.id for p in again] == [row["id"] for row in rows]
    assert all(Path(p.question.video).resolve().exists() for p in again)
    right = sum(row["model_chosen"] > row["model_rejected"] for row in rows) / len(rows)
    assert done["accuracy"] == pytest.approx(right)
    mean = sum(row["model_chosen"] + row["model_rejected"] for row in rows) / len(rows) / 2
    assert done["mean_score"] == pytest.approx(mean)


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, world: World, tmp_path: Path, death: Death) -> None:
    people = write(tmp_path / "people.jsonl", right_ones(world, source="human")[: 7 * PAIRS])
    whole, cut = config("whole", human=people), config("cut", human=people)
    want = run(whole)
    killed("longtake.recipes.reward", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) | {"model": want["model"]} == want
    for name, weight in learned(whole.out).items():
        assert weight.equal(learned(cut.out)[name]), name
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)
    assert read_jsonl(cut.out / "scores.jsonl") == read_jsonl(whole.out / "scores.jsonl")


def test_people_first_and_no_film_on_both_sides(
    config: Make, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a film is in both files; the rate falls over both stages."""
    met: list[list[str]] = []
    real = comparing.Reading.items

    def spied(self: Any, stage: Any, pairs: Any, log: Any) -> Any:
        met.append([f"{stage.name} {pair.id}" for pair in pairs])
        return real(self, stage, pairs, log)

    monkeypatch.setattr(comparing.Reading, "items", spied)
    people = write(tmp_path / "people.jsonl", right_ones(world))
    falling = Optim(lr=0.01, warmup=0, schedule="linear", floor=0.0)
    given = config(human=people, human_epochs=0.5, epochs=1, checkpoint_every=99, optim=falling)
    done = run(given)
    rows = read_jsonl(given.out / "metrics.jsonl")
    assert [row["stage"] for row in rows] == sorted(row["stage"] for row in rows)
    assert {row["stage"] for row in rows} == {0.0, 1.0}
    assert done["by_source"].keys() == {"human", "rows"}
    want = [falling.rate(step, len(rows)) for step in range(len(rows))]
    assert [row["lr"] for row in rows] == pytest.approx(want)
    stages = [[n for one in met[: len(rows)] for n in one if n.startswith(name)] for name in ("human", "rows")]
    assert len(set(stages[1])) == done["pairs"] // 2  # one epoch, from its own beginning
    seen = {name.split()[1].split("-")[0] for own in stages for name in own}
    held = {row["id"].split("-")[0] for row in read_jsonl(given.out / "scores.jsonl")}
    assert held
    assert not seen & held


def test_length_bias_is_visible(config: Make, world: World, tmp_path: Path) -> None:
    """Where longer answers are preferred the model learns so, and says so."""
    rows = write(tmp_path / "long.jsonl", long_ones(world))
    done = run(config(rows=rows, epochs=6))
    assert done["length"]["longer_chosen"] == 1.0
    assert done["length"]["longer_scored_higher"] == done["accuracy"] == 1.0
    assert done["length_correlation"] == done["length"]["score"]["value"] > 0.5
    fair = write(tmp_path / "fair.jsonl", long_ones(world, longer=0))
    other = run(config("fair", rows=fair, epochs=6))
    assert other["length"]["longer_chosen"] == 0.0
    assert other["length_correlation"] < -0.5


@pytest.mark.parametrize("way", ["trl", "vlm_rlaif"])
def test_the_loss_is_the_formula_on_the_scores(config: Make, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """However a batch is cut into rows. The first step's scores are read before it is made."""
    found: list[torch.Tensor] = []
    real = reward.objective_of

    def spied(config: Any, reading: Any, stage: Any, items: Any) -> Any:
        found.append(torch.tensor(reading.scores(stage, items)).flatten())
        return real(config, reading, stage, items)

    monkeypatch.setattr(reward, "objective_of", spied)
    for budget in (16384, 1):
        given = config(f"of {budget}", centring=0.5, centring_way=way, epochs=0.2, memory=Memory(row_tokens=budget))
        run(given)
        row, scores = read_jsonl(given.out / "metrics.jsonl")[0], found.pop()
        sign = batch_sign(scores) if way == "vlm_rlaif" else None
        want = bradley_terry(scores, centring=0.5, way=way, sign=sign)
        assert row["loss"] == pytest.approx(float(want.total) / 4, abs=SINGLE)
        if sign is not None:  # the paper's own words
            lead, both = scores[::2] - scores[1::2], (scores[::2] + scores[1::2]).mean().abs()
            plain = torch.nn.functional.softplus(-lead).mean() + 0.5 * both
            assert row["loss"] == pytest.approx(float(plain), abs=SINGLE)


def test_a_margin_asks_for_more(config: Make, world: World, tmp_path: Path) -> None:
    rows = write(tmp_path / "margins.jsonl", right_ones(world, margin=2.0))
    losses = {}
    for margin in (0.0, 1.5):
        run(config(f"by {margin}", rows=rows, margin=margin, epochs=0.1, centring=0))
        losses[margin] = read_jsonl(config(f"by {margin}").out / "metrics.jsonl")[0]["loss"]
    assert losses[1.5] > losses[0.0] + 1
    with pytest.raises(UserError, match="a margin would have no effect"):
        run(config("none", margin=1.0))


def test_a_suffix_stands_behind_every_answer(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    words: list[str] = []
    real = comparing.Reading.items

    def spied(self: Any, *given: Any) -> Any:
        items = real(self, *given)
        words.extend(self.session.model.tokenizer.decode(ids[:-1]) for item in items for ids in item.ids)
        return items

    monkeypatch.setattr(comparing.Reading, "items", spied)
    given = config(suffix=("where is the ball", "so left"), epochs=0.1)
    run(given)
    assert all(text.endswith("so left") for text in words)
    assert all(text.rindex("where is the ball") > text.rindex("</answer>") for text in words)
    saved = read_json(given.out / "model" / "reward.json")
    assert saved["suffix"] == ["where is the ball", "so left"]
    assert len(saved["suffix_ids"]) > 4


def test_nothing_held_out(config: Make) -> None:
    done = run(config(held_out=0, epochs=0.2))
    assert (done["accuracy"], done["n"], done["length_correlation"]) == (None, 0, None)
    assert read_jsonl(config().out / "scores.jsonl") == []


def test_a_reward_model_goes_on_with_its_head(config: Make) -> None:
    run(config("one", epochs=0.2))
    run(config("two", epochs=0.2, model=str(config("one").out / "model"), optim=Optim(lr=1e-9, warmup=0)))
    one, two = (learned(config(name).out)["weight"] for name in ("one", "two"))
    assert torch.allclose(one, two, atol=1e-7)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"human_epochs": 2.0}, "human_epochs has no effect"),
        ({"centring": 0.0, "centring_way": "trl"}, "centring_way has no effect"),
        ({"suffix": (" ",)}, "not empty"),
        ({"suffix": ("a", "b", "c")}, "at most 2"),
    ],
)
def test_settings_without_effect_are_refused(config: Make, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**wrong)


def test_malformed_pairs_are_left_out_and_kept_aside(config: Make, world: World, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = right_ones(world)
    rows[4] = {**rows[4], "rejected": rows[4]["chosen"]}
    given = config(rows=write(tmp_path / "some.jsonl", rows), epochs=0.2)
    done = run(given)
    assert done["pairs"] + done["n"] == FILMS * PAIRS - 1
    assert "both answers are the same" in (given.out / "bad_rows-some.jsonl").read_text()
    with pytest.raises(UserError, match="--batch"):
        run(config("large", batch=100))
