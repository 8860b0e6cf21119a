"""What ranks learn together is what one learns alone: float64, every way through a network, every mesh of 1 to 4."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.models import tiny
from tests.ranks import run
from tests.train.paired import ASKED, Look, items, network, session
from torch.distributed.tensor import DTensor

from longtake.engines.local import LocalEngine
from longtake.maths import loss as losses
from longtake.maths.advantage import Weights
from longtake.maths.reward import bradley_terry_of_tokens
from longtake.models.adapters import NAME
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.parallel.fsdp import kinds, shard
from longtake.parallel.ranks import Ranks, mesh
from longtake.records import Draw, Question
from longtake.runtime.prefixcache import PrefixCache
from longtake.train.policy import backward_kept
from longtake.train.rollout import Rollout, Scored
from longtake.train.rows import backward_items
from longtake.train.settings import Optim
from longtake.train.step import Goal, Objective, Passes, ScalarObjective, Sums, add_gradients

EXACT = 1e-12  # of the largest number compared
MANY = 10**6
Q3, Q25 = "qwen3_vl", "qwen2_5_vl"
KINDS = ("full", "lora", "alora")
HALF = Passes("layers", 7, prefix_gradient=0.5, seed=7)
DRAWS = [[Draw(1.0, 10 * n + g) for g in range(3)] for n in range(len(ASKED))]
XENT = Objective(losses.cross_entropy, on_policy=True)
CLIPPED = Objective(partial(losses.clipped_surrogate, clip_low=0.2, clip_high=0.28), on_policy=False, temperature=0.7)
DPO = Objective(partial(losses.dpo, beta=0.4), on_policy=False, together=2)
SCORES = ScalarObjective(NAME, partial(bradley_terry_of_tokens, centring=0.3), together=2)


@dataclass(frozen=True)
class Case:
    """Some of the items, learned from. Example: Case("lora", XENT, Passes("layers", 4))."""

    kind: str
    goal: Goal
    passes: Passes
    row_tokens: int = MANY
    start: int = 0
    stop: int = len(ASKED)


CASES = {
    "cross entropy": Case("full", XENT, Passes("graph", MANY)),
    "tiles": Case("full", CLIPPED, Passes("layers", 4, tile=5), 120),
    "pairs": Case("full", DPO, Passes("attention", 9, tile=8), 60),
    "scalars": Case("full", SCORES, Passes("host", 7), 90),
    "some prefixes": Case("full", XENT, HALF, 1),
    "drawn by film": Case("full", XENT, HALF),
    "one row": Case("full", DPO, Passes("attention", 1), stop=1),
    "answers of one token": Case("full", XENT, Passes("graph", 1), start=4, stop=5),
    "no layer": Case("full", XENT, Passes("graph", 1, prefix_gradient=0.0), start=4, stop=5),
    "lora": Case("lora", CLIPPED, Passes("layers", 4), 120),
    "lora's scalars": Case("lora", SCORES, Passes("graph", MANY)),
    "alora": Case("alora", XENT, Passes("graph", 5)),
    "alora's pairs": Case("alora", DPO, Passes("layers", 1), 120),
}
SHARED = {  # with weights in shares: the ways, a rank without a row, a prefix without a backward
    **{name: CASES[name] for name in ("cross entropy", "tiles", "scalars", "some prefixes", "one row")},
    "one token in shares": CASES["answers of one token"],
    "no layer in shares": CASES["no layer"],
}


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Sessions by family and kind of adapter."""
    words, folder = tiny.tokenizer(), tmp_path_factory.mktemp("tiny")
    Qwen25VL(tiny.network_2_5(words), words, tiny.PIXELS).save(folder / Q25)
    tiny.checkpoint(folder / Q3, layers=3)
    return {family: Runs(folder / family) for family in (Q3, Q25)}


class Runs(dict[str, Any]):
    """A session of each kind that is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> Any:
        self[kind] = session(network(self.folder, kind), Passes())
        return self[kind]


@pytest.fixture
def runs(every: dict[str, Any], family: str) -> Any:
    return every[family]


def meshes(world: Any) -> Iterator[tuple[str, Ranks]]:
    """Every way in which the ranks of a world are a data x sequence mesh."""
    for degree in (one for one in range(1, world.size + 1) if world.size % one == 0):
        made = mesh(world, degree)
        for how in ("gather", "ulysses")[: 1 + (degree > 1)]:
            yield f"{world.size // degree} x {degree} {how}", replace(made, how=how)  # type: ignore[arg-type]


def named(one: Any) -> dict[str, Any]:
    """What learns of a session's model."""
    own = [*one.model.net.named_parameters(), *((f"head.{n}", p) for n, p in one.model.heads[NAME].named_parameters())]
    return {name: p for name, p in own if p.requires_grad}


def full(x: Any) -> Any:
    return x.full_tensor() if isinstance(x, DTensor) else x


def gradients(one: Any) -> dict[str, Any]:
    """Summed over the ranks and then forgotten."""
    params = named(one)
    add_gradients(list(params.values()), one.ranks.world)
    found = {name: full(p.grad) for name, p in params.items()}
    for p in params.values():
        p.grad = None
    return found


Learned = tuple[Sums, dict[str, Any]]


def same(name: str, got: Learned, want: Learned) -> None:
    most = max(float(g.abs().max()) for g in want[1].values() if g is not None)
    assert most > 0.01, name
    assert {n for n, g in got[1].items() if g is None} == {n for n, g in want[1].items() if g is None}, name
    for part, g in want[1].items():
        if g is not None:
            assert float((got[1][part] - g).abs().max()) <= EXACT * most, (name, part)
    assert got[0].tokens == want[0].tokens, name
    assert got[0].watched.keys() == want[0].watched.keys(), name
    for a, b in [(got[0].means() | got[0].watched_means(), want[0].means() | want[0].watched_means())]:
        assert a == pytest.approx(b, rel=EXACT, abs=EXACT, nan_ok=True), name
    assert got[0].loss == pytest.approx(want[0].loss, rel=EXACT), name


def learned(runs: dict[str, Any], case: Case, ranks: Ranks) -> Learned:
    """The summed loss and its gradient."""
    one = runs[case.kind]
    one.passes, one.films.ranks = case.passes, ranks
    one.prefixes = PrefixCache(1.0) if case.kind == "alora" else None
    own = items(one, scored=case.goal is SCORES)[case.start : case.stop]
    sums = backward_items(one, own, case.goal, case.row_tokens)
    return sums, gradients(one)


def every_mesh(world: Any, runs: dict[str, Any], want: dict[str, Learned], cases: dict[str, Case]) -> int:
    count = 0
    for place, ranks in meshes(world):
        for name, case in cases.items():
            same(f"{name} on {place}", learned(runs, case, ranks), want[name])
            count += 1
    return count


@pytest.mark.parametrize(
    ("family", "size"),
    [(Q3, 3), (Q25, 2), *(pytest.param(Q3, size, marks=pytest.mark.slow) for size in (2, 4))],
)
def test_ranks_learn_what_one_learns(runs: dict[str, Any], size: int) -> None:
    want = {name: learned(runs, case, Ranks()) for name, case in CASES.items()}
    ways = {2: 3, 3: 3, 4: 5}[size]
    assert run(size, every_mesh, runs, want, CASES) == [ways * len(CASES)] * size


def test_some_prefixes_have_a_backward() -> None:
    """Or the cases above would try nothing; the draw is of a film, or of a question without one."""
    assert {HALF.scale(0, film or str(n)) for n, (film, *_) in enumerate(ASKED)} == {0.0, 2.0}


def in_shares(world: Any, runs: dict[str, Any], want: dict[str, Learned], cases: dict[str, Case]) -> int:
    one = runs["full"]
    shard([one.model.net], one.model.layers, world)
    assert any(isinstance(p, DTensor) for p in named(one).values())
    return every_mesh(world, runs, want, cases)


@pytest.mark.parametrize(
    ("family", "size"),
    [(Q3, 2), *(pytest.param(*more, marks=pytest.mark.slow) for more in ((Q25, 2), (Q25, 3), (Q3, 3), (Q3, 4)))],
)
def test_weights_in_shares_learn_what_one_rank_learns(runs: dict[str, Any], size: int) -> None:
    want = {name: learned(runs, case, Ranks()) for name, case in SHARED.items()}
    run(size, in_shares, runs, want, SHARED)


def stepped(world: Any, runs: dict[str, Any], want: Any, shares: bool) -> Any:
    one, case = runs["full"], CASES["pairs"]
    if shares:
        shard([one.model.net], one.model.layers, world)
    start = {name: p.detach().clone() for name, p in named(one).items()}
    for place, ranks in [("one", Ranks())] if want is None else list(meshes(world)):
        one.params, one.passes, one.films.ranks = list(named(one).values()), case.passes, ranks
        one.optimizer = torch.optim.SGD([{"params": own} for own in kinds(one.params)])
        sums = backward_items(one, items(one, scored=False), case.goal, case.row_tokens)
        norm = one.step(sums.tokens, Optim(lr=0.1, warmup=0, schedule="constant", max_grad_norm=0.05), 9)
        moved = {name: full(p).detach().clone() for name, p in named(one).items()}
        with torch.no_grad():
            for name, p in named(one).items():
                p.copy_(start[name])
        if want is None:
            return norm, moved
        assert norm == pytest.approx(want[0], rel=EXACT), place
        for name, weight in want[1].items():
            assert float((moved[name] - weight).abs().max()) <= EXACT * float(weight.abs().max()), (name, place)


@pytest.mark.parametrize(("family", "size", "shares"), [(Q25, 2, False), (Q3, 2, True)])
def test_a_step_is_one_ranks_step(runs: dict[str, Any], size: int, shares: bool) -> None:
    """The same norm is clipped, the same count divides."""
    want = stepped(None, runs, None, shares=False)
    run(size, stepped, runs, want, shares)


def asked(one: Any) -> list[Any]:
    return [one.films.prompt(Look(Question(str(n), film, text))) for n, (film, text, *_) in enumerate(ASKED)]


def rollout(one: Any, row_tokens: int) -> list[Any]:
    """Every film's answers and prefill."""
    engine = LocalEngine(one.model, one.films.features, "v", row_tokens, prefixes=one.prefixes, ranks=one.ranks)
    keep = "nothing" if one.prefixes else one.passes.keep
    return [kept for batch in engine.rollout(asked(one), DRAWS, 5, lambda _: keep) for kept in batch]


def kept(one: Any, ranks: Ranks, passes: Passes, learns: list[int], row_tokens: int) -> tuple[Learned, Any]:
    """What is learned on a rollout's own prefills from some questions, and the answers to all."""
    one.passes, one.films.ranks = passes, ranks
    made = rollout(one, row_tokens)
    groups = [group for each in made for group in each.groups]
    picked = [groups[n] for n in learns]
    none = tuple(tuple(Scored(0.0, {}, None, formed=True) for _ in group.answers) for group in picked)
    part = Rollout(tuple(Look(Question(str(n), None, "")) for n in learns), tuple(picked), none)  # type: ignore[arg-type]
    weights = Weights(torch.linspace(-1, 1, 3 * len(learns)).view(-1, 3), 1.0)
    sums = backward_kept(one, made, part, weights, XENT)
    return (sums, gradients(one)), [[answer.ids for answer in group.answers] for group in groups]


KEPT = {  # (kind, ways, questions that are learned from, tokens of a row): of the last case other ranks alone learn
    "all": ("full", Passes("graph", 4), [0, 1, 2, 3, 4, 5], MANY),
    "a few": ("lora", Passes("layers", 4, tile=6), [0, 4], 60),
    "adapter aside": ("alora", Passes("graph", 4), [1, 2, 5], 60),
    "of one film": ("full", Passes("attention", MANY), [5], MANY),
}


def on_prefills(world: Any, runs: dict[str, Any], want: dict[str, tuple[Learned, Any]], shares: bool) -> None:
    if shares:
        shard([runs["full"].model.net], runs["full"].model.layers, world)
    for place, ranks in meshes(world):
        for name, (kind, *case) in KEPT.items():
            if kind == "full" or not shares:
                got, answers = kept(aside(runs[kind]), ranks, *case)
                assert answers == want[name][1]
                same(f"{name} on {place}", got, want[name][0])


def aside(one: Any) -> Any:
    one.prefixes = PrefixCache(1.0) if one.model.adapter and one.model.adapter.kind == "alora" else None
    return one


@pytest.mark.parametrize(
    ("family", "size", "shares"), [(Q25, 2, False), (Q25, 2, True), pytest.param(Q3, 4, False, marks=pytest.mark.slow)]
)
def test_kept_prefills_learn_whatever_groups_are_dropped(runs: dict[str, Any], size: int, shares: bool) -> None:
    want = {name: kept(aside(runs[kind]), Ranks(), *case) for name, (kind, *case) in KEPT.items()}
    run(size, on_prefills, runs, want, shares)
