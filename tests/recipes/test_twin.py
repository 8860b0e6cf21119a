"""What a step of a recipe is made of, against loops over single answers and tokens: gradient, count, rate, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.plain import training as plain
from tests.recipes.small import (
    BETAS,
    DECAY,
    FLOOR,
    HEAT,
    LR,
    MARGIN,
    NORM,
    OPTIM,
    ROWS,
    TOKENS,
    Stage,
    config,
    rows,
    same,
    stage,
    taught,
)

from longtake.errors import UserError
from longtake.recipes import difficulty, grpo, sft
from longtake.train import policy, supervised
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory

EXACT = 1e-10


@pytest.fixture(autouse=True)
def exact():
    """Rewards and draws in float64 too."""
    threads = torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(threads)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Stage:
    return stage(monkeypatch)


def rate(step: int, steps: int) -> float:
    """Warm-up over three steps times a line from 1 to FLOOR."""
    return LR * min(1, (step + 1) / 3) * (1 - (1 - FLOOR) * step / steps)


def check_update(made: Stage, optimizer: plain.PlainAdamW, at: int, count: float, lr: float) -> None:
    """Gradients lie in the network; everything else of the update follows from them."""
    real, grads = made.made[at], made.grads()
    assert real.before.keys() == grads.keys()  # the tower is not trained
    assert real.count == pytest.approx(count, rel=EXACT)
    assert real.lr == pytest.approx(lr, rel=EXACT)
    same(real.grads, grads, EXACT)
    after, norm = optimizer(real.before, grads, count, lr, NORM)
    assert norm > 2 * NORM  # the clip matters
    assert real.norm == pytest.approx(norm, rel=EXACT)
    same(real.after, after, EXACT)


@pytest.mark.parametrize("algorithm", ["longtake", "dr_grpo"])
def test_a_policy_step_is_what_plain_loops_make_of_it(made: Stage, tmp_path: Path, algorithm: str) -> None:
    """Off-policy, two passes of two mini-batches, at a temperature, with ragged answers and a length penalty."""
    made.run(grpo, config(tmp_path, algorithm))
    optimizer, at = plain.PlainAdamW(BETAS, DECAY), 0
    for step, answered in enumerate(made.answered):
        rewards = [[s.reward for s in own] for own in answered.scores]
        keep = plain.learned_from(algorithm, rewards, 4)
        assert len(keep) == (4 if algorithm == "dr_grpo" else 3)
        groups = [answered.groups[n] for n in keep]
        lengths = [[len(answer.ids) for answer in group.answers] for group in groups]
        assert len({k for own in lengths for k in own}) > 2
        shaped = plain.shaped(algorithm, [rewards[n] for n in keep], lengths, TOKENS, MARGIN)
        for _ in range(2):
            for part in (slice(0, 2), slice(2, 4)):
                made.put(made.made[at].before)
                plain.policy_gradients(made.model, made.level, algorithm, groups[part], shaped[part], HEAT)
                check_update(made, optimizer, at, plain.count(algorithm, lengths[part], TOKENS), rate(step, 2))
                at += 1
    assert at == len(made.made) == 8


@pytest.mark.parametrize("keep", ["graph", "layers"])
@pytest.mark.parametrize("algorithm", ["longtake", "dr_grpo"])
def test_one_forward_is_what_plain_loops_make_of_it(made: Stage, tmp_path: Path, algorithm: str, keep: str) -> None:
    """On-policy, on the rollout's own prefills, one question of each batch; answers one by one."""
    memory = Memory(row_tokens=1, answer_tokens=1, keep=keep)
    made.run(grpo, config(tmp_path, algorithm, epochs=1, minibatches=1, memory=memory))
    optimizer = plain.PlainAdamW(BETAS, DECAY)
    for step, (answered, real) in enumerate(zip(made.answered, made.made, strict=True)):
        rewards = [[s.reward for s in own] for own in answered.scores]
        keep_N = plain.learned_from(algorithm, rewards, 4)
        groups = [answered.groups[n] for n in keep_N]
        lengths = [[len(answer.ids) for answer in group.answers] for group in groups]
        learned = [rewards[n] for n in keep_N], lengths, TOKENS, MARGIN
        centred, shaped = plain.shaped("dr_grpo", *learned), plain.shaped(algorithm, *learned)
        scale = max(map(max, shaped)) / max(map(max, centred))
        made.put(real.before)
        plain.policy_gradients(made.model, made.level, algorithm, groups, centred, HEAT, on_policy=True)
        count, grads = plain.count(algorithm, lengths, TOKENS) / scale, made.grads()
        assert real.count == pytest.approx(count, rel=EXACT)
        same(real.grads, grads, EXACT)
        after, norm = optimizer(real.before, grads, count, rate(step, 2), NORM)
        assert real.norm == pytest.approx(norm, rel=EXACT)
        same(real.after, after, EXACT)


def test_answers_are_drawn_from_the_policy_and_say_how_likely_they_were(made: Stage, tmp_path: Path) -> None:
    made.run(grpo, config(tmp_path, "longtake", steps=1))
    made.put(made.made[0].before)
    (answered,) = made.answered
    for group in answered.groups:
        for answer in group.answers:
            given = made.model, made.level(group.prompt), group.prompt
            with torch.no_grad():
                assert plain.sampled(*given, answer.seed, HEAT, answer.ids, TOKENS) == answer.ids
                want = plain.logprobs(*given, answer.ids, HEAT)
            assert answer.logprob == pytest.approx(want.tolist(), abs=EXACT)
            ended = [token in made.model.end_ids for token in answer.ids]
            assert not any(ended[:-1])
            assert ended[-1] or len(ended) == TOKENS
            assert answer.finish == ("stop" if ended[-1] else "length")
            assert answer.text == made.model.tokenizer.decode(answer.ids[: -1 if ended[-1] else None])


@pytest.mark.parametrize(
    ("recipe", "name"), [(grpo, "backward_kept"), (grpo, "backward_groups"), (sft, "backward_items")]
)
def test_five_steps_without_a_finite_gradient_end_the_run(
    made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: Any, name: str
) -> None:
    owner = policy if recipe is grpo else supervised
    real = getattr(owner, name)

    def broken(session: Any, *rest: Any, **named: Any) -> Any:
        found = real(session, *rest, **named)
        session.params[0].grad[0, 0] = torch.nan
        return found

    monkeypatch.setattr(owner, name, broken)
    once = {"epochs": 1, "minibatches": 1} if name == "backward_kept" else {}
    given = config(tmp_path, "longtake", steps=9, **once)
    if recipe is sft:
        given = sft.Config(rows=rows(tmp_path, taught()), model="tiny", out=tmp_path / "run", steps=9, batch=3)
    with pytest.raises(UserError, match="5 steps in a row"):
        made.run(recipe, given)
    assert len(made.made) == 5
    same(made.weights(), made.made[0].before, 0.0)


def test_difficulty_counts_right_answers_at_its_temperature(
    made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of six answers to every question, drawn at HEAT, those of an even number of letters are right."""
    monkeypatch.setattr("longtake.train.rollout.accuracy", lambda text, _: float(len(text) % 2 == 0))
    texts = {row["id"]: row | {"answer": "x"} for row in ROWS}
    run = difficulty.Config(
        rows=rows(tmp_path, list(texts.values())), model="tiny", out=tmp_path / "run", answers=6, temperature=HEAT,
        max_tokens=4, batch=3, dtype="float64", seed=5,
    )  # fmt: skip
    done = made.run(difficulty, run)
    assert [len(call) for call in made.draws] == [3, 1]
    draws = [draw for call in made.draws for own in call for draw in own]
    assert {draw.temperature for draw in draws} == {HEAT}
    assert len({draw.seed for draw in draws}) == 24
    rates = [sum(len(a.text) % 2 == 0 for a in group.answers) / 6 for call in made.groups for group in call]
    assert len(set(rates)) > 1
    assert done["pass_rate"] == pytest.approx(sum(rates) / 4)
    assert sum(done["histogram"].values()) == 4
    assert done["histogram"].keys() == {f"{rate:.2f}" for rate in rates}


def test_a_supervised_step_is_what_plain_loops_make_of_it(
    made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = supervised.backward_items

    def spied(session: Any, items: Any, *rest: Any) -> Any:
        made.batches.append(items)
        return real(session, items, *rest)

    monkeypatch.setattr(supervised, "backward_items", spied)
    run = sft.Config(
        rows=rows(tmp_path, taught()), model="tiny", out=tmp_path / "run", steps=3, batch=3, dtype="float64",
        optim=OPTIM, memory=Memory(row_tokens=120), shuffle=False, adapter=Adapter(kind="full"),
    )  # fmt: skip
    made.run(sft, run)
    want = [["q0", "q1", "q2"], ["q3", "q0", "q1"], ["q2", "q3", "q0"]]
    assert [[item.prompt.id for item in batch] for batch in made.batches] == want
    optimizer = plain.PlainAdamW(BETAS, DECAY)
    for at, batch in enumerate(made.batches):
        made.put(made.made[at].before)
        items = [(item.prompt, item.ids, item.weights) for item in batch]
        count = plain.supervised_gradients(made.model, made.level, items)
        check_update(made, optimizer, at, count, rate(at, 3))
    weights = {item.prompt.id: item.weights for item in made.batches[0] + made.batches[1]}
    assert {weight for own in weights["q2"] for weight in own} == {3.0}
    assert {weight for own in weights["q3"] for weight in own} == {2.0}
    end = made.model.end_ids[0]
    assert all(ids[-1] == end for batch in made.batches for item in batch for ids in item.ids)
    words = made.model.tokenizer
    pieces = [len(words(text)["input_ids"]) for text in ("<think> s0", "left", "so left")]
    assert weights["q0"][1] == (0.0,) * pieces[0] + (1.0,) * pieces[1] + (0.5,) * (pieces[2] + 1)
