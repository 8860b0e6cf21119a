"""The reward of a run: a weighted sum of named rewards, each part kept for the log."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.records import Question
from longtake.rewards.choice import choice_reward, text_reward
from longtake.rewards.format import format_reward
from longtake.rewards.interval import interval_reward, read_intervals
from longtake.rewards.number import is_number, number_reward
from longtake.rewards.user import is_user, load

Rule = Callable[[str, Question], float]
MODEL = "model:"  # begins the name of a reward model: model:out/reward/model


@dataclass(frozen=True, slots=True)
class Score:
    """What one answer is worth. Example: Score(1.1, {"accuracy": 1.0, "format": 1.0})."""

    total: float
    parts: Mapping[str, float]  # by name, before weighting


class Mix:
    """Weighted sum of rewards, each by its name in BUILT_IN, as FILE:FUNCTION or as model:FOLDER.

    Example: Mix({"accuracy": 1.0, "format": 0.1, "my.py:score": 0.5})("<think>…", question).
    Reward models (rewards.model) score whole groups at once: their scores of an answer are given to the call.
    Raises UserError for an unknown name, a weight that is no finite number, or a user's file that does not load.
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not weights or not any(weights.values()):
            raise UserError(
                "no reward to learn from", why=f"the weights are {dict(weights)}", fix="give e.g. accuracy 1.0"
            )
        for name, weight in weights.items():
            if not math.isfinite(weight):
                raise UserError(f"the weight of the reward {name} must be a finite number, not {weight}")
        self.weights = dict(weights)
        self.models = {name: _source(name) for name in weights if name.startswith(MODEL)}  # name → folder or hub id
        self._rules = {name: _rule(name) for name in weights if name not in self.models}
        self.files = tuple(Path(name.rpartition(":")[0]) for name in self._rules if is_user(name))

    def __call__(self, text: str, question: Question, scores: Mapping[str, float] | None = None) -> Score:
        """Score of one answer's whole text. `scores`: those of the reward models, by name.

        Raises UserError where a rule finds no truth in the row to compare with, ValueError for other `scores`.
        """
        found = dict(scores or {})
        if found.keys() != self.models.keys():
            raise ValueError(f"reward models are {sorted(self.models)}, scores were given of {sorted(found)}")
        found |= {name: rule(text, question) for name, rule in self._rules.items()}
        parts = {name: found[name] for name in self.weights}
        return Score(math.fsum(self.weights[name] * value for name, value in parts.items()), parts)

    def check(self, questions: Sequence[Question]) -> None:
        """Raises UserError if a rule of ours finds no truth in a row: now, and not when that row's turn comes."""
        lacking: list[UserError] = []
        for question in questions:
            try:
                for name in self.weights.keys() & BUILT_IN.keys():
                    BUILT_IN[name]("", question)
            except UserError as error:
                lacking.append(error)
        if lacking:
            first = lacking[0]
            why = "; ".join(filter(None, (first.why, f"so it is with {len(lacking)} of {len(questions)} rows")))
            raise UserError(first.what, where=first.where, why=why, fix=first.fix)


def accuracy(text: str, question: Question) -> float:
    """1 if right, else 0: by letter where there are options, by value where the answer is a number, else by text."""
    answer = _truth(question, "accuracy")
    if question.options:
        return choice_reward(text, question.options, answer)
    return number_reward(text, answer) if is_number(answer) else text_reward(text, answer)


def interval(text: str, question: Question) -> float:
    """Temporal overlap with the intervals in the row's answer, or with its evidence where the answer names none."""
    truth = read_intervals(question.answer) or question.evidence
    if not any(start < stop for start, stop in truth):
        fix = 'give the answer as "12.5-15" or `evidence` as [[12.5, 15]]'
        raise UserError("the interval reward finds no interval to compare with", where=f"row {question.id}", fix=fix)
    return interval_reward(text, truth)


def _number(text: str, question: Question, relative: bool) -> float:
    answer = _truth(question, "number")
    if not is_number(answer):
        why = f"its answer is {answer!r:.40}"
        raise UserError("the number reward needs a number as answer", where=f"row {question.id}", why=why)
    return number_reward(text, answer, "relative" if relative else "video-r1")


BUILT_IN: dict[str, Rule] = {
    "accuracy": accuracy,
    "format": lambda text, _: format_reward(text),
    "interval": interval,
    "number-video-r1": lambda text, question: _number(text, question, relative=False),
    "number-relative": lambda text, question: _number(text, question, relative=True),
}


def _rule(name: str) -> Rule:
    if name in BUILT_IN:
        return BUILT_IN[name]
    if is_user(name):
        mine = load(name)
        return lambda text, question: mine(text, user_row(question))
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    known = f"known: {', '.join(BUILT_IN)}, FILE:FUNCTION, or {MODEL}FOLDER"
    raise UserError(f"there is no reward called {name!r}", fix=f"did you mean {near[0]}?" if near else known)


def _source(name: str) -> str:
    """Of a reward model: its folder or hub id."""
    source = name.removeprefix(MODEL)
    if not source:
        raise UserError("a reward model is given as model:FOLDER", where=name, fix=f"e.g. {MODEL}out/reward/model=0.5")
    return source


def user_row(question: Question) -> dict[str, Any]:
    """What a user's reward sees: the row as in the file, and under names that it lacks what was read from it."""
    read = {
        "id": question.id,
        "video": question.video,
        "question": question.text,
        "options": list(question.options),
        "answer": question.answer,
        "kind": question.kind,
        "hops": question.hops,
        "evidence": [list(span) for span in question.evidence],
    }
    return read | question.row


def _truth(question: Question, reward: str) -> str:
    if question.answer:
        return question.answer
    fix = "add `answer` to the row, or leave the row out"
    raise UserError(f"the {reward} reward needs a right answer", where=f"row {question.id}", fix=fix)
