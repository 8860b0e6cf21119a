"""PPO as the recipe runs it against loops over single answers and tokens: experience, passes, weights."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.models import tiny
from tests.plain import ppo_step as plain
from tests.plain.adapters import owned
from tests.plain.training import PlainAdamW
from tests.recipes.small import BETAS, DECAY, FLOOR, LR, NORM, OPTIM, Stage, rows, same, stage

from longtake.log import read_jsonl
from longtake.maths.ppo import AdaptiveKL
from longtake.models.adapters import add_adapter
from longtake.models.heads import add_head
from longtake.models.qwen3_vl import Qwen3VL
from longtake.recipes import ppo
from longtake.rewards import model as rewards
from longtake.runtime.load import load_model
from longtake.runtime.rows import lead
from longtake.train import ppo as pieces
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.rows import Item, read_items

EXACT = 1e-10
TOLD = 1e-6  # what metrics.jsonl keeps of a number
POLICY, REWARD = (4, 8.0), (3, 9.0)  # rank and alpha
SUFFIX = (44, 45)
STEPS, GROUP, TOKENS, HEAT = 2, 2, 6, 0.7


@pytest.fixture(autouse=True)
def exact():
    """As in test_twin."""
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its numbers are no other test's."""
    words, folder = tiny.tokenizer(), tmp_path_factory.mktemp("base")
    Qwen3VL(tiny.network(words, seed=11), words, tiny.PIXELS).save(folder)
    return folder


def saved(base: Path, folder: Path, kind: Any, shape: tuple[int, float], seed: int, *, scores: bool = False) -> Path:
    """An adapter that has learned something, as float32; with `scores` a reward model."""
    model = load_model(base, "float32", "cpu")
    add_adapter(model, kind, *shape)
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in model.adapter.weights().values():
            x.copy_(torch.randn(x.shape, generator=random) * 0.3)
    if scores:
        add_head(model, seed=seed)
    folder.mkdir()
    model.save(folder)
    if scores:
        rewards.write(folder, ["x"], SUFFIX)
    return folder


def played(base: Path, tmp_path: Path, monkeypatch: Any, kind: str, *, started: bool, **changed: Any) -> Any:
    """(the stage, the config) before the run: the policy is new on the base, or goes on from an adapter."""
    reward = saved(base, tmp_path / "reward", kind, REWARD, 1, scores=True)
    start = saved(base, tmp_path / "start", kind, POLICY, 2) if started else base
    made = stage(monkeypatch, load_model(start, "float64", "cpu"))
    given = {
        "rows": rows(tmp_path), "model": str(start), "reward_model": str(reward), "out": tmp_path / "run",
        "steps": STEPS, "questions": 4, "group_size": GROUP, "epochs": 2, "minibatches": 2, "clip": (0.1, 0.15),
        "temperature": HEAT, "max_tokens": TOKENS, "kl": ppo.KL(beta=0.3, target=0.1, horizon=20.0),
        "reward": ppo.Reward(unfinished=0.5, length=0.4, scale=2.0, whiten=True),
        "value": ppo.Value(discount=0.9, lam=0.8, clip=0.05, weight=0.3), "dtype": "float64", "seed": 5,
        "optim": OPTIM, "adapter": Adapter(kind=kind, rank=POLICY[0], alpha=POLICY[1]),
        "memory": Memory(row_tokens=120, answer_tokens=9),
    }  # fmt: skip
    return made, ppo.Config(**given | changed)


def read(folder: Path, shape: tuple[int, float]) -> plain.Role:
    """An adapter's files, in float64."""
    layers: dict[str, list[Any]] = {}
    for name, x in sorted(load_file(folder / "adapter_model.safetensors").items()):  # A before B
        layer = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        layers.setdefault(layer, []).append(x.double().requires_grad_())
    head = []
    if (folder / "scalar_head.safetensors").is_file():
        found = load_file(folder / "scalar_head.safetensors")
        head = [found[name].double().requires_grad_() for name in ("weight", "bias")]
    return plain.Role(layers, shape[1] / shape[0], head)


def players(made: Stage, config: ppo.Config, started: bool) -> plain.Players:
    """Who plays at the run's start."""
    reward, start = Path(config.reward_model), Path(config.model)
    if started:
        policy, reference = read(start, POLICY), read(start, POLICY)
    else:
        policy, reference = plain.Role(owned(made.model), POLICY[1] / POLICY[0]), plain.Role(None, 0.0)
    value, scores = read(reward, REWARD), read(reward, REWARD)
    return plain.Players(made.model, made.level, lead(made.model), policy, reference, value, scores)


def rate(step: int) -> float:
    return LR * min(1, (step + 1) / 3) * (1 - (1 - FLOOR) * step / STEPS)


def leaves(made: Stage, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as in the plain step."""
    roles, found = {"default": "policy", "value": "value"}, {}
    for name, x in weights.items():
        if name.startswith("value."):
            found[name] = x
        else:
            layer, _, rest = name.partition(".lora_")
            part, own, _ = rest.split(".")
            found[f"{roles[own]}.{layer}.{part}"] = x
    return found


def check_numbers(row: dict[str, Any], groups: list[list[plain.Seen]], beta: float) -> None:
    flat = [one for group in groups for one in group]
    tokens = sum(len(one.ids) for one in flat)
    want = {
        "score": sum(one.score for one in flat) / len(flat), "kl_ref": sum(one.kl for one in flat) / len(flat),
        "value": sum(x for one in flat for x in one.values) / tokens,
        "return": sum(x for one in flat for x in one.returns) / tokens, "beta": beta,
        "length": tokens / len(flat), "reward": sum(one.score for one in flat) / len(flat),
    }  # fmt: skip
    assert {name: row[name] for name in want} == pytest.approx(want, rel=TOLD)
    left = [r - v for one in flat for r, v in zip(one.returns, one.values, strict=True)]
    returns = [r for one in flat for r in one.returns]
    unexplained = (plain.spread(left, 0)[1] / plain.spread(returns, 0)[1]) ** 2
    assert row["explained_variance"] == pytest.approx(1 - unexplained, rel=TOLD, abs=TOLD)


CASES = {
    "lora": ("lora", False, {}),
    "from an adapter": ("lora", True, {"memory": Memory(row_tokens=1, answer_tokens=1, keep="layers")}),
    "alora": ("alora", False, {}),
    "alora from an adapter": ("alora", True, {}),
    "nothing whitened": (
        "lora", False,
        {"value": ppo.Value(whiten=False, lam=1.0), "reward": ppo.Reward(), "kl": ppo.KL(kind="k3"), "minibatches": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", list(CASES))
def test_a_step_is_what_plain_loops_make_of_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    """Two steps of two passes; the loops go on with their own weights, draws and all."""
    kind, started, changed = CASES[case]
    made, config = played(base, tmp_path, monkeypatch, kind, started=started, **changed)
    made.run(ppo, config)
    told, each = read_jsonl(config.out / "metrics.jsonl"), 2 * config.minibatches
    assert len(made.made) == STEPS * each
    before, after = leaves(made, made.made[0].before), leaves(made, made.made[-1].after)
    own = players(made, config, started)
    if not started:
        own.policy.put("policy", {name: x for name, x in before.items() if name.startswith("policy.")})
    same(before, {k: x.detach() for k, x in (own.policy.leaves("policy") | own.value.leaves("value")).items()}, 0.0)
    optimizer, weight = PlainAdamW(BETAS, DECAY), AdaptiveKL(config.kl.beta, config.kl.target or 1.0, 20.0)
    for step, answered in enumerate(made.answered):
        draws = [(group.prompt, [(answer.seed, answer.ids) for answer in group.answers]) for group in answered.groups]
        groups = plain.look_at(own, draws, config, weight.beta, SUFFIX)
        assert [[one.ids for one in own] for own in groups] == [[a.ids for a in g.answers] for g in answered.groups]
        check_numbers(told[step], groups, weight.beta)
        clipped, error, norm = plain.learn(own, groups, config, optimizer, rate(step))
        assert told[step]["clipped"] == pytest.approx(clipped, rel=TOLD)
        assert told[step]["value_loss"] == pytest.approx(error, rel=TOLD)
        assert told[step]["grad_norm"] == pytest.approx(norm, rel=TOLD)
        wanted = {k: x.detach() for k, x in (own.policy.leaves("policy") | own.value.leaves("value")).items()}
        same(leaves(made, made.made[(step + 1) * each - 1].after), wanted, EXACT)
        if config.kl.target is not None:
            weight = weight.after(sum(one.kl for own in groups for one in own) / (4 * GROUP), 4 * GROUP)
    assert clipped > 0
    assert norm > 2 * NORM  # the clip matters
    assert max((after[name] - before[name]).abs().max() for name in after) > LR / 2


def storages(model: Any) -> dict[int, int]:
    """Bytes of everything that the model and its heads hold, by where they lie."""
    owned = [*model.net.parameters(), *model.net.buffers(), *(p for h in model.heads.values() for p in h.parameters())]
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in owned}


def copies(weights: list[torch.Tensor]) -> int:
    """Places in memory where live tensors have the numbers of one of these, in whatever precision; at most."""
    shapes = {x.shape for x in weights}
    live = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor) and x.shape in shapes]
    found = 0
    for weight in weights:
        alike = [x for x in live if x.shape == weight.shape and torch.allclose(x.double(), weight.double(), atol=1e-2)]
        found = max(found, len({x.untyped_storage().data_ptr() for x in alike}))
    return found


@pytest.mark.parametrize("started", [False, True])
def test_the_base_is_in_memory_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: bool) -> None:
    """While a step learns: policy, reference, value and reward model cost their adapters and heads."""
    made, config = played(base, tmp_path, monkeypatch, "lora", started=started)
    wide = [p for name, p in made.model.net.named_parameters() if p.dim() == 2 and "lora" not in name]
    alone, parts = storages(made.model), sum(x.numel() for x in made.model.net.parameters())
    real, found = pieces.experience, []

    def measured(session: Any, *more: Any) -> Any:
        model = session.model
        numbers = sum(p.numel() for module in (model.net, *model.heads.values()) for p in module.parameters())
        found.append((storages(model), numbers, copies(wide)))
        return real(session, *more)

    monkeypatch.setattr(pieces, "experience", measured)
    made.run(ppo, config)
    adapter = made.model.adapter
    new = [x for name in adapter.others for x in adapter.weights(name).values()]
    new += [x for head in made.model.heads.values() for x in head.parameters()]
    assert set(adapter.others) == {"value", "reward"} | ({"reference"} if started else set())
    if not started:
        new += adapter.weights().values()
    assert len(found) == STEPS
    for there, numbers, most in found:
        assert alone.items() <= there.items()
        assert sum(there.values()) - sum(alone.values()) == sum(x.nbytes for x in new)
        assert numbers - parts == sum(x.numel() for x in new)
        assert most == 1


@pytest.mark.parametrize("kind", ["lora", "alora"])
def test_the_value_models_first_outputs_are_the_reward_models(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Where the reward model looks, the value is the score; once it has learned it is another."""
    made, config = played(base, tmp_path, monkeypatch, kind, started=False)
    real, apart = pieces.experience, []

    def compared(session: Any, answered: Any, *more: Any) -> Any:
        model, items = session.model, []
        for group in answered.groups:
            said = [a.ids[:-1] if a.finish == "stop" else a.ids for a in group.answers]
            ids = tuple((*own, model.end_ids[0], *SUFFIX, rewards.PAST) for own in said)
            items.append(Item(group.prompt, ids, tuple((1.0,) * len(own) for own in ids)))
        with model.adapter.using("value"):
            values = read_items(session, items, lambda hidden, row: model.heads["value"](hidden), 120)
        last = torch.stack([torch.stack([one[-1] for one in own]) for own in values])
        apart.append(float((last - answered.reward_NG).abs().max()))
        return real(session, answered, *more)

    monkeypatch.setattr(pieces, "experience", compared)
    made.run(ppo, config)
    assert apart[0] <= EXACT
    assert apart[1] > 1e-3


def test_a_checkpoint_brings_its_own_value_model(base: Path, tmp_path: Path) -> None:
    """The reference is the start again, and not what the policy has become."""
    start, later = (
        saved(base, tmp_path / name, "lora", POLICY, seed) for seed, name in enumerate(("start", "later"), 2)
    )
    reward = saved(base, tmp_path / "reward", "lora", REWARD, 1, scores=True)
    value = saved(base, later / "value", "lora", REWARD, 4, scores=True)
    for checkpoint, want in ((None, reward), (later, value)):
        model = load_model(checkpoint or start, "float64", "cpu")
        pieces.dress(model, checkpoint, str(start), reward)
        for name, folder in (("value", want), ("reference", start)):
            state = load_file(folder / "adapter_model.safetensors")
            own = model.adapter.weights(name)
            assert own.keys() == state.keys()
            assert all(own[key].equal(state[key].double()) for key in state)
            assert {x.requires_grad for x in own.values()} == {name == "value"}
        assert model.heads["value"].weight.equal(load_file(want / "scalar_head.safetensors")["weight"].double())
    bare = load_model(base, "float64", "cpu")
    add_adapter(bare, "lora", *POLICY)
    pieces.dress(bare, None, str(base), reward)
    assert set(bare.adapter.others) == {"value"}  # the base itself is the reference
