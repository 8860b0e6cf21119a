"""Pairs in packed rows, for a reward model: value and gradient as of two rows that know nothing of each other."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import tiny
from tests.plain import training as plain
from torch.nn.functional import softplus

from longtake.maths.pack import pack
from longtake.maths.reward import batch_sign, bradley_terry_of_tokens
from longtake.models.adapters import NAME, add_adapter
from longtake.models.heads import add_head
from longtake.records import Pair, Question
from longtake.rewards.model import PAST, read_ids
from longtake.runtime.rows import lead
from longtake.train.comparing import Reading, dress, suffix_ids
from longtake.train.rows import Item
from longtake.train.step import Passes, ScalarObjective, backward, read_out

EXACT = 1e-10  # of the largest number compared
CENTRING = 0.3
FILMS = {"a": tiny.film(0, 6, 16, 8), "b": tiny.film(1, 2, 24, 16)}
ASKED = (("a", "Which cup?"), ("a", "Which gem?"), (None, "2 + 2?"), ("b", "When?"))
SAID = (((50, 51, 52), (60,)), ((70, 71), (72, 73, 74, 75)), ((80,), (81, 82)), ((90, 91), (92,)))
MARGINS = (2.0, None, 0.5, 1.0)
SUFFIX = (44, 45)
TIMES = 0.5  # the margins


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(params=["full", "lora"])
def model(folder: Any, request: pytest.FixtureRequest) -> Any:
    made = tiny.exact(folder)
    if request.param != "full":
        add_adapter(made, request.param, 3, 6.0)
        with torch.no_grad():
            for part in made.adapter.weights().values():
                part.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
        made.net.double()
    made.heads[NAME] = add_head(made, seed=4).double()
    return made


def films(model: Any) -> dict[str, Any]:
    with torch.no_grad():
        return dict(zip(FILMS, model.encode(list(FILMS.values())), strict=True))


def items(model: Any, suffix: tuple[int, ...]) -> list[Item]:
    end = model.end_ids[0]
    reading = Reading(None, suffix, TIMES)  # type: ignore[arg-type]
    found = []
    for number, ((film, text), said, margin) in enumerate(zip(ASKED, SAID, MARGINS, strict=True)):
        prompt = model.prompt(tiny.ask(text, str(number)), film and tiny.receipt(FILMS[film]), film)
        ids = tuple((*one, end) for one in said)
        pair = Pair(str(number), Question(str(number), None, text), "", "", margin)
        found.append(reading._item(Item(prompt, ids, tuple((1.0,) * len(own) for own in ids)), pair))
    return found


def packed(model: Any, found: list[Item]) -> Any:
    columns = [[getattr(item, name) for item in found] for name in ("prompt", "ids", "weights", "old")]
    return pack(*columns, lead=lead(model), dtype=torch.float64)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    owned = [*model.net.named_parameters(), *model.heads[NAME].named_parameters()]
    made = {name: p.grad.clone() for name, p in owned if p.grad is not None}
    model.net.zero_grad()
    model.heads[NAME].zero_grad()
    return made


@pytest.mark.parametrize("suffix", [(), SUFFIX])
@pytest.mark.parametrize("way", ["trl", "vlm_rlaif"])
def test_a_pair_on_one_prefix_is_two_rows(model: Any, way: Any, suffix: tuple[int, ...]) -> None:
    """In one row or a row each, answers fed at once or pair by pair."""
    seen, end = films(model), model.end_ids[0]
    levels = {None: None} | {name: made.level_LNE for name, made in seen.items()}
    found = items(model, suffix)
    scalar = SimpleNamespace(net=model.net, hidden=model.hidden, head=model.heads[NAME])
    scores = torch.stack([
        plain.logits(scalar, levels[item.prompt.features], item.prompt, (*said, end, *suffix, PAST))[-1]
        for item, pair in zip(found, SAID, strict=True)
        for said in pair
    ])  # fmt: skip
    chosen, rejected = scores[::2], scores[1::2]
    margins = TIMES * torch.tensor([margin or 0.0 for margin in MARGINS], dtype=torch.float64)
    both = (chosen + rejected).square().sum() if way == "trl" else (chosen + rejected).sum().abs()
    want = softplus(-(chosen - rejected - margins)).sum() + CENTRING * both
    want.backward()
    plain_gradients = gradients(model)

    def features(names: Any) -> Any:
        return [seen[name] for name in names]

    sign = batch_sign(scores) if way == "vlm_rlaif" else None
    loss = partial(bradley_terry_of_tokens, centring=CENTRING, way=way, sign=sign)
    goal = ScalarObjective(NAME, loss, together=2)
    for rows in ([found], [[item] for item in found]):
        for most in (10**6, 1):
            sums = [backward(model, features, packed(model, row), goal, Passes(answer_tokens=most)) for row in rows]
            assert sum(each.loss for each in sums) == pytest.approx(want.item(), rel=EXACT)
            assert sum(each.tokens for each in sums) == len(SAID)
            got = gradients(model)
            assert got.keys() == plain_gradients.keys()
            for name, grad in plain_gradients.items():
                assert (got[name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max()), name
    read = read_out(model, features, packed(model, found), lambda hidden, row: model.heads[NAME](hidden))
    lengths = [len(ids) for item in found for ids in item.ids]
    last = torch.stack([one[-1] for one in read.split(lengths)])
    assert (last - scores.detach()).abs().max() <= EXACT * scores.abs().max()


def test_the_one_weight_is_where_the_score_is(folder: Any) -> None:
    model = tiny.exact(folder)
    (first, *_) = items(model, SUFFIX)
    assert first.ids[1] == (60, model.end_ids[0], *SUFFIX, PAST) == read_ids((60, model.end_ids[0]), SUFFIX)
    assert first.weights[1] == (0.0, 0.0, 0.0, 0.0, 1.0)
    assert first.old == ((0.0,) * 6 + (1.0,), (0.0,) * 4 + (1.0,))


def test_a_suffix_is_a_turn_of_the_template(folder: Any) -> None:
    model = tiny.load_model(folder, device="cpu")
    words, end = model.tokenizer, model.end_ids[0]
    assert suffix_ids(model, ()) == ()
    assert words.decode([end, *suffix_ids(model, ("Good?",))]) == (
        "<|im_end|>\n<|im_start|>user\nGood?<|im_end|>\n<|im_start|>assistant\n"
    )
    asked, begun = (suffix_ids(model, texts) for texts in (("Good?",), ("Good?", "It is")))
    assert words.decode(begun[len(asked) :]) == "It is"
    assert begun[: len(asked)] == asked


def test_a_head_is_made_once(folder: Any) -> None:
    model = tiny.load_model(folder, device="cpu")
    dress(model, None, seed=3)
    head = model.heads[NAME]
    dress(model, None, seed=4)
    assert model.heads[NAME] is head
    assert head.weight.requires_grad
