"""What several ranks are told by a config: what they cannot do is refused, and so is what would have no effect."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from longtake.errors import UserError
from longtake.log import Log
from longtake.parallel import fsdp
from longtake.parallel import ranks as parallel
from longtake.parallel.axis import Axis
from longtake.train import degree
from longtake.train.adapter_settings import Adapter
from longtake.train.engine_settings import Engine
from longtake.train.ranks_settings import Ranks

MOST_LINES = 6


def refused(what: str, call: Any, *given: Any) -> str:
    with pytest.raises(UserError, match=what) as caught:
        call(*given)
    assert len(str(caught.value).splitlines()) <= MOST_LINES
    assert caught.value.where
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize("given", [{"sequence": 1}, {"attention": "gather"}, {"weights": "whole"}])
def test_one_rank_shares_with_nobody(given: dict[str, Any]) -> None:
    assert f"--ranks.{next(iter(given))}" in refused("one rank shares with nobody", Ranks(**given).check, 1)
    Ranks().check(1)
    if "attention" not in given:
        Ranks(**given).check(2)


def test_sequences_part_the_world() -> None:
    for size, sequence, fits in ((4, 3, "1, 2, 4"), (6, 4, "1, 2, 3, 6"), (5, 2, "1, 5"), (2, 8, "1, 2")):
        text = refused(f"{size} ranks cannot be sequences of {sequence} each", Ranks(sequence=sequence).check, size)
        assert text.endswith(f"do: one of {fits}")
    for size, sequence in ((4, 2), (6, 3), (5, 5), (5, 1)):
        Ranks(sequence=sequence).check(size)


def test_attention_of_a_prefix_that_nobody_shares() -> None:
    text = refused("no prefix is shared", Ranks(sequence=1, attention="ulysses").check, 2)
    assert "--ranks.attention" in text
    Ranks(sequence=2, attention="ulysses").check(2)
    Ranks(attention="ulysses").check(2)  # as many as the longest prompt asks for


def test_an_endpoint_is_asked_without_ranks_and_one_process_serves_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "here", lambda: Axis(0, 2))
    remote = Engine(kind="remote", url="http://x/v1")
    refused("an endpoint for several ranks", remote.found)
    Engine(kind="vllm", url="tcp://gpu:7000").found()
    Engine(kind="sglang", url="http://gpu:30000").found()
    monkeypatch.setattr(parallel, "here", lambda: Axis(0, 1))
    remote.found()


def test_films_hear_how_they_are_shared() -> None:
    films: Any = SimpleNamespace(ranks=SimpleNamespace(world=Axis(0, 4)))
    Ranks(sequence=2, attention="ulysses").onto(films)
    assert (films.sequence, films.attention) == (2, "ulysses")
    refused("cannot be sequences", Ranks(sequence=3).onto, films)


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a model's weights in shares, as far as can be told: [calls], and what was said."""

    def share(settings: Ranks, adapter: Adapter, size: int, *, large: bool = False) -> tuple[list[Any], str]:
        calls, stream = [], io.StringIO()
        monkeypatch.setattr(parallel, "here", lambda: Axis(0, size))
        monkeypatch.setattr(degree, "large", lambda model: large)
        monkeypatch.setattr(fsdp, "shard", lambda *given: calls.append(given))
        model: Any = SimpleNamespace(net="net", layers="layers")
        log = Log(stream=stream)
        settings.share_weights(model, adapter, log)
        log.close()
        return calls, stream.getvalue()

    return share


def test_large_weights_are_in_shares_and_it_is_said(shared: Any) -> None:
    full, said = Adapter(kind="full"), "weights, gradients and optimizer are in 4 shares (FSDP2)"
    for settings, large in ((Ranks(weights="shares"), False), (Ranks(), True)):
        ((modules, layers, world),), text = shared(settings, full, 4, large=large)
        assert (modules, layers, world) == (["net"], "layers", Axis(0, 4))
        assert said in text
    for settings, size, large in ((Ranks(), 4, False), (Ranks(weights="whole"), 4, True), (Ranks(), 1, True)):
        assert shared(settings, full, size, large=large) == ([], "")


def test_an_adapters_base_is_not_in_shares(shared: Any) -> None:
    for adapter in (Adapter(kind="lora"), Adapter(kind="alora")):
        assert shared(Ranks(), adapter, 4, large=True) == ([], "")
        text = refused("these weights stay whole", Ranks(weights="shares").check, 4, adapter)
        assert "why: a LoRA keeps its base whole on every rank" in text
    text = refused("these weights stay whole", Ranks(weights="shares").check, 4, Adapter(quantize="nf4"))
    assert "four-bit weights are not gathered" in text
    assert "--adapter.kind full" in text
    Ranks(weights="shares").check(4, Adapter(kind="full"))
    Ranks(weights="whole").check(4, Adapter(kind="lora"))
