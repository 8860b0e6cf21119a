"""Answers over ranks are one rank's, each is decoded once, and nobody waits for another while decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.models import tiny
from tests.ranks import run

from longtake.engines import local
from longtake.engines.local import LocalEngine
from longtake.engines.loop import Loop
from longtake.models.adapters import add_adapter
from longtake.parallel.ranks import ONE, Ranks, mesh
from longtake.records import Draw, Group
from longtake.runtime.prefixcache import PrefixCache

EXACT = 1e-12
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "When was it?"), (None, "2 + 2?"), ("b", "Who?"), ("b", "Where then?"))
DRAWS = [[Draw(heat, 10 * n + g) for g, heat in enumerate((1.0, 0.0, 1.5))] for n in range(len(ASKED))]
TOKENS = 9
SPOKEN = (
    "all_gather_object",
    "all_gather_single",
    "reduce_scatter_single",
    "all_to_all_single",
    "all_reduce",
    "barrier",
)
Made = tuple[Any, list[Any], Callable[..., Any]]


@pytest.fixture(scope="module", params=["full", "alora"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """(model, prompts, features); every seventh token ends an answer, so that lengths differ."""
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))
    if request.param != "full":
        add_adapter(model, request.param, 4, 8.0)
        generator = torch.Generator().manual_seed(1)
        for name, p in model.net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=0.3, generator=generator)
        model.net.double()
    model.end_ids = tuple(range(40, len(model.tokenizer), 7))
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    prompts = [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]
    return model, prompts, lambda handles: [films[handle] for handle in handles]


def engine(made: Made, ranks: Ranks, **limits: Any) -> LocalEngine:
    kept = PrefixCache(1.0) if made[0].adapter else None
    return LocalEngine(made[0], made[2], "v", prefixes=kept, ranks=ranks, **limits)


def meshes(world: Any) -> Iterator[Ranks]:
    for degree in (one for one in range(1, world.size + 1) if world.size % one == 0):
        parts = mesh(world, degree)
        yield from (replace(parts, how=how) for how in ("gather", "ulysses")[: 1 + (degree > 1)])


def same(got: list[Group], want: list[Group]) -> None:
    assert [group.prompt.id for group in got] == [group.prompt.id for group in want]
    for group, other in zip(got, want, strict=True):
        for answer, own in zip(group.answers, other.answers, strict=True):
            assert (answer.ids, answer.text, answer.seed) == (own.ids, own.text, own.seed)
            assert answer.logprob == pytest.approx(own.logprob, abs=EXACT)


class Counted(Loop):
    """Notes whose answers it decodes, and what ranks say to one another meanwhile."""

    seeds: list[int] = []  # noqa: RUF012
    said: list[str] = []  # noqa: RUF012

    def __init__(self, step: Any, ends: Any, draws: Any, max_tokens: int) -> None:
        super().__init__(step, ends, draws, max_tokens)
        self.draws = draws

    def run(self, logits_AV: Any, mine: Any = None) -> Any:
        before = len(self.said)
        found = super().run(logits_AV, mine)
        assert len(self.said) == before
        own = range(len(self.draws)) if mine is None else mine.tolist()
        self.seeds.extend(self.draws[n].seed for n in own)
        return found


@contextmanager
def watched() -> Iterator[type[Counted]]:
    """In a fork: loops are counted, calls noted."""
    Counted.seeds, Counted.said, local.Loop = [], [], Counted  # type: ignore[misc]
    real = {name: getattr(dist, name) for name in SPOKEN}
    for name, call in real.items():
        setattr(dist, name, lambda *a, call=call, name=name, **k: Counted.said.append(name) or call(*a, **k))
    yield Counted
    for name, call in real.items():
        setattr(dist, name, call)


def generated(world: Any, made: Made, count: int, answers: int, want: list[Group]) -> None:
    prompts, draws = made[1][:count], [own[:answers] for own in DRAWS[:count]]
    for ranks in meshes(world):
        for row_tokens in (10**6, 60):
            with watched() as seen:
                one = engine(made, ranks, row_tokens=row_tokens)
                same(one.generate(prompts, draws, TOKENS), want)
                every = sorted(seed for own in world.gather(seen.seeds) for seed in own)
                assert every == sorted(draw.seed for own in draws for draw in own)
                same(one.generate(prompts, draws, TOKENS), want)  # of prefixes that are kept


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize(("count", "answers"), [(5, 3), (2, 1), (1, 1)])
def test_answers_are_those_of_one_rank(made: Made, size: int, count: int, answers: int) -> None:
    """Also for more ranks than questions, and than answers."""
    want = engine(made, ONE).generate(made[1][:count], [own[:answers] for own in DRAWS[:count]], TOKENS)
    assert count == 1 or len({len(answer.ids) for group in want for answer in group.answers}) > 1
    run(size, generated, made, count, answers, want)


def rolled(world: Any, made: Made, want: list[Group], row_tokens: int) -> list[tuple[tuple[int, int], list[bool]]]:
    """By mesh: this rank's place, and of which questions it has the prefill."""
    found, keep = [], "nothing" if made[0].adapter else "layers"
    for ranks in meshes(world):
        with watched() as seen:
            one = engine(made, ranks, row_tokens=row_tokens)
            batches = list(one.rollout(made[1], DRAWS, TOKENS, lambda _: keep))  # type: ignore[arg-type,return-value]
            seeds = world.gather(seen.seeds)
        same([group for batch in batches for kept in batch for group in kept.groups], want)
        assert sorted(seed for own in seeds for seed in own) == sorted(draw.seed for own in DRAWS for draw in own)
        has = [kept.made is not None for batch in batches for kept in batch for _ in kept.groups]
        found.append(((ranks.data.index, ranks.data.size), has))
    return found


@pytest.mark.parametrize(("size", "row_tokens"), [(2, 10**6), (3, 10**6), (2, 60), (4, 60)])
def test_prefills_are_kept_where_they_were_made(made: Made, size: int, row_tokens: int) -> None:
    """A film's on one sequence of ranks, and on all of this."""
    want = engine(made, ONE).generate(made[1], DRAWS, TOKENS)
    ranks = run(size, rolled, made, want, row_tokens)
    for places in zip(*ranks, strict=True):
        (data,) = {data for (_, data), _ in places}
        by_place = {place: [owned for (own, _), owned in places if own == place] for place in range(data)}
        for alike in by_place.values():
            assert all(one == alike[0] for one in alike)
            assert len(alike) == size // data
        holders = [sum(map(int, each)) for each in zip(*(own[0] for own in by_place.values()), strict=True)]
        assert holders == [1] * len(ASKED)
        if row_tokens > 60:
            assert all(own[0] == own[1] and own[3] == own[4] for alike in by_place.values() for own in alike)
        busy = sum(any(own[0]) for own in by_place.values())
        assert busy >= min(data, 2)  # two films of two questions are not parted


def spoken(world: Any, made: Made) -> list[list[int]]:
    """By mesh: how often ranks spoke for answers of few tokens and of many."""
    found = []
    for ranks in meshes(world):
        counts = []
        for tokens in (1, 2, TOKENS, 40):
            with watched() as seen:
                engine(made, ranks).generate(made[1], DRAWS, tokens)
                counts.append(len(seen.said))
        found.append(counts)
    return found


@pytest.mark.parametrize("size", [2, 4])
def test_decoding_speaks_to_nobody(made: Made, size: int) -> None:
    for counts in (counts for own in run(size, spoken, made) for counts in own):
        assert counts[0] > 0
        assert counts == counts[:1] * 4
