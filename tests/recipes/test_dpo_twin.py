"""A step of DPO as the recipe runs it against two rows a pair: reference, gradient, count, rate, weights, metrics."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.plain import adapters as by_hand
from tests.plain import pair_step
from tests.plain import preference as plain
from tests.plain.training import PlainAdamW, single
from tests.recipes.small import BETAS, DECAY, FLOOR, LR, NORM, OPTIM, ROWS, Stage, same, stage
from tests.world import write

from longtake.log import read_jsonl
from longtake.models.adapters import NAME
from longtake.recipes import dpo
from longtake.records import Pair
from longtake.runtime.rows import lead
from longtake.train import preference
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory

EXACT = 1e-10
TOLD = 1e-6  # what metrics.jsonl keeps of a number
RANK, ALPHA = 4, 8.0
SPLIT = 0  # a seed that holds out half of the films
BETA, SMOOTHING, GAMMA = 0.7, 0.1, 0.3
SAID = ((0, "left", "the right one"), (1, "four", "5"), (0, "so left", "?"), (2, "nobody", "he did"), (3, "late", "no"))
PLAIN = {
    "dpo": (partial(plain.dpo, beta=BETA, smoothing=SMOOTHING), plain.dpo_rewards),
    "ipo": (partial(plain.ipo, beta=BETA), plain.ipo_rewards),
    "simpo": (partial(plain.simpo, beta=BETA, margin=GAMMA), plain.simpo_rewards),
}
CASES = [("dpo", "lora"), ("dpo", "alora"), ("ipo", "full"), ("simpo", "lora")]


@pytest.fixture(autouse=True)
def exact():
    """As in test_twin."""
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Stage:
    monkeypatch.setattr(preference, "decode", lambda films, questions, *_, **__: list(questions))
    return stage(monkeypatch)


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[list[Pair]]:
    """Pairs of each step."""
    steps: list[list[Pair]] = []
    real = preference.Pairs.next
    monkeypatch.setattr(preference.Pairs, "next", lambda *given: steps.append(real(*given)) or steps[-1])
    return steps


def config(tmp_path: Path, loss: str, kind: str, **changed: Any) -> dpo.Config:
    rows = []
    for number, (question, chosen, rejected) in enumerate(SAID):
        asked = {"prompt": ROWS[question]["messages"], "question_id": f"q{question}", "id": f"p{number}"}
        asked |= {"data_type": "text"} if question == 1 else {}
        said = {"chosen": chosen, "rejected": rejected}
        rows.append(asked | {name: [{"role": "assistant", "content": text}] for name, text in said.items()})
    own = {"dpo": {"smoothing": SMOOTHING}, "ipo": {}, "simpo": {"gamma": GAMMA}}[loss]
    given = {
        "rows": write(tmp_path / "pairs.jsonl", rows), "model": "tiny", "out": tmp_path / "run", "loss": loss,
        "beta": BETA, "epochs": 2.0, "batch": 2, "held_out": 0.0, "dtype": "float64", "optim": OPTIM, "seed": 5,
        "adapter": Adapter(kind=kind) if kind == "full" else Adapter(kind=kind, rank=RANK, alpha=ALPHA),
        "memory": Memory(row_tokens=120, answer_tokens=14),
    }  # fmt: skip
    return dpo.Config(**given | own | changed)


def alone(made: Stage, pair: Pair, layers: Any) -> tuple[Any, list[torch.Tensor]]:
    """(token ids, log-probabilities) of both answers, each behind its own prompt."""
    model, tokenizer = made.model, made.model.tokenizer
    prompt = made.prompt(SimpleNamespace(question=pair.question))
    ids = [(*tokenizer(text)["input_ids"], model.end_ids[0]) for text in (pair.chosen, pair.rejected)]
    found = pair_step.states(model, made.level(prompt), prompt, ids, layers, ALPHA / RANK, lead(model))
    return ids, pair_step.logprobs(model, ids, found)


def reference(made: Stage, pairs: list[Pair]) -> dict[str, list[list[float]]]:
    """Log-probabilities at the start as rows hold them: spread evenly, in float32."""
    made.put(made.made[0].before)
    layers, found = (by_hand.owned(made.model) if made.model.adapter else None), {}
    for pair in pairs:
        with torch.no_grad():
            _, logprob = alone(made, pair, layers)
        found[pair.id] = [[single(float(own.sum()) / len(own))] * len(own) for own in logprob]
    return found


@pytest.mark.parametrize(("loss", "kind"), CASES)
def test_a_step_is_what_two_rows_make_of_every_pair(
    made: Stage, walked: list[list[Pair]], tmp_path: Path, loss: str, kind: str
) -> None:
    """Two epochs of five pairs by two; two on one film, one without any."""
    given = config(tmp_path, loss, kind)
    made.run(dpo, given)
    assert [len(step) for step in walked] == [2] * 5
    seen = [pair.id for step in walked for pair in step]
    assert sorted(seen) == sorted(2 * [f"p{n}" for n in range(5)])
    known, (of, rewards) = reference(made, [pair for step in walked for pair in step]), PLAIN[loss]
    optimizer, told = PlainAdamW(BETAS, DECAY), read_jsonl(given.out / "metrics.jsonl")
    for step, (pairs, real, row) in enumerate(zip(walked, made.made, told, strict=True)):
        made.put(real.before)
        layers = by_hand.owned(made.model) if kind != "full" else None
        total, watched = torch.zeros(()), torch.zeros(2)
        for pair in pairs:
            _, logprob = alone(made, pair, layers)
            total = total + pair_step.loss(of, logprob, known[pair.id])
            both = [
                list(zip(own, map(torch.tensor, ref), strict=True))
                for own, ref in zip(logprob, known[pair.id], strict=True)
            ]
            watched += torch.stack([rewards(tokens, BETA).detach() for tokens in both])
        total.backward()
        grads = made.grads()
        for layer, (a, b) in (layers or {}).items():
            grads |= {f"{layer}.lora_A.{NAME}.weight": a.grad, f"{layer}.lora_B.{NAME}.weight": b.grad}
        same(real.grads, grads, EXACT)
        assert real.count == len(pairs)
        after, norm = optimizer(
            real.before, grads, 2.0, LR * min(1, (step + 1) / 3) * (1 - (1 - FLOOR) * step / 5), NORM
        )
        same(real.after, after, EXACT)
        want = {"loss": total.item() / 2, "grad_norm": norm, "reward_chosen": watched[0] / 2, "tokens": 0.0}
        want |= {"reward_rejected": watched[1] / 2, "margin": (watched[0] - watched[1]) / 2}
        want["tokens"] = float(sum(len(ids) for pair in pairs for ids in alone(made, pair, layers)[0]))
        assert {name: row[name] for name in want} == pytest.approx(
            {k: float(x) for k, x in want.items()}, rel=TOLD, abs=TOLD
        )
    assert norm > 2 * NORM


@pytest.mark.parametrize("loss", list(PLAIN))
def test_held_out_pairs_are_looked_at_with_the_rewards_of_the_loss(
    made: Stage, walked: list[list[Pair]], tmp_path: Path, loss: str
) -> None:
    """By the last weights, of films that no step has seen; a tie would be half right."""
    held: dict[str, Pair] = {}
    real = preference.Pairs.logprobs

    def noted(self: Any, session: Any, pairs: list[Pair], log: Any) -> Any:
        held.update({pair.id: pair for pair in pairs if pair in self.held})
        return real(self, session, pairs, log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preference.Pairs, "logprobs", noted)
        given = config(tmp_path, loss, "lora", held_out=0.5, epochs=1.0, seed=SPLIT)
        done = made.run(dpo, given)
    assert done["held_out"] == len(held) > 1
    learned = [pair for step in walked for pair in step]
    assert not {pair.question.video or pair.id for pair in learned} & {p.question.video or p.id for p in held.values()}
    rewards, known = PLAIN[loss][1], reference(made, list(held.values()))
    made.put(made.made[-1].after)
    layers, margins = by_hand.owned(made.model), []
    for pair in held.values():
        _, logprob = alone(made, pair, layers)
        both = [
            list(zip(own, map(torch.tensor, ref), strict=True))
            for own, ref in zip(logprob, known[pair.id], strict=True)
        ]
        chosen, rejected = (float(rewards(tokens, BETA).detach()) for tokens in both)
        margins.append(chosen - rejected)
    assert done["margin"] == pytest.approx(sum(margins) / len(margins), rel=TOLD, abs=TOLD)
    assert done["accuracy"] == sum(margin > 0 for margin in margins) / len(margins)
    (*_, row) = read_jsonl(given.out / "metrics.jsonl")
    assert row["held_margin"] == pytest.approx(done["margin"], rel=TOLD)
    assert row["held_accuracy"] == done["accuracy"]
