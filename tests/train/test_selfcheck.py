"""The check that a run makes of itself: quiet when the paths agree, an error when one of them is broken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.models import tiny

from longtake.errors import UserError
from longtake.maths import attention
from longtake.models.adapters import add_adapter
from longtake.runtime import prefix
from longtake.train import selfcheck
from longtake.train.step import Passes

EXACT = 1e-12
FILM = tiny.film(0, 6, 16, 8)
ANSWERS = ((50, 61, 72), (80, 91), (), (44,))


@pytest.fixture(params=["full", "lora", "alora"])
def model(request, tmp_path):
    model = tiny.exact(tiny.checkpoint(tmp_path / "tiny", layers=3))
    model.tower.requires_grad_(False)
    if request.param != "full":
        add_adapter(model, request.param, 4, 8.0)
        for name, p in model.net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p.data, std=0.3)
        model.net.double()
    return model


def run(model, keep="graph"):
    with torch.no_grad():
        films = model.encode([FILM])
    params = [p for p in model.net.parameters() if p.requires_grad]
    prompt = model.prompt(tiny.ask("Which cup?"), tiny.receipt(FILM), "a")
    found = selfcheck.check(model, params, prompt, ANSWERS, films, Passes(keep, answer_tokens=2))
    assert all(p.grad is None for p in params)
    return found


@pytest.mark.parametrize("prompt", [selfcheck.PROMPT, 24])
@pytest.mark.parametrize("keep", ["graph", "layers"])
def test_paths_that_agree(model, keep, prompt, monkeypatch):
    """Also on a prompt that is cut."""
    monkeypatch.setattr(selfcheck, "PROMPT", prompt)
    found = run(model, keep)
    assert 0 < found.gradient < EXACT
    assert found.logprob < EXACT
    assert found.answers == 2
    assert (found.prompt == 24) == (prompt == 24)
    assert "log-probabilities agree to" in str(found)


def test_a_wrong_value_is_found(model, monkeypatch):
    real = attention.extend_attention
    monkeypatch.setattr(prefix, "extend_attention", lambda *a, scale, **k: real(*a, scale=1.01 * scale, **k))
    with pytest.raises(UserError, match="does not compute what the plain one does"):
        run(model)


def test_a_wrong_value_alone_is_found(model, monkeypatch):
    """Gradients are right."""
    real = selfcheck.score_tokens
    calls = []

    def shifted(*given):
        """From the third call on, the fast path's."""
        calls.append(given)
        found = real(*given)
        return replace(found, logprob_R=found.logprob_R + 0.1) if len(calls) > 2 else found

    monkeypatch.setattr(selfcheck, "score_tokens", shifted)
    with pytest.raises(UserError, match="log-probabilities agree to 1"):
        run(model)


def test_a_wrong_gradient_is_found(model, monkeypatch):
    """Values are right; the prefix's keys get half their gradient."""
    if model.adapter is not None and model.adapter.kind == "alora":
        pytest.skip("an activated LoRA has no gradient through the prefix")
    real = prefix._gradients
    monkeypatch.setattr(prefix, "_gradients", lambda *a: [0.5 * x for x in real(*a)])
    with pytest.raises(UserError, match="gradients to"):
        run(model)
