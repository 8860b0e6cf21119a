"""SFT end to end on real films: it learns what has weight, and a kill at any moment changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary, weights, write

from longtake.errors import UserError
from longtake.log import read_json, read_jsonl
from longtake.recipes import sft
from longtake.train import supervised
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.settings import Optim

FAST = Optim(lr=0.01, warmup=0)
SINGLE = 1e-4  # weights of two runs in float32 whose sums were added in another order
MOVED = 1e-3  # how far learning moves some weight, at least
DEATHS = [
    Death("longtake.log.log:Log.step", 1),
    Death("longtake.log.log:Log.step", 6),
    Death("longtake.models.qwen3_vl:Qwen3VL.save", 2),
    Death("torch:save", 3),
    Death("shutil:rmtree", 4),
    Death("longtake.runtime.features:FeatureStore.put", 2),
    Death("longtake.train.session:Session.finish", 1),
    Death("longtake.recipes.sft:finish", 1),
]

Make = Callable[..., sft.Config]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def config(world: World, tmp_path: Path) -> Make:
    def make(name: str = "run", **changed: Any) -> sft.Config:
        given = {
            "rows": world.rows("sft"), "model": world.model, "out": tmp_path / name, "steps": 7, "batch": 3,
            "checkpoint_every": 2, "video": world.video(), "optim": FAST, "seed": 1,
            "adapter": Adapter(kind="full"),
        }  # fmt: skip
        return sft.Config(**given | changed)

    return make


@pytest.fixture
def curriculum(world: World, config: Make) -> Make:
    """Clips and stories by batch, with the tower trained: no feature is cached."""
    return lambda name="run", **changed: sft.Config(
        rows=world.rows("base"), model=world.model, out=config(name).out, batch_by="row", shuffle=False,
        train_vision=True, steps=7, checkpoint_every=2, video=world.video(), optim=FAST,
        adapter=Adapter(kind="full"), **changed,
    )  # fmt: skip


def run(config: sft.Config) -> dict[str, Any]:
    log = silent()
    done = sft.run(config, log)
    log.close()
    return done


def learned(config: sft.Config) -> dict[str, torch.Tensor]:
    return load_file(config.out / "model" / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in other)


def answers(*spans: Any) -> dict[str, Any]:
    """A row without a film; spans are texts or (text, weight)."""
    parts = [{"type": "text", "text": s} if isinstance(s, str) else {"text": s[0], "weight": s[1]} for s in spans]
    ask = {"role": "user", "content": "where is the ball at the end ? A left B middle"}
    return {"id": "q", "messages": [ask, {"role": "assistant", "content": [{"type": "text"} | p for p in parts]}]}


def test_it_learns(config: Make) -> None:
    done = run(config(steps=30, batch=4))
    loss = [row["loss"] for row in read_jsonl(config().out / "metrics.jsonl")]
    assert loss[-1] < loss[0] / 2
    assert (done["steps"], done["reason"]) == (30, "all steps made")
    (saved,) = map(read_json, config().out.glob("checkpoints/*/progress.json"))
    assert (saved["step"], saved["taken"]) == (30, 4 * 30)
    told = read_json(config().out / "run.json")
    assert (told["status"], told["films"]["used"]) == ("done", 8)
    assert {"load", "decode", "encode", "update"} <= told["seconds"].keys()


@pytest.mark.parametrize("death", DEATHS, ids=str)
def test_a_kill_changes_nothing(config: Make, death: Death) -> None:
    whole, cut = config("whole"), config("cut")
    want = run(whole)
    killed("longtake.recipes.sft", cut, death)
    assert read_json(cut.out / "run.json")["status"] == "running"
    assert run(cut) | {"model": want["model"]} == want
    assert weights(cut.out / "model") == weights(whole.out / "model")
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)


def test_a_kill_changes_nothing_where_the_tower_is_trained(curriculum: Make) -> None:
    whole, cut = curriculum("whole"), curriculum("cut")
    run(whole)
    killed("longtake.recipes.sft", cut, Death("longtake.log.log:Log.step", 6))
    assert read_json(cut.out / "run.json")["status"] == "running"
    run(cut)
    assert weights(cut.out / "model") == weights(whole.out / "model")
    assert metrics(cut.out) == metrics(whole.out)


def test_how_often_is_saved_may_change_between_sittings(config: Make) -> None:
    run(config("whole"))
    killed("longtake.recipes.sft", config("cut"), Death("longtake.log.log:Log.step", 5))
    run(config("cut", checkpoint_every=3))
    assert weights(config("cut").out / "model") == weights(config("whole").out / "model")


def test_a_curriculum_takes_the_rows_as_written(curriculum: Make, world: World) -> None:
    run(curriculum())
    rows = read_jsonl(curriculum().out / "metrics.jsonl")
    assert [row["tokens"] for row in rows[4:7]] == [row["tokens"] for row in rows[:3]]  # four batches, then again
    before, after = load_file(Path(world.model) / "model.safetensors"), learned(curriculum())
    tower = [name for name in before if "visual" in name]
    assert distance({n: after[n] for n in tower}, {n: before[n] for n in tower}) > MOVED


def test_a_frozen_tower_stays_as_it_was(config: Make, world: World) -> None:
    run(config(steps=2))
    before, after = load_file(Path(world.model) / "model.safetensors"), learned(config())
    assert distance(after, before) > MOVED
    assert all(torch.equal(after[name], before[name]) for name in before if "visual" in name)


def test_what_is_done_is_not_done_again(config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    want = run(config(steps=2))
    files = {file: file.stat().st_mtime_ns for file in config().out.rglob("*") if file.name != "run.json"}
    monkeypatch.setattr("longtake.train.session.load_model", lambda *_: pytest.fail("it loads the model"))
    assert run(config(steps=2)) == want
    assert {file: file.stat().st_mtime_ns for file in files} == files
    assert read_json(config().out / "run.json")["status"] == "done"


def test_a_folder_of_another_run_is_refused_and_can_be_moved_aside(config: Make) -> None:
    run(config(steps=2))
    with pytest.raises(UserError, match="other settings") as refused:
        run(config(steps=3))
    assert "steps was 2, now 3" in str(refused.value)
    assert run(config(steps=3, fresh=True))["steps"] == 3
    assert read_json(config("run.old-1").out / "summary.json")["steps"] == 2


def test_what_weighs_nothing_is_not_learned(config: Make, tmp_path: Path) -> None:
    """Changing it changes no weight of the network; giving it a weight does."""
    texts = {"left": 0.0, "middle": 0.0, "left again": 1.0, "middle again": 1.0}
    made = {}
    for name, weight in texts.items():
        row = answers("<think> so", (f"{name.split()[0]} </think>", weight))
        rows = write(tmp_path / f"{name}.jsonl", [row])
        run(config(name, rows=rows, steps=2, batch=1))
        made[name] = learned(config(name))
    assert distance(made["left"], made["middle"]) == 0.0
    assert distance(made["left"], made["left again"]) > MOVED
    assert distance(made["left again"], made["middle again"]) > MOVED


def test_a_row_of_weight_3_counts_as_three(config: Make, tmp_path: Path) -> None:
    left, middle = answers("so left"), answers("so middle")
    files = {"weight": [left, middle | {"weight": 3.0}], "thrice": [left, *[middle] * 3], "once": [left, middle]}
    made = {}
    for name, rows in files.items():
        run(config(name, rows=write(tmp_path / f"{name}.jsonl", rows), steps=2, batch=1))
        made[name] = learned(config(name))
    assert distance(made["weight"], made["thrice"]) < SINGLE
    assert distance(made["weight"], made["once"]) > MOVED


def test_rows_that_weigh_nothing_are_refused(config: Make, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [answers("so left") | {"weight": 0.0}])
    with pytest.raises(UserError, match="nothing to learn"):
        run(config(rows=rows, batch=1))


def test_packing_changes_nothing(config: Make) -> None:
    for name, tokens in (("one", 10**6), ("many", 1)):
        run(config(name, memory=Memory(row_tokens=tokens), steps=3))
    one, many = (learned(config(name)) for name in ("one", "many"))
    assert distance(one, many) < SINGLE


@pytest.mark.parametrize(("accuracy", "steps", "reason"), [(0.0, 2, "reached 0 at step 2"), (1.0, 5, "cap of 5 steps")])
def test_the_gate_ends_the_run(config: Make, world: World, accuracy: float, steps: int, reason: str) -> None:
    gate = sft.Gate(rows=world.rows("rl"), accuracy=accuracy, frames=4, every=2, max_tokens=4)
    done = run(config(steps=5, gate=gate))
    assert done["steps"] == steps
    assert reason in done["reason"]
    looked = {row["step"]: row.get("accuracy") for row in read_jsonl(config().out / "metrics.jsonl")}
    assert [step for step, found in looked.items() if found is not None] == [2, 4, 5][: 1 if steps == 2 else 3]
    assert done["reason"] in read_json(config().out / "run.json")["notes"]


def test_a_gate_looks_where_its_rows_say(
    config: Make, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row's own window goes before the run's; the gate's number of frames goes before the run's."""
    rows = read_jsonl(world.rows("rl"))[:3]
    for number, row in enumerate(rows):
        row["messages"][0]["content"][0]["video"] = str(world.film(number))
    rows[1]["messages"][0]["content"][0] |= {"video_start": 5.0, "video_end": 7.0}
    gate = sft.Gate(rows=write(tmp_path / "gate.jsonl", rows), accuracy=1.0, frames=2, every=1, max_tokens=2)
    looked: list[tuple[float, ...]] = []
    real = supervised.greedy_accuracy

    def spied(session: Any, looks: Any, *rest: Any) -> float:
        looked.extend(session.films.prompt(look).receipt.seconds for look in looks)
        return real(session, looks, *rest)

    monkeypatch.setattr(supervised, "greedy_accuracy", spied)
    run(config(steps=1, gate=gate, video=world.video(4, start=1.0, end=3.0)))
    assert looked == [(1.5, 2.5), (5.5, 6.5), (1.5, 2.5)]


def test_a_killed_run_with_a_gate_ends_at_the_same_step(config: Make, world: World) -> None:
    gate = sft.Gate(rows=world.rows("rl"), accuracy=0.0, frames=4, every=4, max_tokens=4)
    run(config("whole", gate=gate))
    killed("longtake.recipes.sft", config("cut", gate=gate), Death("longtake.log.log:Log.step", 4))
    run(config("cut", gate=gate))
    assert metrics(config("cut").out) == metrics(config("whole").out)
    assert summary(config("cut").out) == summary(config("whole").out)


def test_settings_that_contradict_each_other(config: Make) -> None:
    for wrong in ({"batch_by": "row"}, {"batch_by": "row", "shuffle": False, "batch": 3}):
        with pytest.raises(ValidationError, match="takes the rows as written"):
            config(**wrong)
    with pytest.raises(ValidationError, match="a gate needs rows"):
        sft.Gate(accuracy=0.5)


def test_a_curriculum_needs_its_key(world: World, config: Make, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [answers("so left")])
    wrong = sft.Config(rows=rows, model=world.model, out=config().out, batch_by="row", shuffle=False)
    with pytest.raises(UserError, match="no key `batch`"):
        run(wrong)
