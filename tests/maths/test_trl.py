"""Losses of pairs and of reward models equal TRL's, gradients and watched numbers too (run by bench/trl_losses.py)."""

from functools import partial
from pathlib import Path

import pytest
import torch

from longtake.log import read_json
from longtake.maths import loss, reward

NEAR = 1e-6  # relative
MEASURED = read_json(Path(__file__).parents[2] / "bench/results/trl_losses.json")
GIVEN, FOUND = MEASURED["in"], MEASURED["out"]
LOSSES = {"dpo": loss.dpo, "ipo": loss.ipo, "simpo": loss.simpo, "dpo_without_reference": loss.dpo}
CASES = [(kind, case) for kind in LOSSES for case in FOUND[kind]]


def flat(answers):
    return torch.tensor([x for answer in answers for x in answer], dtype=torch.float64)


def compared(terms, leaf, case):
    """Means over pairs, as TRL's."""
    assert float(terms.total.detach() / terms.count) == pytest.approx(case["loss"], rel=NEAR)
    gradient = torch.autograd.grad(terms.total / terms.count, leaf)[0]
    return gradient.tolist()


def test_the_file_holds_what_is_compared():
    assert MEASURED["versions"]["trl"] == "1.16.0"
    assert len(CASES) == 8
    assert len(FOUND["reward"]) == 4
    assert len({case["loss"] for _, case in CASES}) == 8


@pytest.mark.parametrize(("kind", "case"), CASES)
def test_pairs(kind, case):
    logprob = flat(GIVEN["policy"]).requires_grad_()
    old = torch.zeros_like(logprob) if kind == "dpo_without_reference" else flat(GIVEN["reference"])
    answer = torch.tensor([place for place, tokens in enumerate(GIVEN["policy"]) for _ in tokens])
    terms = partial(LOSSES[kind], **case["knobs"])(logprob, old, torch.ones_like(logprob).detach(), answer)
    gradient = compared(terms, logprob, case)
    assert gradient == pytest.approx(flat(case["gradient"]).tolist(), rel=NEAR)
    means = {key: float(value / terms.count) for key, value in terms.watched.items()}
    for side in ("chosen", "rejected") if kind != "ipo" else ():  # TRL watches the sum there, its loss is of the mean
        assert means[side] == pytest.approx(case[f"rewards/{side}"], rel=NEAR)
    if kind == "dpo":
        assert means["margin"] == pytest.approx(case["rewards/margins"], rel=NEAR)
        assert means["right"] == pytest.approx(case["rewards/accuracies"], rel=NEAR)


@pytest.mark.parametrize("case", FOUND["reward"])
def test_reward_models(case):
    score = torch.tensor(GIVEN["scores"], dtype=torch.float64, requires_grad=True)
    margin = torch.tensor(GIVEN["margins"], dtype=torch.float64) if case["knobs"]["margin"] else None
    terms = reward.bradley_terry(score, margin_P=margin, centring=case["knobs"]["centring"] or 0.0)
    assert compared(terms, score, case) == pytest.approx(case["gradient"], rel=NEAR)
    means = {key: float(value / terms.count) for key, value in terms.watched.items()}
    assert (means["right"], means["margin"]) == pytest.approx((case["accuracy"], case["margin"]), rel=NEAR)
