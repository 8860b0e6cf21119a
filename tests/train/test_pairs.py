"""Pairs on shared prefixes: value and gradient are those of two rows, each answer behind a prompt of its own."""

from __future__ import annotations

from functools import partial
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.models import tiny
from tests.plain import adapters as by_hand
from tests.plain import pair_step, training
from tests.plain import preference as plain
from tests.train.paired import ALPHA, ASKED, RANK, Look, items, level, network, session
from tests.world import silent
from torch.nn.functional import logsigmoid, pad
from transformers import Qwen3VLForConditionalGeneration

from longtake.errors import UserError
from longtake.maths import loss as losses
from longtake.maths.reward import bradley_terry_of_tokens
from longtake.models.adapters import NAME
from longtake.records import Pair, Question
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import lead
from longtake.train import rows
from longtake.train.preference import Pairs, ids_of, longest_of
from longtake.train.resume import Progress
from longtake.train.rows import Item, backward_items
from longtake.train.session import Session
from longtake.train.settings import Video
from longtake.train.step import Goal, Objective, Passes, ScalarObjective, Sums

EXACT = 1e-12  # of the largest number compared
MANY = 10**6
BETA, SMOOTHING, MARGIN, CENTRING = 0.4, 0.2, 0.5, 0.3
KEPT = ("graph", "layers", "attention", "host")
PASSES = (  # how rows go through: what a prefix keeps, tokens of a run of answers, tokens of a tile; tokens of a row
    *((Passes(keep, MANY), MANY) for keep in KEPT),
    *((Passes(keep, 1), 1) for keep in ("graph", "layers")),
    (Passes("layers", 7, tile=5), 120),
    (Passes("attention", 9, tile=8), 60),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.checkpoint(tmp_path_factory.mktemp("tiny"))


GOALS: dict[str, Goal] = {
    "dpo": Objective(partial(losses.dpo, beta=BETA, smoothing=SMOOTHING), on_policy=False, together=2),
    "ipo": Objective(partial(losses.ipo, beta=BETA), on_policy=False, together=2),
    "simpo": Objective(partial(losses.simpo, beta=BETA, margin=MARGIN), on_policy=False, together=2),
    "bradley_terry": ScalarObjective(NAME, partial(bradley_terry_of_tokens, centring=CENTRING), together=2),
}
PLAIN = {
    "dpo": partial(plain.dpo, beta=BETA, smoothing=SMOOTHING),
    "ipo": partial(plain.ipo, beta=BETA),
    "simpo": partial(plain.simpo, beta=BETA, margin=MARGIN),
}


def two_rows(session: Session, item: Item, name: str, weights: Any) -> Any:
    """Loss of one pair, every answer alone behind its prompt, the adapter's layers by hand."""
    model, weight = session.model, max(item.weights[0])
    alone = model, level(session, item.prompt), item.prompt, item.ids
    answers = pair_step.states(*alone, weights, ALPHA / RANK, lead(model))
    assert item.old is not None
    if name == "bradley_terry":
        head = model.heads[NAME]
        score = torch.stack([states[-1] @ head.weight + head.bias for states in answers])
        margin = torch.tensor([training.single(item.old[0][-1])], dtype=torch.float64)
        return plain.bradley_terry(score, margin, torch.tensor([weight]).double(), CENTRING, "trl")
    old = [[training.single(x) for x in own] for own in item.old]
    return pair_step.loss(PLAIN[name], pair_step.logprobs(model, item.ids, answers), old, weight)


def expected(session: Session, name: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses of the pairs, gradient of every parameter)."""
    model = session.model
    model.net.zero_grad()
    model.heads[NAME].zero_grad()
    weights = by_hand.owned(model) if model.adapter else None
    found = [two_rows(session, item, name, weights) for item in items(session, scored=name == "bradley_terry")]
    torch.stack(found).sum().backward()
    grads = gradients(model)
    for layer, (a, b) in (weights or {}).items():
        grads |= {f"{layer}.lora_A.{NAME}.weight": a.grad, f"{layer}.lora_B.{NAME}.weight": b.grad}
    return [float(one.detach()) for one in found], grads


def gradients(model: Any) -> dict[str, torch.Tensor]:
    named = [*model.net.named_parameters(), *((f"head.{n}", p) for n, p in model.heads[NAME].named_parameters())]
    return {name: p.grad.clone() for name, p in named if p.grad is not None}


@pytest.fixture(scope="module", params=["full", "lora", "alora"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def model(folder: Path, kind: str) -> Any:
    return network(folder, kind)


def check(got: Sums, grads: dict[str, torch.Tensor], want: tuple[list[float], dict[str, torch.Tensor]]) -> None:
    each, wanted = want
    assert got.tokens == len(each)  # pairs: none was parted
    assert abs(got.loss - sum(each)) <= EXACT * sum(each)
    assert grads.keys() == wanted.keys()
    assert max(grad.abs().max() for grad in wanted.values()) > 0.01
    for name, grad in wanted.items():
        assert (grads[name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max().item()), name


@pytest.mark.parametrize("name", list(GOALS))
def test_a_pair_on_one_prefix_is_two_rows(model: Any, kind: str, name: str) -> None:
    """Trees and rows of their own, answers in runs of a pair, whatever a prefix keeps."""
    want = expected(session(model, Passes()), name)
    ways = [(way, None) for way in PASSES]
    if kind == "alora":  # nothing is kept of its prefixes, but for the run
        kept = PrefixCache(1.0)
        ways = [(PASSES[0], None), (PASSES[4], None), (PASSES[0], kept), (PASSES[4], kept)]
    for (passes, row_tokens), prefixes in ways:
        run = session(model, passes, prefixes)
        model.net.zero_grad()
        model.heads[NAME].zero_grad()
        sums = backward_items(run, items(run, scored=name == "bradley_terry"), GOALS[name], row_tokens)
        check(sums, gradients(model), want)
    if kind == "alora":  # two calls: one film, one text, one film
        assert (kept.counts.made, kept.counts.ram) == (3, 3)


def by_transformers(folder: Path, run: Session) -> Any:
    """Its own network, the LoRA added to the weights."""
    net = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float64, attn_implementation="sdpa")
    tiny.exact_norms(net)
    for name, (a_rI, b_Or) in (by_hand.owned(run.model) if run.model.adapter else {}).items():
        net.get_submodule(name).weight.data += ALPHA / RANK * b_Or.detach() @ a_rI.detach()
    return net


def padded(net: Any, run: Session, item: Item) -> torch.Tensor:
    """[2] log-probabilities of the answers, as two padded rows of one batch with a prompt each."""
    prompt = item.prompt
    rows = [torch.tensor([*prompt.ids, *ids]) for ids in item.ids]
    most = max(map(len, rows))
    ids_2T = torch.stack([pad(row, (0, most - len(row))) for row in rows])
    real_2T = torch.stack([pad(torch.ones(len(row)), (0, most - len(row))) for row in rows]).bool()
    on = int(prompt.position_3P.max()) + 1 + torch.arange(most - len(prompt.ids))
    position_32T = torch.cat([prompt.position_3P, on.expand(3, -1)], 1)[:, None].expand(3, 2, most)
    embed_2TE, seen = net.get_input_embeddings()(ids_2T), {}
    if prompt.features:
        visual_2T = torch.zeros(2, most, dtype=torch.bool)
        for start, stop in prompt.visual:
            visual_2T[:, start:stop] = True
        level_L2NE = level(run, prompt).repeat(1, 2, 1)
        embed_2TE = embed_2TE.masked_scatter(visual_2T[..., None], level_L2NE[0])
        seen = {"visual_pos_masks": visual_2T, "deepstack_visual_embeds": list(level_L2NE[1:])}
    out = net.model.language_model(
        inputs_embeds=embed_2TE, attention_mask=real_2T, position_ids=position_32T, use_cache=False, **seen
    )
    logprob_2TV = net.lm_head(out.last_hidden_state).log_softmax(-1)
    chosen_2T = logprob_2TV[:, :-1].gather(-1, ids_2T[:, 1:, None])[..., 0]
    answer_2T = real_2T[:, 1:] & (torch.arange(1, most) >= len(prompt.ids))
    return torch.where(answer_2T, chosen_2T, 0).sum(-1)


@pytest.mark.parametrize("kind", ["full", "lora"], indirect=True)
def test_the_two_rows_are_transformers_own(folder: Path, model: Any, kind: str) -> None:
    """DPO as TRL writes it, on padded batches of two: value and gradient of every weight."""
    run = session(model, Passes())
    every = items(run, scored=False)
    net, total = by_transformers(folder, run), torch.zeros((), dtype=torch.float64)
    for item in every:
        assert item.old is not None
        reference = torch.tensor([sum(map(training.single, own)) for own in item.old], dtype=torch.float64)
        ratio = padded(net, run, item) - reference
        total = total - item.weights[0][0] * logsigmoid(BETA * (ratio[0] - ratio[1]))
    total.backward()
    model.net.zero_grad()
    goal = Objective(partial(losses.dpo, beta=BETA), on_policy=False, together=2)
    sums = backward_items(run, every, goal, MANY)
    assert abs(sums.loss - total.item()) <= EXACT * total.item()
    got = gradients(model)
    whole = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
    if kind == "full":
        want = whole
    else:  # the chain rule takes the gradient of W + s B A to those of A and B
        want = {}
        for name, (a, b) in by_hand.owned(model).items():
            grad = ALPHA / RANK * whole[f"{name}.weight"]
            want |= {f"{name}.lora_A.{NAME}.weight": b.T @ grad, f"{name}.lora_B.{NAME}.weight": grad @ a.T}
    assert want.keys() == {name for name in got if not name.startswith("head.")}
    for name, grad in want.items():
        assert (got[name] - grad).abs().max() <= EXACT * max(1.0, grad.abs().max().item()), name


def spoken(run: Session, size: int) -> Pairs:
    """The last pair is held out."""
    words = run.model.tokenizer
    pairs = [
        Pair(f"p{n}", Question(str(n), film, text), words.decode(chosen), words.decode(rejected))
        for n, (film, text, chosen, rejected) in enumerate(ASKED)
    ]
    return Pairs(pairs[:-1], pairs[-1:], Video(frames=(2,)), 0, size, 120)


def test_the_reference_is_what_each_answer_alone_says(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of pairs to learn from and of held-out ones; later weights do not change it, and nothing is computed again."""
    run, log = session(model, Passes(answer_tokens=5)), silent()
    pairs, want = spoken(run, size=2), {}
    every = [*pairs.learned, *pairs.held]
    weights = by_hand.owned(model) if model.adapter else None
    for pair in every:
        prompt, ids = run.films.prompt(Look(pair.question)), ids_of(run, pair)  # type: ignore[arg-type]
        alone = model, level(run, prompt), prompt, ids
        with torch.no_grad():
            found = pair_step.states(*alone, weights, ALPHA / RANK, lead(model))
            want[pair.id] = [float(own.sum()) for own in pair_step.logprobs(model, ids, found)]
        assert all(own[-1] == model.end_ids[0] for own in ids)
    known = pairs.reference(run, tmp_path / "reference.jsonl", log)
    assert known.keys() == want.keys()
    for name, own in want.items():
        assert known[name] == pytest.approx(own, rel=EXACT)
    for item, pair in zip(pairs.items(run, every, log, known), every, strict=True):
        assert item.old is not None
        assert [sum(own) for own in item.old] == pytest.approx(list(known[pair.id]), rel=EXACT)
        assert all(len(own) == len(ids) for own, ids in zip(item.old, item.ids, strict=True))
    lines = (tmp_path / "reference.jsonl").read_text().splitlines()
    assert len(lines) == 3  # two pairs at once
    (tmp_path / "reference.jsonl").write_text("\n".join(lines[:2]) + "\n")
    real, asked = Pairs.logprobs, list[str]()
    monkeypatch.setattr(Pairs, "logprobs", lambda self, *a: asked.extend(p.id for p in a[1]) or real(self, *a))
    assert pairs.reference(run, tmp_path / "reference.jsonl", log) == known
    assert asked == [pair.id for pair in every[4:]]
    run.progress = Progress(step=3)
    assert pairs.reference(run, tmp_path / "reference.jsonl", log) == known
    assert asked == [pair.id for pair in every[4:]]
    (tmp_path / "reference.jsonl").unlink()
    with pytest.raises(UserError, match="the reference is gone"):  # with these weights it would be another
        pairs.reference(run, tmp_path / "reference.jsonl", log)


def test_the_longest_answer_is_of_both_sides_of_all_pairs() -> None:
    words, asked = tiny.tokenizer(), [Question(f"q{n}", None, "?") for n in range(2)]
    told: Any = SimpleNamespace(model=SimpleNamespace(tokenizer=words, end_ids=(words.eos_token_id,)))
    pairs = [Pair("0", asked[0], "a", "zzzz"), Pair("1", asked[1], "a user", "a"), Pair("2", asked[1], "a", "a")]
    given = longest_of(told, pairs, more=3)
    assert [given(question) for question in asked] == [
        3 + max(map(len, ids_of(told, pairs[0]))), 3 + len(ids_of(told, pairs[1])[0])
    ]  # fmt: skip


def test_pairs_on_one_film_are_neighbours(model: Any) -> None:
    """And every pair comes once in a pass, in passes of their own order."""
    run = session(model, Passes())
    pairs = Pairs([*(one := spoken(run, size=6)).held, *one.learned], [], Video(frames=(2,)), 3, 6, MANY)
    orders = []
    for step in range(4):
        run.progress = Progress(taken=6 * step)
        found = pairs.next(run)
        assert sorted(pair.id for pair in found) == [f"p{n}" for n in range(6)]
        films = [pair.question.video or pair.id for pair in found]
        assert len([film for film, _ in groupby(films)]) == len(set(films)) == 3
        orders.append([pair.id for pair in found])
    assert orders[0] != orders[1]


@pytest.mark.parametrize("kind", ["lora"], indirect=True)
def test_gradients_through_prefixes_are_drawn_by_film(model: Any, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scales: list[float] = []
    real = rows.backward
    monkeypatch.setattr(rows, "backward", lambda *given: scales.append(given[-2]) or real(*given))
    run = session(model, Passes(prefix_gradient=0.5, seed=6))
    run.progress = Progress(step=7)
    backward_items(run, items(run, scored=False), GOALS["dpo"], 1)
    assert scales == [run.passes.scale(7, film or str(number)) for number, (film, *_) in enumerate(ASKED)]
    assert {*scales} == {0.0, 2.0}
