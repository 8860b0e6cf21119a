"""Answers of an engine in another process: scored by the trainer, weighed, gated; on prefills that training keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import tiny
from tests.plain import importance as plain

from longtake.engines.local import LocalEngine
from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.models.adapters import add_adapter
from longtake.records import Draw
from longtake.runtime.inputs import fill
from longtake.train.outside import Outside
from longtake.train.step import Passes

EXACT = 1e-9
HEAT = 0.75
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "When was it?"), (None, "2 + 2?"), ("b", "Who?"))
DRAWS = tuple([Draw(HEAT, 10 * n + g) for g in range(3)] for n in range(len(ASKED)))


class Elsewhere:
    """Samples with other weights than it was given, as kernels that compute differently do."""

    def __init__(self, local: LocalEngine, off: float) -> None:
        self.local, self.off, self.loaded = local, off, []

    def load(self, model, version: str) -> None:
        self.loaded.append(version)

    def generate(self, prompts, draws, max_tokens):
        weight = self.local.model.lm_head.weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
        with torch.no_grad():
            weight += self.off * noise
            groups = self.local.generate(prompts, draws, max_tokens)
            weight -= self.off * noise
        return groups


@pytest.fixture(scope="module", params=["full", "lora"])
def model(request, tmp_path_factory):
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))
    if request.param == "lora":
        add_adapter(model, "lora", 4, 8.0)
        model.net.double()
    return model


@pytest.fixture(scope="module")
def local(model):
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    return LocalEngine(model, lambda handles: [films[handle] for handle in handles], "step-3", row_tokens=150)


@pytest.fixture(scope="module")
def prompts(model):
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    return [model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]


def rollout(outside, local, prompts, keep="graph"):
    return [kept for batch in outside.rollout(local, prompts, DRAWS, 7, lambda run: keep) for kept in batch]


def one(local, prompt, ids):
    """Log-probabilities of one answer in a row of its own, at the sampling temperature."""
    row = pack([prompt], [[ids]], [[[1.0] * len(ids)]], dtype=torch.float64)
    model = local.model
    embed_TE, deepstack = fill(model, row.ids_T, row.visual_T, local.features([h for h in row.features if h]))
    hidden_TE = model.hidden(embed_TE, row.position_3T, row.visual_T, deepstack, Row(row.layout))
    logits_RV = model.head(hidden_TE[row.predict_R]) / HEAT
    return logits_RV.log_softmax(-1).gather(1, row.target_R[:, None])[:, 0].tolist()


@torch.no_grad()
@pytest.mark.parametrize("cap", [0.0, 1.1])
def test_log_probabilities_are_the_trainers_and_weights_the_ratio(local, prompts, cap) -> None:
    engine = Elsewhere(local, 0.05)
    outside = Outside(engine, Passes(answer_tokens=16), cap, gate=9.0)
    sampled = engine.generate(prompts, DRAWS, 7)
    groups = [group for kept in rollout(outside, local, prompts) for group in kept.groups]
    assert [[a.ids for a in g.answers] for g in groups] == [[a.ids for a in g.answers] for g in sampled]
    weights, ours, theirs = [], [], []
    for group, before in zip(groups, sampled, strict=True):
        for answer, old in zip(group.answers, before.answers, strict=True):
            want = one(local, group.prompt, answer.ids)
            assert answer.logprob == pytest.approx(want, abs=EXACT)
            assert max(abs(a - b) for a, b in zip(want, old.logprob, strict=True)) > 1e-4  # they do differ
            (weight,) = plain.weights(want, old.logprob, [0] * len(want), cap)
            assert answer.correction == pytest.approx(weight, rel=1e-4)  # the engine's came as float32
            weights.append(weight)
            ours += want
            theirs += old.logprob
    assert cap == 0 or 0.0 in weights
    numbers = outside.numbers()
    assert numbers["engine_masked"] == pytest.approx(weights.count(0.0) / len(weights))
    assert numbers["engine_kl"] == pytest.approx(plain.kl(ours, theirs), rel=1e-3)
    assert numbers["engine_gap"] == pytest.approx(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)), rel=1e-3)
    assert engine.loaded == ["step-3"]
    assert not outside.seen


@torch.no_grad()
def test_an_engine_that_computes_the_same_changes_nothing(local, prompts) -> None:
    outside = Outside(Elsewhere(local, 0.0), Passes(), 3.0, gate=1e-5)
    groups = [group for kept in rollout(outside, local, prompts) for group in kept.groups]
    want = [g for batch in local.rollout(prompts, DRAWS, 7, lambda run: "graph") for k in batch for g in k.groups]
    for group, other in zip(groups, want, strict=True):
        for answer, same in zip(group.answers, other.answers, strict=True):
            assert answer.ids == same.ids
            assert answer.logprob == pytest.approx(same.logprob, abs=EXACT)
            assert answer.correction == pytest.approx(1.0, abs=1e-5)


def test_prefills_are_those_that_training_goes_on_with(local, prompts) -> None:
    kept = rollout(Outside(Elsewhere(local, 0.0), Passes(), 3.0, gate=1.0), local, prompts)
    want = [one for batch in local.rollout(prompts, DRAWS, 7, lambda run: "graph") for one in batch]
    assert [len(k.groups) for k in kept] == [len(k.groups) for k in want]
    for ours, theirs in zip(kept, want, strict=True):
        assert ours.made.layout == theirs.made.layout
        assert ours.made.graph
        assert all(torch.equal(a[0], b[0]) for a, b in zip(ours.made.kv, theirs.made.kv, strict=True))


def test_the_first_answers_must_agree(local, prompts) -> None:
    outside = Outside(Elsewhere(local, 0.05), Passes(), 3.0, gate=1e-3)
    with pytest.raises(UserError, match="do not agree") as raised:
        rollout(outside, local, prompts)
    assert "nats" in raised.value.why
    outside.gate = 9.0
    rollout(outside, local, prompts)
    assert outside.checked  # later ones are watched, not gated
    outside.gate = 1e-3
    rollout(outside, local, prompts)


@torch.no_grad()
def test_an_engine_without_numbers_does_not_pass(local, prompts) -> None:
    class Mute(Elsewhere):
        def generate(self, *asked):
            return [replace(g, answers=tuple(replace(a, logprob=(float("nan"),) * len(a.ids)) for a in g.answers))
                    for g in super().generate(*asked)]  # fmt: skip

    with pytest.raises(UserError, match="do not agree"):
        rollout(Outside(Mute(local, 0.0), Passes(), 3.0, gate=9.0), local, prompts)
