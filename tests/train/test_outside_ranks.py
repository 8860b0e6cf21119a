"""One engine in another process for several ranks: the first asks it, and all settle what one rank would."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import pytest
import torch
from tests.models import tiny
from tests.ranks import run
from tests.train.test_outside import ASKED, DRAWS, FILMS, Elsewhere

from longtake.engines.for_all import OneForAll
from longtake.engines.local import LocalEngine
from longtake.engines.vllm_weights import merged
from longtake.errors import UserError
from longtake.models.adapters import add_adapter
from longtake.parallel.fsdp import shard
from longtake.parallel.ranks import ONE, mesh
from longtake.train.outside import Outside
from longtake.train.step import Passes

EXACT = 1e-10  # both are sums in float64


@pytest.fixture(scope="module", params=["full", "lora"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))
    if request.param == "lora":
        add_adapter(model, "lora", 4, 8.0)
        model.net.double()
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    prompts = [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]
    local = LocalEngine(model, lambda handles: [films[one] for one in handles], "elsewhere")
    return model, prompts, films, Elsewhere(local, 0.05).generate(prompts, DRAWS, 7)


class Reader:
    """Gives the answers that it has, asks for the features of every prompt as one in another process does, and fails
    where it is told to.
    """

    def __init__(self, answers: Any, features: Any, trouble: str = "") -> None:
        self.answers, self.features, self.trouble = answers, features, trouble
        self.closed, self.weights = False, dict[str, Any]()

    def load(self, model: Any, version: str) -> None:
        if self.trouble == "load":
            raise UserError("it does not take them")
        self.weights = {name: x.clone() for name, x in merged(model).items()}

    def generate(self, prompts: Any, draws: Any, max_tokens: int) -> Any:
        for prompt in prompts:
            if prompt.features is not None:
                assert len(self.features([prompt.features])) == 1
        if self.trouble == "generate":
            raise UserError("it is gone")
        return self.answers


def asked(made: Any, ranks: Any, *, shares: bool = False) -> Any:
    """Every answer, where prefills lie, what was counted, and which features all ranks were asked for."""
    model, prompts, films, answers = made
    heard: list[str] = []
    want = {name: x.clone() for name, x in merged(model).items()}
    if shares:
        shard([model.net], model.layers, ranks.world)

    def features(handles: Any) -> Any:
        heard.extend(handles)
        assert ranks.world.gather(list(handles)) == [list(handles)] * ranks.world.size
        return [films[one] for one in handles]

    @contextmanager
    def begin(own: Any) -> Any:
        assert ranks.world.leads
        yield Reader(answers, own)

    local = LocalEngine(model, lambda handles: [films[one] for one in handles], "step-3", row_tokens=150, ranks=ranks)
    with OneForAll.open(ranks.world, model, features, begin) as engine:
        outside = Outside(engine, Passes(answer_tokens=16), 1.1, gate=9.0)
        kept = [one for batch in outside.rollout(local, prompts, DRAWS, 7, lambda _: "graph") for one in batch]
        got = engine._engine.weights if ranks.world.leads else want
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    told = [[(a.ids, a.logprob, a.correction) for group in one.groups for a in group.answers] for one in kept]
    return told, [one.made is not None for one in kept], outside.numbers(), heard


def over(world: Any, made: Any, degree: int, shares: bool) -> Any:
    return asked(made, mesh(world, degree), shares=shares)


@pytest.mark.parametrize(
    ("made", "size", "degree", "shares"),
    [(kind, *parts, False) for kind in ("full", "lora") for parts in ((2, 1), (2, 2), (3, 1), (3, 3), (4, 2))]
    + [("full", 2, 1, True), ("full", 2, 2, True)],
    indirect=["made"],
)
def test_all_ranks_have_what_one_has(made: Any, size: int, degree: int, shares: bool) -> None:
    want, here, numbers, heard = asked(made, ONE)
    assert all(here)
    assert heard == ["a", "a", "b"]
    found = run(size, over, made, degree, shares)
    assert [any(places) for places in zip(*(one[1] for one in found), strict=True)] == [True] * len(want)
    for told, _, counted, asked_for in found:
        assert asked_for == heard
        assert counted == pytest.approx(numbers, rel=1e-6, abs=EXACT)
        for own, other in zip(told, want, strict=True):
            for (ids, logprob, weight), (ids_, logprob_, weight_) in zip(own, other, strict=True):
                assert ids == ids_
                assert logprob == pytest.approx(logprob_, abs=EXACT)
                assert weight == pytest.approx(weight_, rel=1e-6)


def failing(world: Any, made: Any, trouble: str) -> list[Any]:
    model, prompts, films, answers = made
    started: list[Reader] = []

    @contextmanager
    def begin(own: Any) -> Any:
        if trouble == "start":
            raise UserError("it does not start")
        started.append(Reader(answers, own, trouble))
        try:
            yield started[0]
        finally:
            started[0].closed = True

    def features(handles: Any) -> Any:
        if trouble == "features":
            raise UserError("features disappear")
        return [films[one] for one in handles]

    said = ""
    try:
        with OneForAll.open(world, model, features, begin) as engine:
            engine.load(model, "v1")
            engine.generate(prompts, DRAWS, 3)
    except UserError as error:
        said = error.what
    return [said, len(started), all(one.closed for one in started), len(world.gather("still here"))]


@pytest.mark.parametrize(("trouble", "words", "there"), [
    ("start", "it does not start", 0), ("load", "it does not take them", 1), ("generate", "it is gone", 1),
    ("features", "features disappear", 1),
])  # fmt: skip
def test_what_it_refuses_is_heard_by_all(made: Any, trouble: str, words: str, there: int) -> None:
    first, second = run(2, failing, made, trouble)
    assert first == [words, there, True, 2]
    assert second == [words, 0, True, 2]
