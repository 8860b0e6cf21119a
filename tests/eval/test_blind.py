"""Blind scores: on made files whose leak is known, and on the benchmarks of the field where they are at hand."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longtake.errors import UserError
from longtake.eval.blind import report
from longtake.eval.blind_table import table
from longtake.eval.surface import FEATURES, Choice, features, fit, guesses

SHARED = Path(__file__).parents[2].parent / "shared" / "data" / "benchmarks"
POINT = 0.01
WORDS = ["cup", "ball", "red", "left", "man", "dog", "runs", "jumps", "house", "tree", "under", "over", "car", "blue"]


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def made(count: int, seed: int, long_gold: float = 0.0, kind: str = "") -> list[dict[str, Any]]:
    """Rows with four random options; a share of them has a gold option of twice the length."""
    draw = random.Random(seed)
    rows = []
    for number in range(count):
        gold = draw.randrange(4)
        options = [" ".join(draw.choices(WORDS, k=4)) for _ in range(4)]
        if draw.random() < long_gold:
            options[gold] += " " + " ".join(draw.choices(WORDS, k=6))
        row = {"id": f"{kind}{number}", "problem": "where is it ?", "options": options, "answer": "ABCD"[gold]}
        rows.append(row | {"video": "a.mp4", "kind": kind})
    return rows


def test_file_without_a_leak(tmp_path: Path) -> None:
    numbers = report(written(tmp_path, made(400, seed=0)))["all"]
    assert numbers["chance"] == 0.25
    low, high = numbers["surface"]["interval"]
    assert low < 0.25 < high
    assert numbers["surface"]["accuracy"] == pytest.approx(np.mean(numbers["surface"]["seeds"]))


def test_long_right_options_are_found(tmp_path: Path) -> None:
    rows = made(200, seed=1, long_gold=1.0, kind="long") + made(200, seed=2, kind="even")
    found = report(written(tmp_path, rows))
    assert found["by_kind"]["long"]["longest"]["accuracy"] == 1.0
    assert found["by_kind"]["long"]["surface"]["accuracy"] > 0.95
    assert found["by_kind"]["even"]["surface"]["accuracy"] < 0.4
    assert found["by_kind"]["long"]["n"] == 200
    assert "longest option" in table(found)


def test_majority_letter_and_ties(tmp_path: Path) -> None:
    rows = [{"id": i, "question": "?", "options": ["aa", "bb", "c"], "answer": "A" if i else "B"} for i in range(10)]
    found = report(written(tmp_path, rows))
    assert found["letters"] == {"A": 9, "B": 1}
    assert found["all"]["letter"] == "A"
    assert found["all"]["majority"]["accuracy"] == 0.9
    assert found["all"]["longest"]["accuracy"] == 0.5  # two options are longest and share the credit
    assert found["all"]["chance"] == pytest.approx(1 / 3)
    assert found["all"]["surface"] is None
    assert "Too few rows" in table(found)


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    good = {"question": "?", "options": ["a", "b"], "answer": "A"}
    rows = [
        good,
        {"question": "how many ?", "answer": "7"},
        {**good, "answer": None},
        {**good, "options": ["a", ""]},
        {**good, "options": ["a", "a"]},
        {**good, "answer": "E"},
        {"id": "x", "nothing": 1},
    ]
    found = report(written(tmp_path, rows))
    assert found["rows"] == 7
    assert found["excluded"] == {"no options": 1, "no answer": 1}
    assert [(row["row"], row["id"]) for row in found["malformed"]] == [(4, "rows-4"), (6, "rows-6"), (7, "x")]
    assert (found["all"]["n"], found["clean"]["n"], found["same_option_twice"]) == (4, 2, 1)
    assert found["by_position"] is None
    text = table(found)
    assert "1 left out: no options" in text
    assert "row 4 (id rows-4): option B is empty" in text
    json.dumps(found, allow_nan=False)


def test_letters_are_read_from_labels_not_places(tmp_path: Path) -> None:
    rows = [
        {"question": "?", "options": ["B. short", "A. much longer"], "answer": "A"},
        {"question": "?", "options": ["a", "b"], "answer": "A"},
    ]
    found = report(written(tmp_path, rows))
    assert found["out_of_order"] == 1
    assert found["all"]["longest"]["accuracy"] == 0.75
    assert found["by_position"]["longest"]["accuracy"] == 0.25


def test_nothing_to_judge(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no multiple-choice row"):
        report(written(tmp_path, [{"question": "how many ?", "answer": "7"}]))


def test_seed_decides_the_folds(tmp_path: Path) -> None:
    path = written(tmp_path, made(100, seed=3))
    assert report(path, 5) == report(path, 5)
    assert report(path, 5)["all"]["surface"]["seeds"] != report(path, 9)["all"]["surface"]["seeds"]


def test_features_are_finite_and_named() -> None:
    one = features(Choice("?", ("", "", ""), ("A", "B", "C"), "A"))
    assert one.shape == (3, len(FEATURES))
    assert np.isfinite(one).all()


def test_fit_is_where_the_gradient_vanishes() -> None:
    """Against numerical differentiation of the penalised likelihood, written out row by row."""
    draw = np.random.default_rng(0)
    x_NOW, real_NO = draw.normal(size=(20, 3, 4)), np.ones((20, 3), bool)
    real_NO[::4, 2] = False
    x_NOW[~real_NO] = 0.0
    right_NO = np.eye(3, dtype=bool)[draw.integers(0, 2, size=20)]

    def loss(weight_W: np.ndarray) -> float:
        total = 0.5 * float(weight_W @ weight_W)
        for n in range(20):
            scores = [float(x_NOW[n, o] @ weight_W) for o in range(3) if real_NO[n, o]]
            total -= float(x_NOW[n, right_NO[n].argmax()] @ weight_W) - float(np.log(np.sum(np.exp(scores))))
        return total

    weight_W = fit(x_NOW, real_NO, right_NO)
    step = 1e-5
    for w in range(4):
        nudge = np.eye(4)[w] * step
        assert (loss(weight_W + nudge) - loss(weight_W - nudge)) / (2 * step) == pytest.approx(0.0, abs=1e-6)


def test_row_without_its_right_option_is_never_hit() -> None:
    rows = [Choice("?", ("a", "bb"), ("A", "B"), "B") for _ in range(20)] + [Choice("?", ("a", "bb"), ("A", "A"), "C")]
    assert guesses(rows, 0).tolist() == [True] * 20 + [False]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not here")
@pytest.mark.parametrize(
    ("name", "rows", "majority", "longest", "surface"),
    [("lvbench", 1492, 0.264, 0.295, 0.294), ("mlvu-dev", 2174, 0.252, 0.347, 0.35)],
)
def test_benchmarks(name: str, rows: int, majority: float, longest: float, surface: float) -> None:
    numbers = report(SHARED / f"{name}.json")["all"]
    assert numbers["n"] == rows
    assert numbers["majority"]["accuracy"] == pytest.approx(majority, abs=0.1 * POINT)
    assert numbers["longest"]["accuracy"] == pytest.approx(longest, abs=0.2 * POINT)
    assert numbers["surface"]["accuracy"] == pytest.approx(surface, abs=POINT)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the benchmark files are not here")
def test_longvideo_reason_by_label_and_by_position() -> None:
    """155 rows list their options out of order: read by position they give the blind numbers that others measured."""
    found = report(SHARED / "longvideoreason.json")
    assert (found["all"]["n"], found["clean"]["n"], found["out_of_order"]) == (851, 807, 155)
    assert found["all"]["majority"]["accuracy"] == pytest.approx(0.447, abs=0.1 * POINT)
    assert found["by_position"]["longest"]["accuracy"] == pytest.approx(0.463, abs=0.1 * POINT)
    assert found["by_position"]["surface"]["accuracy"] == pytest.approx(0.513, abs=POINT)
    assert found["all"]["longest"]["accuracy"] == pytest.approx(0.523, abs=0.1 * POINT)
    assert found["all"]["surface"]["accuracy"] == pytest.approx(0.544, abs=POINT)
