"""What a reward model says of held-out pairs: shares, calibration, length and truth, counted by hand."""

from __future__ import annotations

import math

import pytest

from longtake.records import Pair, Question
from longtake.train.ranking import Ranked, measured

CHOICE = Question("q", None, "where ?", ("left", "right"), "B")
RIGHT, WRONG = "<answer> B </answer>", "<answer> A </answer>"


def one(
    chosen: float, rejected: float, tokens: tuple[int, int] = (5, 5), source: str = "judge", swapped: bool | None = None
) -> Ranked:
    """swapped: whether the wrong answer was preferred; None = no answer is known to be right."""
    texts = (WRONG, RIGHT) if swapped else (RIGHT, WRONG)
    question = Question("o", None, "why ?") if swapped is None else CHOICE
    return Ranked(Pair("p", question, *texts), source, chosen, rejected, tokens)


def test_accuracy_with_ties_and_by_source() -> None:
    found = measured([one(2.0, 1.0), one(0.0, 3.0), one(1.0, 1.0, source="human"), one(4.0, 0.0, source="human")])
    assert (found["accuracy"], found["n"]) == (2.5 / 4, 4)
    assert found["by_source"] == {"human": {"accuracy": 0.75, "n": 2}, "judge": {"accuracy": 0.5, "n": 2}}
    assert found["mean_score"] == pytest.approx(12 / 8)
    low, high = found["accuracy_interval"]
    assert 0 < low < 0.5 < high < 1


def test_confidence_is_compared_with_what_was_right() -> None:
    """A lead of log 3 claims 75 %, either way round."""
    lead = math.log(3)
    found = measured([one(lead, 0.0)] * 3 + [one(0.0, lead)] + [one(9.0, 0.0)] * 2)["calibration"]
    (sure,) = (b for b in found["bins"] if b["low"] <= 0.75 < b["high"])
    assert (sure["n"], sure["right"]) == (4, 0.75)
    assert sure["predicted"] == pytest.approx(0.75)
    certain = found["bins"][-1]
    assert (certain["n"], certain["right"]) == (2, 1.0)
    assert found["error"] == pytest.approx((2 * (1 - certain["predicted"])) / 6)


def test_how_far_scores_follow_lengths() -> None:
    follows = [one(2.0 + k, 1.0 + k, (20 + 10 * k, 10 + 10 * k)) for k in range(4)]
    found = measured(follows)
    assert found["length_correlation"] == found["length"]["score"]["value"] == pytest.approx(1.0)
    assert found["length"]["difference"] is None  # all alike
    assert (found["length"]["longer_chosen"], found["length"]["longer_scored_higher"]) == (1.0, 1.0)
    mixed = measured([one(1.0, 0.0, (9, 3)), one(0.0, 1.0, (9, 3)), one(1.0, 0.0, (3, 8)), one(5.0, 0.0, (4, 4))])
    assert mixed["length"]["longer_chosen"] == pytest.approx(2 / 3)
    assert mixed["length"]["longer_scored_higher"] == pytest.approx(1 / 3)
    assert mixed["length"]["pairs"] == 3
    lengths = [one(score, 0.0, (5 + longer, 5)) for score, longer in ((3.0, 6), (1.0, 1), (2.0, 3), (-1.0, -4))]
    assert measured(lengths)["length"]["difference"]["value"] > 0.9


def test_truth_of_labels_and_of_scores() -> None:
    """Of six pairs with one right answer, in three the wrong one was preferred; the model follows two of these."""
    misled = [one(1.0, 0.0, swapped=True)] * 2 + [one(0.0, 1.0, swapped=True)]
    found = measured([one(1.0, 0.0, swapped=False)] * 3 + misled + [one(1.0, 0.0)])
    assert found["truth"] == {"accuracy": pytest.approx(4 / 6), "labels": 3 / 6, "n": 6}
    assert measured([one(1.0, 0.0)])["truth"] is None


def test_nothing_was_held_out() -> None:
    assert measured([]) == {"accuracy": None, "n": 0, "length_correlation": None}
