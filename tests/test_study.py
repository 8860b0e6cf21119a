"""`make study`: its arms are the demo's own, its costs are counted, it goes on where it was, each seed for itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench import study, study_arms, study_cost, study_measure, study_rows, study_seeds, study_sets
from bench.study import Study, one_seed
from bench.study_cost import Tokens
from tests import study_world
from tests.study_world import ANSWER, HELD, PROMPT, SEED, Pretended

from longtake.cli import demo_feedback, demo_stages
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl
from longtake.recipes import difficulty, dpo, grpo, judge, ppo, reward, sft
from longtake.sim import rows as sim

RECIPES = {"sft": sft, "grpo": grpo, "dpo": dpo, "ppo": ppo, "reward": reward}
SORTING = {"difficulty": difficulty, "judge": judge}
OWN = {"rows", "out", "steps", "epochs", "video", "held_out", "gate"}  # what an arm may have of its own
OWN |= {"batch", "questions"}  # of few rows there are fewer
NEAR = 0.04  # relative: half a step of the arm whose steps are dearest


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Pretended:
    world = Pretended()
    for name, recipe in (RECIPES | SORTING).items():
        monkeypatch.setattr(recipe, "run", lambda config, log, stage=name: world.train(stage, config))
    monkeypatch.setattr(evaluation, "run", lambda config, log: world.evaluate(config))
    monkeypatch.setattr(study, "whole", lambda plan: True)
    return world


def ran(out: Path, *letters: str, say: Callable[[str], None] = lambda text: None) -> list[str]:
    return one_seed(Study(out, letters or tuple(study_rows.ROWS), 0.01), SEED, Log(), say)


def result(out: Path, letter: str) -> dict[str, Any]:
    return read_json(out / str(SEED) / letter / "result.json")


def test_every_row_of_the_study_runs_and_says_what_it_came_to(tmp_path: Path, pretended: Pretended) -> None:
    plan = study_world.demo(tmp_path)
    pretended.right["ppo"] = 6
    told: list[str] = []
    assert ran(tmp_path, say=told.append) == []
    found = {letter: result(tmp_path, letter) for letter in study_rows.ROWS}
    assert {letter: list(one["arms"]) for letter, one in found.items()} == {
        "a": ["annotated", "full", "rejection", "grpo", "dpo", "ppo"],
        "b": ["with", "without"],
        "c": ["narrative", "plain"],
        "d": ["start", "all"],
        "e": ["plain", "curriculum", "objects"],
        "f": ["start", "base", "all", "hard", "medium", "easy", "no_sft"],
    }
    assert "(a) grpo: 62.5% sampled, 75.0% greedy, 3 s" in told
    trained = [folder.relative_to(plan.out).as_posix() for folder in pretended.made]
    arms = [f"a/{name}/learn" for name in ("full", "rejection", "grpo", "dpo", "ppo")]
    assert trained[:9] == ["a/annotated/learn", "a/difficulty", "a/reward", *arms, "b/without/learn"]
    apart = {(d["arm"], d["against"], d["measure"]): d["value"] for d in found["a"]["differences"]}
    assert (apart["ppo", "full", "greedy"], apart["ppo", "annotated", "sampled"]) == (0.125, 0.125)
    assert found["a"]["arms"]["dpo"]["beside_read"] == 1000 + 8 * PROMPT
    assert found["a"]["arms"]["rejection"]["beside_generated"] == 8 * 10 * ANSWER
    assert "beside_cost" not in found["a"]["arms"]["grpo"]
    assert found["d"]["arms"]["all"]["pairs"] == 8 - HELD
    assert found["c"]["facts"] == {"events_right": 1.0, "films_right": 1.0}
    assert found["f"]["facts"]["hard"] == {"questions": 2, "from": 0.0, "to": 0.0}


def test_arms_start_where_they_should(tmp_path: Path, pretended: Pretended) -> None:
    plan = study_world.demo(tmp_path)
    ran(tmp_path)
    trained = {
        folder.relative_to(plan.out).as_posix(): c
        for folder, c in pretended.asked.items()
        if "eval" not in folder.parts
    }
    start = {name: Path(config.model).relative_to(plan.out).parts[0] for name, config in trained.items()}
    assert {name for name, stage in start.items() if stage == "base"} == {
        "a/annotated/learn", "b/without/learn", "e/plain/learn", "e/curriculum/learn", "e/objects/learn",
        "f/no_sft/learn",
    }  # fmt: skip
    assert set(start.values()) == {"base", "sft", "a"}
    first = str(plan.out / "a" / "annotated" / "learn" / "model")
    assert {config.model for name, config in trained.items() if name.startswith("a/")} == {
        first,
        str(study_arms.base(plan)),
    }
    assert trained["a/ppo/learn"].reward_model == str(plan.out / "a" / "reward" / "model")
    assert trained["b/without/learn"].steps == 7  # as many as the demo's SFT made
    assert trained["e/curriculum/learn"].curriculum == "length"
    assert trained["e/plain/learn"].model_dump(exclude={"out", "curriculum"}) == trained[
        "e/curriculum/learn"
    ].model_dump(exclude={"out", "curriculum"})
    assert pretended.asked[plan.out / "b" / "without" / "eval"].video.frames == (8, 16, 32, 64)
    for name in trained.keys() - {"a/difficulty", "a/judge"}:
        trained[name].memory.check(trained[name].adapter.kind, "exact")


def test_a_kill_loses_no_arm_and_changes_nothing(tmp_path: Path, pretended: Pretended) -> None:
    study_world.demo(tmp_path)
    pretended.killed_at = "dpo"
    with pytest.raises(KeyboardInterrupt):
        ran(tmp_path, "a")
    done = [folder.parent.name for folder in pretended.made if folder.name == "learn"]
    assert done == ["annotated", "full", "rejection", "grpo"]
    pretended.killed_at = ""
    ran(tmp_path, "a")
    assert [one.parent.name for one in pretended.made if one.name == "learn"] == [*done, "dpo", "ppo"]
    before = (tmp_path / str(SEED) / "a" / "result.json").stat()
    ran(tmp_path, "a")
    after = (tmp_path / str(SEED) / "a" / "result.json").stat()
    assert (before.st_mtime_ns, before.st_ino) == (after.st_mtime_ns, after.st_ino), "the same numbers keep their date"
    assert len(pretended.made) == 8


def test_a_row_that_fails_does_not_stop_the_others(tmp_path: Path, pretended: Pretended) -> None:
    plan = study_world.demo(tmp_path)
    (plan.out / "difficulty" / "hard.jsonl").unlink()
    failed = ran(tmp_path, "f", "c")
    assert len(failed) == 1
    assert failed[0].startswith(f"seed {SEED}, row f: ")
    assert not (plan.out / "f" / "result.json").exists()
    assert (plan.out / "c" / "result.json").exists()


def test_the_demo_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = study_world.demo(tmp_path)
    asked: list[Any] = []
    monkeypatch.setattr(study.demo, "run", lambda config, log: asked.append(config))
    ran(tmp_path, "c")
    assert [(one.seed, one.full, one.scale, one.out) for one in asked] == [(SEED, True, 0.01, plan.out)]
    run = {"status": "done", "config": {"seed": SEED, "scale": 0.01}}
    for name in ("dpo", "ppo"):
        study_world.dumped(plan.out / "eval" / name / "eval.json", {})
    study_world.dumped(plan.out / "summary.json", {"ppo": {}})
    study_world.dumped(plan.out / "run.json", run)
    ran(tmp_path, "c")
    assert len(asked) == 1
    study_world.dumped(plan.out / "run.json", run | {"status": "running"})
    ran(tmp_path, "c")
    assert len(asked) == 2


def test_arms_have_the_demos_settings(tmp_path: Path, pretended: Pretended) -> None:
    plan = study_world.demo(tmp_path)
    for stage in (
        demo_stages.tune,
        demo_stages.reinforce,
        demo_feedback.score,
        demo_feedback.prefer,
        demo_feedback.reinforce,
    ):
        stage(plan, Log())
    known = {name: pretended.asked[plan.out / name].model_dump() for name in RECIPES}
    asked, start, out = plan.rows("rl"), study_arms.tuned(plan), tmp_path / "out"
    pairs, batch, held_out = demo_feedback.pairs(plan, plan.out / "judge", Log())
    ours = {
        "sft": study_arms.from_base(plan, plan.rows("sft"), out, 7),
        "grpo": study_arms.reinforced(plan, asked, start, out, 7),
        "dpo": study_arms.preferring(plan, pairs, start, out, 7),
        "ppo": study_arms.rewarded(plan, plan.out / "reward" / "model", start, out, 7),
        "reward": study_arms.scoring(plan, pairs, start, out, epochs=3.0, batch=batch, held_out=held_out),
    }
    for name, config in ours.items():
        differ = {
            key: (value, known[name][key])
            for key, value in config.model_dump().items()
            if key not in OWN and value != known[name][key]
        }
        if name == "grpo":  # whose rate falls here
            ours_falls, constant = differ.pop("optim")
            assert ours_falls == constant | {"schedule": "linear", "hold": 0.25}
        assert not differ, name
    assert (ours["sft"].video.frames, known["sft"]["video"]["frames"]) == ((8, 16, 32, 32, 64, 64),) * 2
    assert study_cost.BATCH == demo_feedback.BATCH
    demo_feedback.reinforce(replace(plan, scale=1.0), Log())
    whole = pretended.asked[plan.out / "ppo"]
    sizes = study_cost.PPO_QUESTIONS, study_cost.PPO_GROUP, study_cost.PPO_EPOCHS
    assert (whole.questions, whole.group_size, whole.epochs) == sizes


def test_steps_cost_what_those_of_grpo_cost() -> None:
    assert study_cost.equal_steps() == study_cost.STEPS
    assert study_cost.STEPS["grpo"] == study_cost.GRPO_STEPS
    whole = {name: (once + step * study_cost.STEPS[name]).cost for name, (once, step) in study_cost.nominal().items()}
    assert whole == {name: pytest.approx(whole["grpo"], rel=NEAR) for name in whole}


def test_a_step_is_counted_as_it_is_computed() -> None:
    kept = study_cost.grpo_step(100, 20, 0.5, questions=4, group=8)
    assert kept == Tokens(learned=2 * (100 + 160), generated=4 * 160, read=2 * 100)
    assert kept.cost == 3 * 520 + 640 + 200
    row = 4 * (100 + 160)
    own = study_cost.ppo_step(100, 20, questions=4, group=8)
    epochs, readers = study_cost.PPO_EPOCHS, 3
    assert own == Tokens(learned=2 * epochs * row, generated=640, read=400 + readers * row)


@pytest.mark.parametrize(
    ("stage", "config", "wanted"),
    [
        ("sft", {}, Tokens(180.0)),
        ("grpo", {"questions": 4, "group_size": 8}, Tokens(3 * 520.0, 3 * 640.0, 3 * 200.0)),
        ("ppo", {"questions": 4, "group_size": 8}, Tokens(3 * 4160.0, 3 * 640.0, 3 * (400 + 3120.0))),
        ("dpo", {"batch": 2}, Tokens(3 * (200 + 60.0), 0.0, 2 * (100 + 30.0))),
        ("reward", {"batch": 2}, Tokens(3 * (200 + 60.0))),
    ],
)
def test_runs_are_counted_from_their_folders(
    tmp_path: Path, stage: str, config: dict[str, Any], wanted: Tokens
) -> None:
    Pretended().leave(tmp_path, stage, config, 3)
    assert study_cost.counted(tmp_path, PROMPT) == wanted
    assert study_cost.seconds(tmp_path) == 3.0


def test_judges_are_compared_on_pairs_that_both_judged(tmp_path: Path) -> None:
    plan = study_world.demo(tmp_path)
    folders = {"narrative": plan.out / "judge", "plain": plan.out / "judge_plain"}
    plain = study_measure.judged(folders["plain"])
    assert [one["all"] for one in plain.values()] == [1.0, 0.0, 0.5, 1.0]
    assert [one["verdicts"] for one in plain.values()] == [1.0, 0.0, 0.5, 1.0]
    first, second = study_measure.judges("narrative", "plain", folders)
    assert (first.measure, first.estimate.value, first.estimate.n) == ("accuracy_all", 0.375, 4)
    assert second.estimate.value == 0.375
    rows = read_jsonl(folders["plain"] / "judged.jsonl")
    rows[1]["answers"][0]["text"] = "another answer"
    study_world.write(folders["plain"] / "judged.jsonl", rows)
    first, _ = study_measure.judges("narrative", "plain", folders)
    assert (first.estimate.value, first.estimate.n) == (0.5 / 3, 3)


def test_smaller_sets_of_pairs_are_parts_of_larger_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_sets, "SIZES", (2, 4, 90))

    def pair(name: str, number: int) -> dict[str, str]:
        return {"id": name, "prompt": f"{number} ?", "chosen": "yes", "rejected": "no", "data_type": "text"}

    told = [pair(f"rl-{n}", n) for n in range(9)]
    study_world.write(tmp_path / "pairs.jsonl", [*told, pair("rl-9", 8)])  # the last says what another has said
    study_world.write(tmp_path / "scores.jsonl", told[:3])
    found = study_sets.fewer_pairs(tmp_path / "pairs.jsonl", tmp_path / "scores.jsonl", tmp_path / "d", 0)
    assert [(name, count) for name, (_, _, count) in found.items()] == [("2", 2), ("4", 4), ("all", 6)]
    learned = [{row["id"] for row in read_jsonl(to_prefer)} for _, to_prefer, _ in found.values()]
    assert learned[0] < learned[1] < learned[2] == {f"rl-{n}" for n in range(3, 9)}
    scored = [{row["id"] for row in read_jsonl(to_score)} for to_score, _, _ in found.values()]
    assert [one - own for one, own in zip(scored, learned, strict=True)] == [{"rl-0", "rl-1", "rl-2"}] * 3
    with pytest.raises(UserError, match="too few pairs"):
        study_sets.fewer_pairs(tmp_path / "scores.jsonl", tmp_path / "scores.jsonl", tmp_path / "d", 0)


def test_rows_are_written_from_the_films(tmp_path: Path) -> None:
    plan = study_world.demo(tmp_path)
    folder = plan.out / "x"
    asked = {row["id"]: row["answer"] for row in read_jsonl(plan.rows("rl"))}
    noted = read_jsonl(study_sets.annotated(plan, "rl"))
    assert {row["id"]: row["answer"] for row in noted}.items() < asked.items(), "what ends wrong is left out"
    assert all(row["messages"][1]["content"].split()[1] == "s0" for row in noted)
    alone = read_jsonl(study_sets.answers_alone(plan, folder))
    assert all(row["messages"][1]["content"].startswith("<think> so ") for row in alone)
    mixed = read_jsonl(study_sets.chains_and_objects(plan, folder))
    chains = [row for row in mixed if row["kind"] != "object"]
    assert chains == read_jsonl(study_sets.chains(plan, folder))
    assert len(chains) == 2 * (len(mixed) - len(chains)) - 4  # 20 films: the last four begin another round
    assert {len(row["messages"][1]["content"].split()) for row in chains} > {30}
    assert set(sim.STYLES) == {"guess", "skim", "full"}


def test_a_seed_ends_with_whoever_started_it() -> None:
    code = "import time; from bench.study_seeds import tie; tie(); print('up', flush=True); time.sleep(60)"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=study.RESULTS.parents[1]
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"up\n"
        child.stdin.close()
        assert child.wait(120) == 1


def test_every_seed_gets_a_process_and_a_failed_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    started = subprocess.Popen

    def instead(command: list[str], **rest: Any) -> Any:
        seed = command[command.index("seed") + 1]
        return started([sys.executable, "-c", f"raise SystemExit({seed} == 4)"], **rest)

    monkeypatch.setattr(study_seeds.subprocess, "Popen", instead)
    assert study_seeds.every_seed((3, 4, 5), ["--rows", "a"], 2) == [4]
