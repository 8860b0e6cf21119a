"""A recipe run on a tiny float64 network with films that are never decoded, and everything its steps were made of."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tests.models import tiny
from tests.world import silent, write

from longtake.models.qwen3_vl import Qwen3VL
from longtake.parallel.ranks import ONE, Ranks
from longtake.recipes import grpo
from longtake.records import Features
from longtake.runtime import load
from longtake.train import engines, footage, policy, session, step
from longtake.train import resume as resumed
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.rollout import NOTHING
from longtake.train.settings import Optim

FILMS = {"a.mp4": tiny.film(0, 6, 16, 8), "b.mp4": tiny.film(1, 2, 24, 16), "c.mp4": tiny.film(2, 4, 8, 8)}
HEAT, TOKENS, MARGIN, NORM, FLOOR = 0.7, 8, 5, 0.05, 0.1
BETAS, DECAY, LR = (0.8, 0.95), 0.1, 0.01
OPTIM = Optim(
    lr=LR, warmup=3, schedule="linear", floor=FLOOR, betas=BETAS, weight_decay=DECAY, max_grad_norm=NORM
)  # fmt: skip
ENDS = 7  # every seventh token ends an answer, so that lengths differ


@dataclass
class Made:
    """One call of step_optimizer."""

    grads: dict[str, torch.Tensor]  # summed, as they came
    before: dict[str, torch.Tensor]
    after: dict[str, torch.Tensor]
    count: float
    lr: float
    max_norm: float
    norm: float


@dataclass
class Stage:
    """The network, its films, and what a run did. Example: stage.run(grpo, config); stage.made[0].lr."""

    model: Qwen3VL
    levels: dict[str, torch.Tensor]
    made: list[Made] = field(default_factory=list)
    answered: list[Any] = field(default_factory=list)
    batches: list[Any] = field(default_factory=list)
    draws: list[Any] = field(default_factory=list)
    groups: list[Any] = field(default_factory=list)  # what the engine made of them
    store: None = None  # as runtime.films.Films: the tower's features are not on disk
    ranks: Ranks = ONE

    def prompt(self, look: Any) -> Any:
        name = look.question.video and Path(look.question.video).name
        return self.model.prompt(look.question, name and replace(tiny.receipt(FILMS[name]), content=name), name)

    def features(self, handles: Any) -> list[Any]:
        return [Features(self.levels[handle]) for handle in handles]

    def level(self, prompt: Any) -> Any:
        return prompt.features and self.levels[prompt.features]

    def named(self) -> dict[str, Any]:
        """Parameters of the network and of scalar heads."""
        heads = {f"{at}.{name}": p for at, head in self.model.heads.items() for name, p in head.named_parameters()}
        return dict(self.model.net.named_parameters()) | heads

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in self.named().items() if p.requires_grad}

    def put(self, weights: dict[str, torch.Tensor]) -> None:
        """Makes them the network's, without gradients."""
        self.model.net.zero_grad()
        own = self.named()
        with torch.no_grad():
            for name, value in weights.items():
                own[name].copy_(value)

    def grads(self) -> dict[str, torch.Tensor]:
        return {name: p.grad.clone() for name, p in self.named().items() if p.requires_grad and p.grad is not None}

    def run(self, recipe: Any, config: Any) -> Any:
        log = silent()
        done = recipe.run(config, log)
        log.close()
        return done


def stage(monkeypatch: Any, model: Any = None) -> Stage:
    """Everything that a recipe asks of disks and films is answered by the stage; its numbers are the recipe's own.

    model: another than the tiny network with all its weights.
    """
    words = tiny.tokenizer()
    model = model or Qwen3VL(tiny.network(words).double().eval(), words, tiny.PIXELS)
    tiny.exact_norms(model.net)
    model.end_ids = tuple(range(40, len(words), ENDS))
    with torch.no_grad():
        levels = {name: model.encode([film])[0].level_LNE for name, film in FILMS.items()}
    made = Stage(model, levels)
    for place in (session, load, engines):
        monkeypatch.setattr(place, "load_model", lambda *_, **__: model)
    for place in (session, engines):
        monkeypatch.setattr(place, "open_films", lambda *_, **__: made)
    monkeypatch.setattr(footage, "decode", lambda films, questions, *_, **__: list(questions))
    for name in ("save", "save_model"):
        monkeypatch.setattr(resumed, name, lambda *_, **__: Path("model"))
    monkeypatch.setattr("longtake.train.keep.keep", lambda *_: None)
    _watch(monkeypatch, made)
    return made


def _watch(monkeypatch: Any, made: Stage) -> None:
    real_step, real_answers = step.step_optimizer, policy.Sampler.answers
    engine, real_generate = policy.LocalEngine.rollout, policy.LocalEngine.generate

    def stepped(optimizer: Any, params: Any, **given: float) -> float:
        grads, before = made.grads(), made.weights()
        norm = real_step(optimizer, params, **given)
        made.made.append(Made(grads, before, made.weights(), **given, norm=norm))
        return norm

    def answers(self: Any, *given: Any) -> Any:
        made.answered.append(NOTHING)
        for new, kept in real_answers(self, *given):
            made.answered[-1] += new
            yield new, kept

    def generate(self: Any, prompts: Any, draws: Any, max_tokens: int) -> Any:
        made.draws.append(draws)
        made.groups.append(real_generate(self, prompts, draws, max_tokens))
        return made.groups[-1]

    def rollout(self: Any, prompts: Any, draws: Any, *given: Any) -> Any:
        made.draws.append(draws)
        return engine(self, prompts, draws, *given)

    monkeypatch.setattr(session, "step_optimizer", stepped)
    monkeypatch.setattr(policy.Sampler, "answers", answers)
    monkeypatch.setattr(policy.LocalEngine, "rollout", rollout)
    monkeypatch.setattr(policy.LocalEngine, "generate", generate)


def asked(number: int, film: str | None, text: str) -> dict[str, Any]:
    """A chat row without an answer."""
    video = [{"type": "video", "video": film}] if film else []
    return {"id": f"q{number}", "messages": [{"role": "user", "content": [*video, {"type": "text", "text": text}]}]}


ROWS = [
    asked(0, "a.mp4", "Which cup?"),
    asked(1, None, "2 + 2?"),
    asked(2, "b.mp4", "Who gave the gem away?"),
    asked(3, "c.mp4", "When?"),
]


def rows(folder: Path, every: list[dict[str, Any]] | None = None) -> Path:
    return write(folder / "rows.jsonl", every or ROWS)


def taught() -> list[dict[str, Any]]:
    """Two answers to the first question, spans of several weights, a row's own weight."""
    spans: list[Any] = [("<think> s0", 0.0), ("left", 1.0), ("so left", 0.5)]
    every = [(0, "the cup"), (0, spans), (1, "four"), (2, "nobody gave it"), (3, [("late", 2.0)])]
    made = []
    for number, answer in every:
        row = asked(number, ROWS[number]["messages"][0]["content"][0].get("video"), "")
        row["messages"] = [*ROWS[number]["messages"], {"role": "assistant", "content": answer}]
        if not isinstance(answer, str):
            parts = [{"type": "text", "text": text, "weight": weight} for text, weight in answer]
            row["messages"][1]["content"] = parts
        made.append(row | ({"weight": 3.0} if number == 2 else {}))
    return made


def config(tmp_path: Path, algorithm: str, **changed: Any) -> grpo.Config:
    """One question's answers are all worth the same; an answer's tokens decide what the others' are worth."""
    code = "def score(text, row):\n    return 0.5 if row['id'] == 'q2' else sum(map(ord, text)) % 16 / 16\n"
    (tmp_path / "my.py").write_text(code)
    given = {
        "rows": rows(tmp_path), "model": "tiny", "out": tmp_path / "run", "algorithm": algorithm, "steps": 2,
        "reward": (f"{tmp_path / 'my.py'}:score",), "questions": 4, "group_size": 3, "epochs": 2, "minibatches": 2,
        "max_tokens": TOKENS, "overlong": MARGIN, "temperature": HEAT, "dtype": "float64", "optim": OPTIM,
        "memory": Memory(row_tokens=120), "seed": 5, "adapter": Adapter(kind="full"),
    }  # fmt: skip
    return grpo.Config(**given | changed)


def same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], bound: float) -> None:
    """To `bound` of the largest number, or of 1."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert (got[name] - tensor).abs().max() <= bound * max(1.0, tensor.abs().max().item()), name
