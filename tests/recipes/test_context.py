"""Scaled positions through the stages: trained, saved, gone on with, asked, merged; and films beyond the context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.killing import Death, killed
from tests.world import World, metrics, silent, summary, write

from longtake.cli import ask, merge
from longtake.config import Settings
from longtake.errors import UserError
from longtake.eval import command
from longtake.log import read_json, read_jsonl
from longtake.recipes import difficulty, dpo, grpo, judge, ppo, reward, sft
from longtake.rewards.model import RewardModel
from longtake.runtime.load import load_model
from longtake.train import judge_settings
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.settings import Optim

LORA = Adapter(kind="lora", rank=2, alpha=4.0)
LONGER = Context(rope="linear:2")
LIMIT = 4096  # positions of the world's network

pytestmark = pytest.mark.usefixtures("one_thread")


def taught(world: World, out: Path, **changed: Any) -> sft.Config:
    given = {
        "rows": world.rows("sft"), "model": world.model, "out": out, "steps": 2, "batch": 2, "video": world.video(),
        "optim": Optim(lr=0.003, warmup=0), "adapter": LORA, "checkpoint_every": 1,
    }  # fmt: skip
    return sft.Config(**given | changed)


def run(recipe: Any, config: Settings) -> dict[str, Any]:
    log = silent()
    done: dict[str, Any] = recipe.run(config, log)
    log.close()
    return done


@pytest.mark.parametrize("kind", ["lora", "alora", "full"])
def test_a_run_keeps_the_positions_it_was_trained_with(world: World, tmp_path: Path, kind: Any) -> None:
    adapter = Adapter(kind="full") if kind == "full" else LORA.model_copy(update={"kind": kind})
    plain = run(sft, taught(world, tmp_path / "plain", adapter=adapter))
    done = run(sft, taught(world, tmp_path / "longer", adapter=adapter, context=LONGER))
    before = load_model(world.model).text.rotary_emb.inv_freq
    torch.testing.assert_close(load_model(plain["model"]).text.rotary_emb.inv_freq, before)
    torch.testing.assert_close(2 * load_model(done["model"]).text.rotary_emb.inv_freq, before)
    first, other = (read_jsonl(tmp_path / name / "metrics.jsonl")[0]["loss"] for name in ("plain", "longer"))
    assert first != other, "the scale acts in training"
    with pytest.raises(UserError, match="scaled already"):
        load_model(done["model"], rope="yarn:2")


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_kill_changes_nothing(world: World, tmp_path: Path, kind: Any) -> None:
    adapter = Adapter(kind="full") if kind == "full" else LORA
    whole, cut = (taught(world, tmp_path / name, adapter=adapter, context=LONGER) for name in ("whole", "cut"))
    run(sft, whole)
    killed("longtake.recipes.sft", cut, Death("longtake.log.log:Log.step", 2))
    run(sft, cut)
    assert metrics(cut.out) == metrics(whole.out)
    assert summary(cut.out) == summary(whole.out)
    with pytest.raises(UserError, match="rope") as caught:
        run(sft, taught(world, cut.out, adapter=adapter))
    assert "--fresh" in caught.value.fix


def test_every_later_stage_reads_it(world: World, tmp_path: Path) -> None:
    model = run(sft, taught(world, tmp_path / "sft", context=LONGER))["model"]
    merged = tmp_path / "merged"
    run(merge, merge.Config(model=model, out=merged))
    assert load_model(merged).context.rope == "linear:2"
    asked = {"film": world.film(0), "question": "what?", "max_tokens": 2, "video": world.video(4)}
    asked["video"] = asked["video"].model_copy(update={"tier": tmp_path / "tier"})
    told = [
        run(ask, ask.Config(model=name, context=context, **asked))
        for name, context in ((model, Context()), (model, LONGER), (str(merged), LONGER))
    ]
    assert told[0] == told[1]
    common = {"rows": world.rows("rl"), "model": model, "video": world.video(4), "max_tokens": 3}
    done = run(command, command.Config(out=tmp_path / "eval", context=LONGER, **common))
    assert run(command, command.Config(out=tmp_path / "same", **common)) == done
    run(difficulty, difficulty.Config(out=tmp_path / "d", answers=2, context=LONGER, **common))
    short = judge_settings.Context(kind="none", rope="linear:2")
    run(judge, judge.Config(out=tmp_path / "judge", context=short, **common))
    wrong = Context(rope="linear:3")
    for recipe, kind in ((difficulty, difficulty.Config), (command, command.Config)):
        with pytest.raises(UserError, match="scaled already"):
            run(recipe, kind(out=tmp_path / "wrong", context=wrong, **common))


def pairs(world: World, path: Path) -> Path:
    rows = [
        {"id": row["id"], "prompt": row["messages"][:1], "chosen": "left", "rejected": "right right"}
        for row in read_jsonl(world.rows("rl"))
    ]
    for row in rows:
        part = row["prompt"][0]["content"][0]
        part["video"] = str((world.folder / "rows" / part["video"]).resolve())
    return write(path, rows)


def learned(world: World, out: Path, **changed: Any) -> dict[str, Any]:
    given = {"model": world.model, "out": out, "batch": 2, "video": world.video(4), "adapter": LORA, "held_out": 0.3}
    return given | {"rows": pairs(world, out.parent / "pairs.jsonl")} | changed


def test_policy_and_reward_model_on_one_base_share_its_positions(world: World, tmp_path: Path) -> None:
    plain = run(reward, reward.Config(**learned(world, tmp_path / "plain")))["model"]
    longer = run(reward, reward.Config(**learned(world, tmp_path / "longer", context=LONGER)))["model"]
    assert read_json(Path(longer) / "context.json")["rope"] == "linear:2"

    def policy(name: str, judge: str, **more: Any) -> ppo.Config:
        given = {"rows": world.rows("rl"), "model": world.model, "reward_model": judge, "out": tmp_path / name,
                 "steps": 2, "questions": 2, "group_size": 2, "max_tokens": 4, "video": world.video(4), "adapter": LORA,
                 "checkpoint_every": 1}  # fmt: skip
        return ppo.Config(**given | more)

    for judge_, context in ((plain, LONGER), (longer, Context())):
        with pytest.raises(UserError, match="another context") as caught:
            run(ppo, policy("wrong", judge_, context=context, fresh=True))
        assert "linear:2" in caught.value.why
    whole, cut = (policy(name, longer, context=LONGER) for name in ("whole", "cut"))
    run(ppo, whole)
    killed("longtake.recipes.ppo", cut, Death("longtake.log.log:Log.step", 2))
    run(ppo, cut)  # the value model's folder says its positions too
    assert metrics(cut.out) == metrics(whole.out)


def test_a_second_network_knows_as_many_positions_as_the_policy(world: World, tmp_path: Path) -> None:
    short, same = (
        run(reward, reward.Config(**learned(world, tmp_path / name, context=context)))["model"]
        for name, context in (("short", Context()), ("same", LONGER))
    )
    policy = load_model(world.model, rope="linear:2")
    with pytest.raises(UserError, match="does not fit the policy") as caught:
        RewardModel.open(policy, short, name="reward")
    assert caught.value.why == f"it knows {LIMIT} positions, the policy {2 * LIMIT}"
    assert RewardModel.open(policy, same, name="reward").model.context.rope == "linear:2"


def test_subtitles_are_read_or_not(world: World, tmp_path: Path) -> None:
    rows = read_jsonl(world.rows("rl"))
    for row in rows:
        part = row["messages"][0]["content"][0]
        part["video"] = str((world.folder / "rows" / part["video"]).resolve())
    common = {"model": world.model, "video": world.video(4), "max_tokens": 3}
    off = Context(subtitles="off")
    with pytest.raises(UserError, match="name no subtitles"):
        run(command, command.Config(rows=world.rows("rl"), out=tmp_path / "idle", context=off, **common))
    rows[0]["subtitles"] = [{"start": 0, "end": 1, "text": "left"}]
    rows[1]["subtitles"] = "none.srt"
    given = write(tmp_path / "rows.jsonl", rows)
    common["video"] = world.video(4, most_failed=0.2)
    counts = {}
    for name, context in (("on", Context()), ("off", off)):
        run(command, command.Config(rows=given, out=tmp_path / name, context=context, **common))
        asked = read_jsonl(tmp_path / name / "outcomes" / "4-greedy-none.jsonl")
        counts[name] = [row["receipt"]["subtitles"] for row in asked]
        (bad,) = read_jsonl(tmp_path / name / "bad_rows-rows.jsonl")
        assert "none.srt" in bad["reason"]
    assert counts == {"on": [1] + [0] * 6, "off": [0] * 7}
    rows[0]["subtitles"][0]["text"] = "left " * LIMIT
    long = write(tmp_path / "long.jsonl", rows)
    assert beyond(command, command.Config(rows=long, out=tmp_path / "long", **common)).where == "question q0"


def test_key_frames_and_a_budget_through_the_stages(world: World, tmp_path: Path) -> None:
    common = {"rows": world.rows("rl"), "model": world.model, "video": world.video(8), "max_tokens": 3}
    seen: dict[str, list[dict[str, Any]]] = {}
    for name, context in {
        "free": Context(), "few": Context(budget=2), "keys": Context(pick="keyframes"),
    }.items():  # fmt: skip
        run(command, command.Config(out=tmp_path / name, context=context, **common))
        rows = read_jsonl(tmp_path / name / "outcomes" / "8-greedy-none.jsonl")
        seen[name] = [row["receipt"] for row in rows]
    assert {row["cut"] for row in seen["free"]} == {""}
    assert {row["cut"] for row in seen["few"]} == {"capped at 4 of 8 frames asked for: at most 2 visual tokens"}
    assert {row["tokens"] for row in seen["few"]} == {2}
    assert all("key frame" in row["cut"] or row["indices"] != seen["free"][0]["indices"] for row in seen["keys"])
    full, short = (
        run(sft, taught(world, tmp_path / f"sft-{budget}", video=world.video(8), context=Context(budget=budget)))
        for budget in (4, 2)
    )
    first, other = (read_jsonl(Path(done["model"]).parent / "metrics.jsonl")[0]["loss"] for done in (full, short))
    assert first != other, "the budget acts in training"
    narrow = judge_settings.Context(kind="none", budget=2)
    run(judge, judge.Config(out=tmp_path / "judge", context=narrow, **common))
    judged = read_jsonl(tmp_path / "judge" / "judged.jsonl")
    assert {len(row["receipt"]["indices"]) for row in judged} == {4}


def beyond(recipe: Any, config: Settings) -> UserError:
    with pytest.raises(UserError, match="does not fit the model") as caught:
        run(recipe, config)
    return caught.value


def test_answers_beyond_the_context_are_refused_before_the_first_step(world: World, tmp_path: Path) -> None:
    common = {"rows": world.rows("rl"), "model": world.model, "video": world.video(4), "max_tokens": LIMIT}
    for number, (recipe, kind, more) in enumerate(
        (
            (grpo, grpo.Config, {"steps": 1, "questions": 2, "adapter": LORA}),
            (difficulty, difficulty.Config, {}),
            (command, command.Config, {}),
            (judge, judge.Config, {}),
        )
    ):
        said = beyond(recipe, kind(out=tmp_path / f"run{number}", **common, **more))
        assert "--context.rope linear:2" in said.fix
        assert f"the model knows {LIMIT}" in said.why
        assert not (tmp_path / f"run{number}" / "metrics.jsonl").exists()
    asked = ask.Config(film=world.film(0), question="what?", model=world.model, max_tokens=LIMIT)
    assert "linear:2" in beyond(ask, asked).fix


def test_written_answers_beyond_the_context_are_refused(world: World, tmp_path: Path) -> None:
    rows = read_jsonl(world.rows("sft"))
    for row in rows:
        part = row["messages"][0]["content"][0]
        part["video"] = str((world.folder / "rows" / part["video"]).resolve())
    rows[3]["messages"][-1] = {"role": "assistant", "content": "left " * LIMIT}
    file = write(tmp_path / "sft.jsonl", rows)
    said = beyond(sft, taught(world, tmp_path / "sft", rows=file))
    assert said.where == f"question {rows[3]['id']}"
    for recipe, kind in ((dpo, dpo.Config), (reward, reward.Config)):
        given = learned(world, tmp_path / kind.__module__.rpartition(".")[2])
        own = read_jsonl(given["rows"])
        own[2]["rejected"] = "left " * LIMIT
        write(given["rows"], own)
        assert beyond(recipe, kind(**given)).where == f"question {own[2]['id']}"
