"""Reward models: scores of answers on shared prompts against transformers' own network; who fits beside whom."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny
from tests.plain import pixels as plain
from transformers import Qwen3VLForConditionalGeneration

from longtake.errors import UserError
from longtake.models.adapters import NAME, add_adapter
from longtake.models.heads import FILE as HEAD
from longtake.models.heads import add_head
from longtake.parallel.ranks import ONE
from longtake.records import Answer, Group
from longtake.rewards import model as rewards
from longtake.rewards.model import FILE, RewardModel, find, scorers
from longtake.runtime.prefixcache import PrefixCache

EXACT = 1e-10  # float64 throughout
ROUNDED = 1e-5  # float64, but pixels and the rotation of the vision tower are float32
MOST_LINES = 6
SUFFIX = (44, 45)
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "Which gem?"), (None, "2 + 2?"), ("b", "When?"))
SAID = (((50, 51, 52), (60,), (61, 62)), ((70, 71), (72, 73, 74, 75)), ((80,),), ((90, 91), (92,), (90, 91)))
RANK, ALPHA = 3, 6.0


def learned(model: Any, kind: str, seed: int) -> Any:
    """An adapter that acts."""
    add_adapter(model, kind, RANK, ALPHA)
    with torch.no_grad():
        for part in model.adapter.weights().values():
            part.normal_(0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("base"))


def saved(model: Any, folder: Path, suffix: tuple[int, ...] = SUFFIX) -> Path:
    add_head(model, seed=5)
    folder.mkdir()
    model.save(folder)
    rewards.write(folder, ["x"] if suffix else [], suffix)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reward models on the base: as LoRA, as aLoRA, and with all its weights trained."""
    root = tmp_path_factory.mktemp("trained")
    made = {kind: saved(learned(tiny.load_model(base), kind, 1), root / kind) for kind in ("lora", "alora")}
    whole = tiny.load_model(base)
    with torch.no_grad():
        whole.layers[0].mlp.up_proj.weight.add_(0.1)
    return made | {"full": saved(whole, root / "full")}


def policy(base: Path, kind: str) -> Any:
    model = tiny.exact(base)
    return model if kind == "full" else learned(model, kind, 2)


def groups(model: Any) -> list[Group]:
    """Some answers ended, some were cut."""
    found = []
    for number, ((film, text), said) in enumerate(zip(ASKED, SAID, strict=True)):
        prompt = model.prompt(tiny.ask(text, str(number)), film and tiny.receipt(FILMS[film]), film)
        answers = tuple(
            Answer((*ids, model.end_ids[0]), (0.0,) * (len(ids) + 1), "", "stop", 0, "")
            if place % 2 == 0
            else Answer(ids, (0.0,) * len(ids), "", "length", 0, "")
            for place, ids in enumerate(said)
        )
        found.append(Group(prompt, answers))
    return found


def features(model: Any) -> Any:
    with torch.no_grad():
        made = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    return lambda names: [made[name] for name in names]


@pytest.fixture(autouse=True)
def exact_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also second networks have norms of full width."""
    real = rewards.load_model

    def load(*given: Any) -> Any:
        model = real(*given)
        tiny.exact_norms(model.net)
        return model

    monkeypatch.setattr(rewards, "load_model", load)


def flat(scores: list[list[float]]) -> torch.Tensor:
    return torch.tensor([score for own in scores for score in own], dtype=torch.float64)


@torch.no_grad()
def reference(base: Path, folder: Path, model: Any) -> torch.Tensor:
    """Every answer alone, by transformers' network with the LoRA added to its weights."""
    net = Qwen3VLForConditionalGeneration.from_pretrained(base, dtype=torch.float64, attn_implementation="sdpa")
    tiny.exact_norms(net)
    state = load_file(folder / "adapter_model.safetensors")
    for name, a_rI in state.items():
        if "lora_A" in name:
            weight = net.get_parameter(name.removeprefix("base_model.model.").replace("lora_A.", ""))
            weight += state[name.replace("lora_A", "lora_B")].double() @ a_rI.double() * (ALPHA / RANK)
    head = load_file(folder / HEAD)
    found = []
    for (film, _), said, group in zip(ASKED, SAID, groups(model), strict=True):
        for ids in said:
            all_ids = torch.tensor([[*group.prompt.ids, *ids, model.end_ids[0], *SUFFIX]])
            given: dict[str, Any] = {"input_ids": all_ids}
            if film:
                patches = torch.from_numpy(plain.patchify(FILMS[film], tiny.PIXELS))
                shape = FILMS[film].shape
                given |= {
                    "pixel_values_videos": patches,
                    "video_grid_thw": torch.tensor([[shape[0] // 2, shape[1] // 4, shape[2] // 4]]),
                    "mm_token_type_ids": 2 * (all_ids == net.config.video_token_id).int(),
                }
            state_E = net.eval().model(**given, use_cache=False).last_hidden_state[0, -1]
            found.append(head["weight"].double() @ state_E + head["bias"].double())
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_scores_equal_transformers_on_every_answer_alone(base: Path, trained: dict[str, Path], kind: str) -> None:
    """Beside the policy's LoRA, or as a second network where the policy carries none."""
    model = policy(base, kind)
    one = RewardModel.open(model, trained["lora"], name="reward")
    got, want = flat(one.scores(groups(model), features(model))), reference(base, trained["lora"], model)
    assert (one.model is model) == (kind == "lora")
    assert (got - want).abs().max() < ROUNDED * want.abs().max()
    text = slice(5, 6)  # no pixels
    assert (got - want)[text].abs().max() < EXACT * want.abs().max()
    assert want.std() > 0.1


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_budgets_change_nothing(base: Path, trained: dict[str, Path], kind: str) -> None:
    model = policy(base, kind)
    want = None
    for number, (row_tokens, answer_tokens) in enumerate(((10**6, 10**6), (1, 10**6), (10**6, 1), (60, 5))):
        one = RewardModel.beside(model, trained[kind], row_tokens, answer_tokens, name=f"reward{number}")
        got = flat(one.scores(groups(model), features(model)))
        want = got if want is None else want
        assert (got - want).abs().max() < EXACT


def test_prompts_kept_for_a_run_are_not_computed_again(base: Path, trained: dict[str, Path]) -> None:
    model, kept = policy(base, "alora"), PrefixCache(1.0)
    want = RewardModel.beside(model, trained["alora"]).scores(groups(model), features(model))
    one = RewardModel.beside(model, trained["alora"], name="again", prefixes=kept)
    for _ in range(2):
        assert (flat(one.scores(groups(model), features(model))) - flat(want)).abs().max() < EXACT
    assert (kept.counts.made, kept.counts.ram) == (3, 3)  # two questions share a film


def test_the_policy_is_left_as_it_was(base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    model = policy(base, "lora")
    before = {name for name, p in model.net.named_parameters() if p.requires_grad}
    one = RewardModel.beside(model, trained["lora"])
    one.scores(groups(model), features(model))
    assert model.adapter.delta.acting == NAME
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} == before
    assert not any(p.requires_grad for p in model.heads["reward"].parameters())
    (tmp_path / "policy").mkdir()
    model.save(tmp_path / "policy")
    assert not (tmp_path / "policy" / "reward").exists()
    assert not (tmp_path / "policy" / HEAD).exists()


def test_a_second_network_gives_the_same_scores(base: Path, trained: dict[str, Path]) -> None:
    beside, alone = policy(base, "lora"), policy(base, "full")
    want = RewardModel.beside(beside, trained["lora"]).scores(groups(beside), features(beside))
    second = RewardModel.open(alone, trained["lora"], name="reward")
    assert (flat(second.scores(groups(alone), features(alone))) - flat(want)).abs().max() < EXACT
    whole = RewardModel.open(beside, trained["full"], name="reward2")
    assert whole.model is not beside
    assert not any(p.requires_grad for p in whole.model.net.parameters())
    assert (flat(whole.scores(groups(beside), features(beside))) - flat(want)).abs().max() > 0.01


def test_how_an_answer_ended_does_not_matter(base: Path, trained: dict[str, Path]) -> None:
    model = policy(base, "lora")
    model.end_ids = (model.end_ids[0], 46)
    prompt = groups(model)[2].prompt
    ends = [((80, model.end_ids[0]), "stop"), ((80,), "length"), ((80, 46), "stop")]
    answers = tuple(Answer(ids, (0.0,) * len(ids), "", finish, 0, "") for ids, finish in ends)
    (own,) = RewardModel.beside(model, trained["lora"]).scores([Group(prompt, answers)], features(model))
    assert own[0] == pytest.approx(own[1], abs=EXACT) == pytest.approx(own[2], abs=EXACT)


def test_by_their_names(base: Path, trained: dict[str, Path]) -> None:
    model = policy(base, "lora")
    named = {"model:a": str(trained["lora"]), "model:b": str(trained["full"])}
    found = scorers(named, model, features(model), 16384, 2048)
    own, other = (found[name](groups(model), ONE) for name in named)
    assert [len(scores) for scores in own] == [3, 2, 1, 3]
    assert own != other


def said(caught: pytest.ExceptionInfo[UserError]) -> str:
    assert len(str(caught.value).splitlines()) <= MOST_LINES
    return str(caught.value)


def test_another_tower_or_tokenizer_is_refused(base: Path, tmp_path: Path) -> None:
    other = tiny.load_model(base)
    with torch.no_grad():
        next(other.tower.parameters()).add_(0.1)
    blind = saved(other, tmp_path / "tower")
    other = tiny.load_model(base)
    other.tokenizer.chat_template = tiny.TEMPLATE.replace("assistant", "user")
    foreign = saved(other, tmp_path / "template")
    for folder, why in ((blind, "vision tower"), (foreign, "chat template")):
        with pytest.raises(UserError, match="does not fit the policy") as caught:
            RewardModel.open(tiny.load_model(base), folder, name="reward")
        assert why in said(caught)


def test_beside_means_on_the_same_base(base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no adapter"):
        RewardModel.beside(policy(base, "lora"), trained["full"])
    copy = shutil.copytree(base, tmp_path / "copy")
    with pytest.raises(UserError, match="has another base"):
        RewardModel.beside(policy(copy, "lora"), trained["lora"])
    with pytest.raises(UserError, match="two kinds"):
        RewardModel.beside(policy(base, "alora"), trained["lora"])


def test_what_is_no_reward_model(base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no reward model") as caught:
        find(base)
    assert FILE in said(caught)
    (tmp_path / "run").mkdir()
    shutil.copytree(trained["lora"], tmp_path / "run" / "model")
    with pytest.raises(UserError, match="a run's folder") as caught:
        find(tmp_path / "run")
    assert f"name {tmp_path}/run/model" in said(caught)
    headless = shutil.copytree(trained["lora"], tmp_path / "headless")
    (headless / HEAD).unlink()
    with pytest.raises(UserError, match="no reward model") as caught:
        find(headless)
    assert HEAD in said(caught)
    for wrong in (None, [1, "2"], [True], [-1]):
        (tmp_path / "run" / "model" / FILE).write_text(json.dumps({"suffix_ids": wrong}))
        with pytest.raises(UserError, match="damaged"):
            RewardModel.beside(policy(base, "lora"), tmp_path / "run" / "model")
    with pytest.raises(UserError, match="no such model"):
        find(tmp_path / "nowhere")


def test_a_score_that_is_no_number_ends_the_run(base: Path, trained: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(trained["lora"], tmp_path / "broken")
    head = load_file(broken / HEAD)
    save_file({name: x * torch.nan for name, x in head.items()}, broken / HEAD)
    model = policy(base, "lora")
    with pytest.raises(UserError, match="gave no score") as caught:
        RewardModel.beside(model, broken).scores(groups(model), features(model))
    assert "row 0" in said(caught)


def test_a_prompt_without_answers_has_no_scores(base: Path, trained: dict[str, Path]) -> None:
    model = policy(base, "lora")
    asked = [replace(group, answers=()) for group in groups(model)]
    assert RewardModel.beside(model, trained["lora"]).scores(asked[:2], features(model)) == [[], []]
