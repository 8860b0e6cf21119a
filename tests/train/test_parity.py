"""What parity measures, on engines that are off in known ways."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch
from tests.models import tiny
from tests.train.test_outside import ASKED, FILMS, HEAT, Elsewhere

from longtake.engines.local import LocalEngine
from longtake.recipes.parity import wrong
from longtake.records import Draw
from longtake.train.outside import Outside
from longtake.train.parity import measure
from longtake.train.step import Passes

DRAWS = [[Draw(HEAT, 10 * n + g) for g in range(2)] for n in range(len(ASKED))]


class Seen(Elsewhere):
    """An engine that says what it saw."""

    strange = 0
    dtype = torch.float64
    shift = 0
    places = True

    def held(self, prompt):
        return torch.cat(list(self.local.features([prompt.features])[0].level_LNE), -1).to(self.dtype)

    def positions(self, prompt):
        moved = prompt.position_3P.clone()
        moved[0, -1] += self.shift if prompt.features == "b" else 0
        return moved


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    model = tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))
    with torch.no_grad():
        films = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    return LocalEngine(model, lambda handles: [films[handle] for handle in handles], "v1")


@pytest.fixture(scope="module")
def prompts(local):
    receipts = {None: None} | {name: tiny.receipt(film) for name, film in FILMS.items()}
    return [local.model.prompt(tiny.ask(text, str(n)), receipts[film], film) for n, (film, text) in enumerate(ASKED)]


def found(local, prompts, off=0.0, **changed):
    engine = Seen(local, off)
    for name, value in changed.items():
        setattr(engine, name, value)
    with torch.no_grad():
        return measure(engine, local, prompts, DRAWS[: len(prompts)], 6)


def test_the_same_network_is_the_same(local, prompts) -> None:
    same = found(local, prompts)
    assert (same.ids_equal, same.positions_equal, same.features_max_abs) == (True, True, 0.0)
    assert same.logprob_max_abs < 1e-5  # the engine's numbers came as float32
    assert (same.prompts, same.answers) == (4, 8)
    assert same.tokens >= 8
    assert wrong(same, 1e-5) == ""


def test_other_kernels_are_measured(local, prompts) -> None:
    off = found(local, prompts, 0.02)
    assert 1e-4 < off.logprob_mean_abs < off.logprob_max_abs
    engine = Seen(local, 0.02)
    whole = Outside(engine, Passes(), cap=0.0, gate=9.0)
    with torch.no_grad():
        whole.settled(local, engine.generate(prompts, DRAWS, 6), HEAT)
    want = whole.seen[0].mean, whole.seen[0].kl
    assert (off.logprob_mean_abs, off.kl) == pytest.approx(want, rel=1e-5)
    assert "differ by up to" in wrong(off, off.logprob_max_abs / 2)
    assert wrong(off, off.logprob_max_abs * 2) == ""


def test_what_it_saw_is_compared(local, prompts) -> None:
    assert "elsewhere" in wrong(found(local, prompts, shift=1), 1.0)
    counts = found(local, prompts, shift=1, places=False)
    assert counts.positions_equal is None
    assert wrong(counts, 1.0) == ""
    assert "other tokens" in wrong(found(local, prompts, strange=1), 1.0)
    rounded = found(local, prompts, dtype=torch.bfloat16)
    made = local.features(["a", "b"])
    want = max(float((f.level_LNE - f.level_LNE.bfloat16().double()).abs().max()) for f in made)
    assert rounded.features_max_abs == want > 0
    assert found(local, prompts[2:3], dtype=torch.bfloat16).features_max_abs is None


def test_no_number_is_no_parity(local, prompts) -> None:
    assert wrong(replace(found(local, prompts), logprob_max_abs=float("nan")), 1.0)


def test_names_are_those_that_are_promised(local, prompts) -> None:
    promised = {"ids_equal", "positions_equal", "features_max_abs", "logprob_max_abs"}
    assert promised <= asdict(found(local, prompts)).keys()
