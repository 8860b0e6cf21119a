"""An engine whose worker is tests/engines/fake_worker.py: fixtures, and what it heard."""

import json
import sys
from pathlib import Path

import pytest
import torch
from tests.models import tiny

from longtake.engines.vllm import VllmEngine
from longtake.engines.vllm_link import Link
from longtake.engines.vllm_process import Process
from longtake.errors import UserError
from longtake.records import Draw

FAKE = Path(__file__).with_name("fake_worker.py")
OPTIONS = {"dtype": "float32", "max_model_len": 300}
FILM = tiny.film(0, 4, 16, 8)


@pytest.fixture(name="model", scope="module")
def model_fixture(tmp_path_factory):
    return tiny.exact(tiny.checkpoint(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(name="features", scope="module")
def features_fixture(model):
    with torch.no_grad():
        made = model.encode([FILM, FILM[::-1].copy()])
    return lambda handles: [made["ab".index(handle)] for handle in handles]


@pytest.fixture(name="prompts")
def prompts_fixture(model):
    receipt = tiny.receipt(FILM)
    asked = [("a", "Which cup?"), (None, "2 + 2?"), ("a", "And now?"), ("b", "Who?")]
    return [model.prompt(tiny.ask(text, f"q{n}"), f and receipt, f) for n, (f, text) in enumerate(asked)]


@pytest.fixture(name="started")
def started_fixture(model, features, tmp_path):
    """Starts a fake in some mode, or through `begin`; all are closed in the end."""
    made = []

    def start(mode="plain", patience=60.0, begin=None):
        def beside(shelf, options, log):
            command = [sys.executable, str(FAKE), mode, str(tmp_path / "life"), str(shelf), json.dumps(options)]
            return Process(command, log)

        said = []
        link = Link(begin or beside, "there", OPTIONS, tmp_path / "vllm", features, patience, said.append)
        engine = VllmEngine(model, link)
        made.append(engine)
        engine.load(model, "v1")
        return engine, said

    yield start
    for engine in made:
        engine.close()


def draws(prompts):
    return [[Draw(1.0, 10 * n + 3), Draw(0.0, 10 * n + 2)] for n, _ in enumerate(prompts)]


def impatient(engine, monkeypatch, replies):
    """After so many replies, and until it is started again: a machine may be slow."""
    patience, hear, start, heard = engine.link.patience, Link._hear, Link._start, []

    def counted(link):
        heard.append(hear(link))
        link.patience = 0.6 if len(heard) == replies else patience
        return heard[-1]

    def patient(link):
        link.patience = patience
        start(link)

    monkeypatch.setattr(Link, "_hear", counted)
    monkeypatch.setattr(Link, "_start", patient)


def log(tmp_path):
    """What the fake heard and did."""
    lines = (tmp_path / "vllm" / "engine.log").read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


def refused(*words):
    return pytest.raises(UserError, match="(?s)" + ".*".join(words))
