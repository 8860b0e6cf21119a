"""Pairs of answers on films and text, a tiny network with adapter and scalar head, and a session that holds both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tests.models import tiny

from longtake.models.adapters import NAME, add_adapter
from longtake.models.heads import add_head
from longtake.parallel.ranks import ONE, Ranks
from longtake.records import Question
from longtake.rewards.model import PAST
from longtake.runtime.prefixcache import PrefixCache
from longtake.train.resume import Progress
from longtake.train.rows import Item
from longtake.train.session import Session
from longtake.train.step import Passes

RANK, ALPHA = 3, 6.0
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (  # (film, question, chosen, rejected): two questions on one film, one of them twice, an answer of one token
    ("a", "Which cup?", (50, 51, 52, 53), (60, 61)),
    ("a", "Which cup?", (54, 50), (62, 63, 64, 65, 66)),
    ("a", "Which gem?", (70,), (71, 72, 73)),
    (None, "2 + 2?", (80, 81), (82,)),
    ("b", "When?", (90,), (91,)),
    ("b", "Who gave the gem away?", (92, 93, 94), (95, 96, 97, 98, 99)),
)


@dataclass(frozen=True)
class Look:
    question: Question


@dataclass
class Films:
    """What a session asks of films. Example: Films(model, {"a": features}, {"a": receipt})."""

    model: Any
    made: dict[str, Any]
    store: None = None
    ranks: Ranks = ONE

    def features(self, handles: Any) -> list[Any]:
        return [self.made[handle] for handle in handles]

    def prompt(self, look: Any) -> Any:
        film = look.question.video
        return self.model.prompt(look.question, film and tiny.receipt(FILMS[film]), film)


def network(folder: Path, kind: str) -> Any:
    """A model whose adapter has learned something, with a scalar head."""
    model = tiny.exact(folder)
    if kind != "full":
        add_adapter(model, kind, RANK, ALPHA)
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for part in model.adapter.weights().values():
                part.copy_(torch.randn(part.shape, generator=random, dtype=torch.float64) * 0.3)
    for part in model.tower.parameters():
        part.requires_grad_(False)
    add_head(model, seed=4)
    return model


def session(model: Any, passes: Passes, prefixes: PrefixCache | None = None) -> Session:
    with torch.no_grad():
        made = dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))
    optimizer = torch.optim.SGD(list(model.heads[NAME].parameters()))
    return Session(model, Films(model, made), optimizer, [], Progress(), Path(), passes, prefixes)  # type: ignore[arg-type]


def level(session: Session, prompt: Any) -> Any:
    return prompt.features and session.films.made[prompt.features].level_LNE  # type: ignore[attr-defined]


def items(session: Session, *, scored: bool) -> list[Item]:
    """Rows of all pairs; `scored`: an answer's one number is read behind its end, as reward models are trained."""
    found = []
    random = torch.Generator().manual_seed(9)
    for number, (film, text, *said) in enumerate(ASKED):
        prompt = session.films.prompt(Look(Question(str(number), film, text)))  # type: ignore[arg-type]
        ids = tuple((*own, session.model.end_ids[0], PAST) if scored else own for own in said)
        weight = 1.0 + 0.5 * (number % 2)
        weights = tuple(tuple(weight * (not scored or k == len(own) - 1) for k in range(len(own))) for own in ids)
        old = tuple(tuple((-5 + torch.randn(len(own), generator=random)).tolist()) for own in ids)
        found.append(Item(prompt, ids, weights, old))
    return found
