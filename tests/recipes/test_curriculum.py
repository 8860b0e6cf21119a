"""Easy before hard, and learning from one's own right answers: through the recipes, on real films, killed and whole."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary, weights, write

from longtake.data.rows import read_examples, read_questions
from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.models.qwen3_vl import Qwen3VL
from longtake.recipes import difficulty, sft
from longtake.sim import tiny
from longtake.train import rollout, supervised
from longtake.train.adapter_settings import Adapter
from longtake.train.settings import Optim

FULL, LORA = Adapter(kind="full"), Adapter(kind="lora", rank=4)
DEATHS = [
    Death("longtake.log.log:Log.step", 2),
    Death("longtake.log.log:Log.step", 5),
    Death("longtake.log.log:Log.step", 6),
    Death("longtake.recipes.sft:finish", 1),
]

Make = Callable[..., sft.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    def make(name: str = "run", **changed: Any) -> sft.Config:
        given = {
            "rows": lengths(world, tmp_path), "model": world.model, "out": tmp_path / name, "steps": 8, "batch": 2,
            "curriculum": "length", "curriculum_cuts": (0.5,), "checkpoint_every": 3, "video": world.video(),
            "optim": Optim(lr=0.01, warmup=0), "seed": 1, "adapter": FULL,
        }  # fmt: skip
        if changed.get("curriculum") == "none" and "curriculum_cuts" not in changed:
            del given["curriculum_cuts"]
        return sft.Config(**given | changed)

    return make


def lengths(world: World, folder: Path) -> Path:
    """Eight films whose answers have 1 to 8 words, the longest first."""
    rows = read_jsonl(world.rows("rl"))
    for number, row in enumerate(rows):
        row["messages"][0]["content"][0]["video"] = str(world.film(number))
        row["messages"].append({"role": "assistant", "content": " ".join(["left"] * (8 - number))})
    return write(folder / "lengths.jsonl", rows)


def run(config: Any, recipe: Any = sft) -> dict[str, Any]:
    log = silent()
    done: dict[str, Any] = recipe.run(config, log)
    log.close()
    return done


def test_short_answers_come_first(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[list[str]] = []
    real = supervised.backward_items

    def spied(session: Any, items: Any, *rest: Any) -> Any:
        batches.append([item.prompt.id for item in items])
        return real(session, items, *rest)

    monkeypatch.setattr(supervised, "backward_items", spied)
    run(config())
    for half, own in ((batches[:4], {"q4", "q5", "q6", "q7"}), (batches[4:], {"q0", "q1", "q2", "q3"})):
        for epoch in (half[:2], half[2:]):
            assert sorted(epoch[0] + epoch[1]) == sorted(own)
    assert [row["stage"] for row in metrics(config().out)] == [1] * 4 + [2] * 4
    notes = read_json(config().out / "run.json")["notes"]
    assert "stage 1 of 2: steps 1 to 4, 4 questions, answer tokens 2 to 5" in notes
    assert "stage 2 of 2: steps 5 to 8, 4 questions, answer tokens 6 to 9" in notes


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    """Before, at and after the border between two stages."""
    whole, cut = config("whole"), config("cut")
    run(whole)
    killed("longtake.recipes.sft", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    run(cut)
    assert weights(cut.out / "model") == weights(whole.out / "model")
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)


def test_without_a_curriculum_no_stage_is_told(config: Make) -> None:
    run(config(curriculum="none", steps=1))
    assert "stage" not in metrics(config().out)[0]


def test_settings_that_contradict_each_other(config: Make) -> None:
    for wrong, why in (
        ({"shuffle": False}, "a curriculum orders the rows itself"),
        ({"curriculum": "none", "curriculum_cuts": (0.5,)}, "curriculum_cuts has no effect"),
        ({"curriculum_cuts": (0.7, 0.3)}, "must rise"),
        ({"curriculum_cuts": (0.5, 0.5)}, "must rise"),
        ({"curriculum_cuts": (0.0,)}, "must rise"),
        ({"curriculum_cuts": (1.0,)}, "must rise"),
        ({"curriculum_cuts": ()}, "must rise"),
    ):
        with pytest.raises(ValidationError, match=why):
            config(**wrong)
    rows = {"batch_by": "row", "shuffle": False}
    with pytest.raises(ValidationError, match="a curriculum orders"):
        sft.Config(rows=config().rows, model="x", curriculum="length", **rows)


@pytest.fixture
def sorted_by_difficulty(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> difficulty.Config:
    """Answers of an even number of letters are right."""
    monkeypatch.setattr(rollout, "accuracy", lambda text, question: float(len(text) % 2 == 0))
    made = difficulty.Config(
        rows=world.rows("rl"), model=world.model, out=tmp_path / "difficulty", answers=8, max_tokens=12, batch=3,
        keep_right=3, video=world.video(4), seed=2,
    )  # fmt: skip
    run(made, difficulty)
    return made


def test_right_answers_are_rows_that_weigh_1_together(
    sorted_by_difficulty: difficulty.Config, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = sorted_by_difficulty
    rows = read_jsonl(done.out / "right.jsonl")
    told = read_json(done.out / "summary.json")["right"]
    examples = {example.question.id: example for example in read_examples(done.out / "right.jsonl")}
    asked = {question.id: question for question in read_questions(world.rows("rl"))}
    assert told == {"questions": len(examples), "answers": len(rows)}
    assert len(rows) > len(examples) > 1
    for name, example in examples.items():
        texts = [spans[0].text for spans in example.targets]
        assert 0 < len(set(texts)) == len(texts) <= 3
        assert all(len(text) % 2 == 0 for text in texts)
        assert sum(spans[0].weight for spans in example.targets) == pytest.approx(1.0)
        assert example.question.row["pass_rate"] > 0
        assert Path(example.question.video or "").samefile(asked[name].video or "")
    kept = read_jsonl(done.out / "rollouts" / "000001.jsonl")
    assert any(answer["correct"] and answer["finish"] != "stop" for group in kept for answer in group["answers"])
    for group in kept:
        finished = [a["text"] for a in group["answers"] if a["correct"] and a["finish"] == "stop" and a["text"]]
        own = examples.get(group["id"])
        assert list(dict.fromkeys(finished))[:3] == [spans[0].text for spans in (own.targets if own else ())]


@pytest.mark.parametrize("curriculum", ["none", "length", "pass_rate"])
def test_sft_learns_from_them(sorted_by_difficulty: difficulty.Config, config: Make, curriculum: str) -> None:
    rows = sorted_by_difficulty.out / "right.jsonl"
    assert run(config(rows=rows, curriculum=curriculum, steps=4, batch=1))["steps"] == 4


def test_the_splits_of_difficulty_are_a_curriculum(sorted_by_difficulty: difficulty.Config, config: Make) -> None:
    """Rows with written answers keep them, and carry their pass rate."""
    done = sorted_by_difficulty
    answered = done.model_copy(update={"rows": config().rows, "out": done.out.parent / "again"})
    run(answered, difficulty)
    lines = [line for name in difficulty.SPLITS for line in read_jsonl(answered.out / f"{name}.jsonl")]
    rows = write(answered.out / "all.jsonl", sorted(lines, key=lambda row: row["id"]))
    run(config(rows=rows, curriculum="pass_rate", steps=2, batch=1))
    rates = sorted((row["pass_rate"] for row in lines), reverse=True)
    note = f"stage 1 of 2: steps 1 to 1, 4 questions, pass rate {rates[0]:g} to {rates[3]:.4g}"
    assert note in read_json(config().out / "run.json")["notes"]
    with pytest.raises(UserError, match="no pass_rate"):
        run(config("plain", curriculum="pass_rate"))


def test_no_right_answer_is_kept_if_none_is_wanted(world: World, tmp_path: Path) -> None:
    made = difficulty.Config(
        rows=world.rows("rl"), model=world.model, out=tmp_path / "none", answers=2, max_tokens=2, keep_right=0,
        video=world.video(4),
    )  # fmt: skip
    assert "right" not in run(made, difficulty)
    assert not (made.out / "right.jsonl").exists()


@pytest.mark.parametrize("adapter", [FULL, LORA, LORA.model_copy(update={"quantize": "nf4"})], ids=str)
def test_films_pictures_text_and_turns_in_one_batch(
    world: World, tmp_path: Path, config: Make, adapter: Adapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All weights, LoRA and QLoRA learn from a batch of everything; receipts say what was a picture."""
    pixels = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cup.png")
    film = {"type": "video", "video": str(world.film(0))}
    talk = [("assistant", "left"), ("user", "who last gave the gem ?"), ("assistant", "nobody")]
    rows = []
    for number, part in enumerate([[film], [{"type": "image", "image": "cup.png"}], []]):
        first = {"role": "user", "content": [*part, {"type": "text", "text": "where is the ball ?"}]}
        rows.append({"id": f"q{number}", "messages": [first, *({"role": r, "content": c} for r, c in talk)]})
    seen = {}
    real = supervised.item

    def spied(session: Any, look: Any, example: Any) -> Any:
        made = real(session, look, example)
        seen[made.prompt.id] = made.prompt.receipt
        return made

    monkeypatch.setattr(supervised, "item", spied)
    words = tiny.tokenizer()
    Qwen3VL(tiny.network(words, 0, width=64, layers=1), words, tiny.PROCESSOR).save(tmp_path / "wide")  # nf4 needs it
    given = {
        "curriculum": "none", "steps": 12, "batch": 3, "adapter": adapter, "video": world.video(4),
        "model": str(tmp_path / "wide"), "optim": Optim(lr=0.03, warmup=0),
    }  # fmt: skip
    run(config(rows=write(tmp_path / "mixed.jsonl", rows), **given))
    losses = [row["loss"] for row in metrics(config().out)]
    assert losses[-1] < 0.8 * losses[0]
    assert (seen["q0"].image, seen["q1"].image, seen["q2"]) == (False, True, None)
    assert (seen["q0"].tokens, seen["q1"].tokens) == (2, 1)  # --video.max-pixels bounds pictures too
    assert json.loads((config().out / "run.json").read_text())["films"]["used"] == 2
