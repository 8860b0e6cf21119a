"""A model that answers multiple choice from the wording of the options alone: what no film is needed for.

Conditional logit: every option gets a score linear in its surface features, the row's answer is a softmax over its
options. Fitted by Newton's method on four fifths of the rows, asked on the rest.
N questions, O options (padded), W features.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5
STRENGTH = 1.0  # of the L2 penalty, on standardised features
STEPS = 25  # of Newton; it settles in about six
SETTLED = 1e-6
WORD = re.compile(r"\w+")
ABSOLUTE = re.compile(r"\b(?:all|none|both|only|never|always|not)\b")
FEATURES = (
    *(
        "is A",
        "is B",
        "is C",
        "is D or later",
        "log length",
        "length against the mean",
        "longest",
        "shortest",
        "rank of length",
    ),
    *("words shared with the question", "words shared with other options", "digits", "commas", "absolute words"),
)


@dataclass(frozen=True, slots=True)
class Choice:
    """A multiple-choice row as a blind guesser sees it, and the truth.

    Example: Choice("Where is the ball?", ("left", "right"), ("A", "B"), "B", "spatial").
    """

    question: str
    options: tuple[str, ...]
    labels: tuple[str, ...]  # letter of each option; malformed rows may have one twice
    answer: str
    kind: str = ""


def features(choice: Choice) -> np.ndarray:
    """[O, W] numbers that need neither film nor language model, named in FEATURES."""
    words = [set(WORD.findall(option.lower())) for option in choice.options]
    asked = set(WORD.findall(choice.question.lower()))
    length = np.array([len(option) for option in choice.options], float)
    rank = np.argsort(np.argsort(-length, kind="stable"), kind="stable") / max(len(length) - 1, 1)
    rows = []
    for place, (option, label) in enumerate(zip(choice.options, choice.labels, strict=True)):
        mine = words[place]
        shared = [len(mine & other) / max(len(mine | other), 1) for o, other in enumerate(words) if o != place]
        rows.append(
            [
                *(label == "A", label == "B", label == "C", label >= "D"),
                np.log1p(length[place]),
                length[place] / max(length.mean(), 1.0) - 1.0,
                length[place] == length.max(),
                length[place] == length.min(),
                rank[place],
                len(mine & asked) / max(len(mine), 1),
                sum(shared) / max(len(shared), 1),
                any(character.isdigit() for character in option),
                option.count(",") + option.count(";"),
                bool(ABSOLUTE.search(option.lower())),
            ]
        )
    return np.array(rows, float)


def guesses(choices: Sequence[Choice], seed: int) -> np.ndarray:
    """[N] bool, whether the model named the right letter of each row while that row was held out."""
    x_NOW, real_NO, right_NO = _padded(choices)
    fold_N = np.random.default_rng(seed).permutation(len(choices)) % FOLDS
    hit_N = np.zeros(len(choices), bool)
    known_N = right_NO.any(axis=1)  # a malformed row may offer no right option: nothing to learn from
    for fold in range(FOLDS):
        learn_N, ask_N = (fold_N != fold) & known_N, fold_N == fold
        weight_W = fit(x_NOW[learn_N], real_NO[learn_N], right_NO[learn_N])
        score_NO = np.where(real_NO[ask_N], x_NOW[ask_N] @ weight_W, -np.inf)
        hit_N[ask_N] = right_NO[ask_N][np.arange(ask_N.sum()), score_NO.argmax(axis=1)]
    return hit_N


def fit(x_NOW: np.ndarray, real_NO: np.ndarray, right_NO: np.ndarray) -> np.ndarray:
    """[W] weights with the highest penalised likelihood; several right options share the probability of one."""
    target_NO = right_NO / right_NO.sum(axis=1, keepdims=True)
    weight_W = np.zeros(x_NOW.shape[2])
    for _ in range(STEPS):
        score_NO = np.where(real_NO, x_NOW @ weight_W, -np.inf)
        p_NO = np.exp(score_NO - score_NO.max(axis=1, keepdims=True)) if len(score_NO) else score_NO
        p_NO = p_NO / p_NO.sum(axis=1, keepdims=True)
        gradient_W = np.einsum("no,now->w", p_NO - target_NO, x_NOW) + STRENGTH * weight_W
        mean_NW = np.einsum("no,now->nw", p_NO, x_NOW)
        flat = x_NOW.reshape(-1, x_NOW.shape[2])
        hessian_WW = (flat * p_NO.reshape(-1, 1)).T @ flat - mean_NW.T @ mean_NW + STRENGTH * np.eye(len(weight_W))
        step_W = np.linalg.solve(hessian_WW, gradient_W)
        weight_W = weight_W - step_W
        if np.abs(step_W).max() < SETTLED:
            break
    return weight_W


def _padded(choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(standardised features [N, O, W], real options [N, O], right options [N, O])."""
    most = max(len(choice.options) for choice in choices)
    x_NOW = np.zeros((len(choices), most, len(FEATURES)))
    real_NO = np.zeros((len(choices), most), bool)
    right_NO = np.zeros((len(choices), most), bool)
    for n, choice in enumerate(choices):
        count = len(choice.options)
        x_NOW[n, :count], real_NO[n, :count] = features(choice), True
        right_NO[n, :count] = [label == choice.answer for label in choice.labels]
    mean_W, spread_W = x_NOW[real_NO].mean(axis=0), x_NOW[real_NO].std(axis=0)
    x_NOW = (x_NOW - mean_W) / np.where(spread_W > 0, spread_W, 1.0)
    return np.where(real_NO[..., None], x_NOW, 0.0), real_NO, right_NO
