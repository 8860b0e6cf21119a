"""What a step draws: answers, questions until enough groups differ, and the prefixes that have a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.recipes.small import HEAT, Stage, config, rows, stage, taught

from longtake.parallel.ranks import ONE
from longtake.recipes import grpo, sft
from longtake.train import policy
from longtake.train import rows as learning
from longtake.train.adapter_settings import Adapter
from longtake.train.memory import Memory
from longtake.train.step import Passes


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
    return stage(monkeypatch)


def test_no_two_answers_share_their_randomness(made: Stage, tmp_path: Path) -> None:
    """Rewards are equal, so more questions are drawn: in each step four times two, every one of the four twice."""
    (tmp_path / "same.py").write_text("def score(text, row):\n    return 1.0\n")
    reward = (f"{tmp_path / 'same.py'}:score",)
    made.run(grpo, config(tmp_path, "longtake", reward=reward, questions=2, refill=3))
    for answered in made.answered:
        names = [look.question.id for look in answered.looks]
        assert sorted(names[:4]) == sorted(names[4:]) == ["q0", "q1", "q2", "q3"]
    made.run(grpo, config(tmp_path, "longtake", reward=reward, steps=1, out=tmp_path / "other", seed=6))
    draws = [draw for call in made.draws for own in call for draw in own]
    assert len(draws) == 2 * 8 * 3 + 4 * 3
    assert len({draw.seed for draw in draws}) == len(draws)
    assert {draw.temperature for draw in draws} == {HEAT}
    assert made.made == []  # nothing to learn: no step is made


@pytest.mark.parametrize("epochs", [1, 2])
def test_refills_end_when_enough_groups_differ_and_no_more_are_learned_from(
    made: Stage, tmp_path: Path, epochs: int
) -> None:
    given = config(tmp_path, "dapo", steps=4, questions=2, refill=3, epochs=epochs, minibatches=1, overlong=0)
    made.run(grpo, given)
    more = 0
    for step, answered in enumerate(made.answered):
        differ = [len({score.reward for score in own}) > 1 for own in answered.scores]
        assert len(differ) == next(n for n in (2, 4, 6, 8) if sum(differ[:n]) >= 2)
        groups = [group for group, kept in zip(answered.groups, differ, strict=True) if kept]
        more += len(groups) > 2
        for update in made.made[epochs * step : epochs * (step + 1)]:
            assert update.count == sum(len(answer.ids) for group in groups[:2] for answer in group.answers)
    assert more
    assert len(made.made) == 4 * epochs


@pytest.mark.parametrize("epochs", [1, 2])
def test_gradients_through_prefixes_are_drawn_for_every_step_and_prefix(
    made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """Where rewards come first, the same in every pass; what has nothing to teach goes through nothing."""
    real, calls = policy.backward, []

    def spied(
        model: Any,
        features: Any,
        row: Any,
        objective: Any,
        passes: Any,
        kept: Any = None,
        scale: float = 1.0,
        ranks: Any = ONE,
    ):
        calls.append((scale, kept and kept.keep, len(row.target_R)))
        return real(model, features, row, objective, passes, kept, scale, ranks)

    monkeypatch.setattr(policy if epochs == 1 else learning, "backward", spied)
    memory = Memory(row_tokens=1 if epochs > 1 else 10**4)
    made.run(
        grpo, config(tmp_path, "longtake", epochs=epochs, minibatches=1, memory=memory, prefix_gradient=0.5, seed=6)
    )
    assert len(calls) == 2 * 3 * epochs
    assert all(tokens for *_, tokens in calls)
    drawn = Passes(prefix_gradient=0.5, seed=6)
    for step, at in enumerate((0, 3 * epochs)):
        scales = [scale for scale, *_ in calls[at : at + 3 * epochs]]
        assert scales == scales[:3] * epochs
        assert sorted(scales[:3]) == sorted(drawn.scale(step, name) for name in ("a.mp4", "q1", "c.mp4"))
        assert {*scales} == {0.0, 2.0} or step
    if epochs == 1:
        assert [keep for _, keep, _ in calls] == ["graph" if scale else "nothing" for scale, *_ in calls]


def test_supervised_learning_draws_prefixes_too(made: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, scales = learning.backward, []
    monkeypatch.setattr(learning, "backward", lambda *given: scales.append(given[-2]) or real(*given))
    run = sft.Config(
        rows=rows(tmp_path, taught()), model="tiny", out=tmp_path / "run", steps=2, batch=2, dtype="float64", seed=9,
        memory=Memory(row_tokens=1), shuffle=False, prefix_gradient=0.5, adapter=Adapter(kind="full"),
    )  # fmt: skip
    made.run(sft, run)
    drawn = Passes(prefix_gradient=0.5, seed=9)
    assert scales == [drawn.scale(step, name) for step, name in ((0, "a.mp4"), (0, "q1"), (1, "b.mp4"), (1, "c.mp4"))]
    assert {*scales} == {0.0, 2.0}
