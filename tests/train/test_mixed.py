"""A film, a picture, text and conversations in one packed row: value and gradient of each alone. Float64."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import tiny
from tests.plain import training as plain

from longtake.models.adapters import add_adapter
from longtake.parallel.ranks import ONE
from longtake.records import Example, Features, Question, Span
from longtake.train.resume import Progress
from longtake.train.step import Passes
from longtake.train.supervised import Item, backward_items
from longtake.train.turns import tokens_of

EXACT = 1e-10  # of the largest number compared
SHOWN = {
    "film": tiny.film(0, 6, 16, 8), "long": tiny.film(1, 10, 8, 16),
    "picture": np.repeat(tiny.film(2, 1, 24, 16), 2, axis=0),
}  # fmt: skip
TALK = (Span("left"), Span("And then?", 0.0, "user"), Span("so", 0.5), Span(" right"), Span("Why?", 0.0, "user"))
ROWS = [
    ("film", "Which cup?", [(Span("the left one"),), (Span("<think> s0", 0.0), Span("left", 2.0))]),
    ("picture", "Which cup?", [(*TALK, Span("it moved", 3.0))]),
    (None, "2 + 2?", [(Span("four"),), (*TALK[:2], Span("five"))]),
    ("long", "Who gave the gem?", [(*TALK, Span("nobody"))]),
    ("picture", "How many?", [(Span("3"),)]),
]


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


def shown(name: str | None) -> Any:
    if name is None:
        return None
    receipt = tiny.receipt(SHOWN[name])
    return replace(receipt, image=True, indices=(0, 0), padded=1) if name == "picture" else receipt


def grads(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["full", "lora", "alora"])
@pytest.mark.parametrize("row_tokens", [10**6, 120])
def test_a_mixed_batch_is_its_rows_one_by_one(kind: Any, row_tokens: int) -> None:
    words = tiny.tokenizer()
    model = tiny.Qwen3VL(tiny.network(words).double().eval(), words, tiny.PIXELS)
    tiny.exact_norms(model.net)
    if kind != "full":
        add_adapter(model, kind, 4, 8.0)
        for x in model.adapter.weights().values():
            torch.nn.init.normal_(x.data, std=0.3)
        model.net.double()
    for part in model.tower.parameters():
        part.requires_grad_(False)
    with torch.no_grad():
        levels = {name: model.encode([film])[0].level_LNE for name, film in SHOWN.items()}
    items = []
    for number, (name, text, targets) in enumerate(ROWS):
        example = Example(Question(f"q{number}", name, text), tuple(targets))
        made = [tokens_of(words, model.end_ids[0], spans) for spans in example.targets]
        prompt = model.prompt(example.question, shown(name), name)
        items.append(Item(prompt, tuple(ids for ids, _ in made), tuple(weights for _, weights in made)))
    films = SimpleNamespace(features=lambda handles: [Features(levels[handle]) for handle in handles])
    session: Any = SimpleNamespace(
        model=model, films=films, passes=Passes(), prefixes=None, progress=Progress(), ranks=ONE, at=print
    )
    sums, count = backward_items(session, items, row_tokens)
    got = grads(model)
    model.net.zero_grad()
    if kind == "alora":  # acts on answers only: no single causal sequence has it, but each row alone does
        alone = [backward_items(session, [replace_answer(item, g)], 1) for item in items for g in range(len(item.ids))]
        assert sums.loss == pytest.approx(sum(one.loss for one, _ in alone), rel=EXACT)
        assert count == pytest.approx(sum(weight for _, weight in alone))
    else:
        given = [(item.prompt, item.ids, item.weights) for item in items]
        assert count == pytest.approx(
            plain.supervised_gradients(model, lambda p: p.features and levels[p.features], given)
        )
        with torch.no_grad():
            total = sum(
                -plain.single(w) * logprob
                for prompt, answers, weights in given
                for ids, own in zip(answers, weights, strict=True)
                for w, logprob in zip(
                    own, plain.logprobs(model, prompt.features and levels[prompt.features], prompt, ids), strict=True
                )
            )
        assert sums.loss == pytest.approx(float(total), rel=EXACT)
    want = grads(model)
    assert got.keys() == want.keys()
    for name, grad in want.items():
        assert (got[name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max().item()), name
    assert max(grad.abs().max() for grad in want.values()) > 1e-3


def replace_answer(item: Item, place: int) -> Item:
    """The prompt with one of its answers."""
    return Item(item.prompt, item.ids[place : place + 1], item.weights[place : place + 1])
