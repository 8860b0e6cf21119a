"""Pairs of answers to one question, judged in both orders or scored one by one, and what each came to.

Judging both orders and keeping what both agree on is ours: with one order a reward model learns the slot (A or B)
beside the answers. VLM-RLAIF (arXiv 2402.03746) asks once; LLaVA-Hound (arXiv 2404.01258) scores. G answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from longtake.records import Draw, FramePolicy, Question, Receipt
from longtake.rewards.mix import accuracy
from longtake.rewards.verdict import score, verdict
from longtake.runtime.films import Look
from longtake.train.asking import Ask, Ledger, Reply, Said
from longtake.train.judge_prompts import Prompts, fill
from longtake.train.keys import keyed
from longtake.train.narrative import Narrative, told

Mode = Literal["pair", "rubric"]
Outcome = Literal["kept", "flipped", "tie", "unparsable", "same", "failed"]
OUTCOMES: tuple[Outcome, ...] = ("kept", "flipped", "tie", "unparsable", "same", "failed")
ORDERS = {"AB": (0, 1), "BA": (1, 0)}  # which answer stands in slot A, which in slot B
MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>")  # what steers the chats of today's models
PAIR_SCHEMA = {"reasoning": {"type": "string"}, "better": {"type": "string", "enum": ["A", "B", "tie"]}}
SCORE_SCHEMA = {"reasoning": {"type": "string"}, "score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}


@dataclass(frozen=True, slots=True)
class Match:
    """Two answers to one question, of those it got.

    Example: Match("cups-7#0", look, (0, 1), (said, said), (True, False), (), receipt).
    """

    id: str
    look: Look  # how the judge looks at the film
    places: tuple[int, int]  # of the answers among the question's
    answers: tuple[Said, Said]
    correct: tuple[bool | None, bool | None]  # None where the row knows no answer
    narrative: Narrative | None  # () where none is told; None if a caption could not be made
    receipt: Receipt | None  # of what was seen when the answers were given

    @property
    def same(self) -> bool:
        """Whether there is nothing to judge."""
        return self.answers[0].text.strip() == self.answers[1].text.strip()

    @property
    def right(self) -> int | None:
        """The answer that is right, if exactly one is known to be."""
        return self.correct.index(True) if set(self.correct) == {True, False} else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge said once. Example: Verdict("AB", "A", "It names the cup. <answer>A</answer>", "", "stop")."""

    order: str  # "AB" | "BA"; of a score "0" | "1", the answer
    said: str  # "A" | "B" | "tie", or the score; "" if it could not be read
    text: str
    error: str  # why there is no reply
    finish: str

    @property
    def names(self) -> int | None:
        """The answer, 0 or 1, that it names in the order it was asked in; None for a tie."""
        return ORDERS[self.order]["AB".index(self.said)] if self.said in ("A", "B") else None


@dataclass(frozen=True, slots=True)
class Judged:
    """A match and what it came to. Example: Judged(match, (verdict, verdict), "kept", 0)."""

    match: Match
    verdicts: tuple[Verdict, ...]
    outcome: Outcome
    better: int | None = None  # 0 or 1 where it was kept
    scores: tuple[float, float] | None = None


def couples(count: int, most: int) -> list[tuple[int, int]]:
    """At most `most` pairs of `count` answers: neighbours first, then those further apart."""
    every = [(first, first + apart) for apart in range(1, count) for first in range(count - apart)]
    return every[:most]


def matches(look: Look, sampled: Reply, most: int, narrative: Narrative | None) -> list[Match]:
    """The pairs of a question's answers; an empty answer takes part in none. `look`: the judge's."""
    question, answers = look.question, sampled.said
    told = [place for place, said in enumerate(answers) if said.text.strip()]
    right = [accuracy(said.text, question) >= 1.0 if question.answer else None for said in answers]
    return [
        Match(
            f"{question.id}#{number}",
            look,
            (told[first], told[second]),
            (answers[told[first]], answers[told[second]]),
            (right[told[first]], right[told[second]]),
            narrative,
            sampled.receipt,
        )
        for number, (first, second) in enumerate(couples(len(told), most))
    ]


def judge_policy(policy: FramePolicy, frames: int | None) -> FramePolicy:
    """How the judge looks at what was asked about: as the model did, or with its own number of frames."""
    if frames is None or policy.image:
        return policy
    return replace(policy, frames=frames, fps=None, max_frames=None, seconds=None)


def judging(
    mode: Mode, every: Sequence[Match], prompts: Prompts, draw: tuple[float, int], marks: Sequence[str]
) -> list[Ask]:
    """What the judge is asked: each pair in both orders, or each answer once. `draw`: temperature and seed.

    No answer or caption may speak to the judge as its chat does: `marks` of its tokenizer are taken out of them.
    """
    asks: dict[str, Ask] = {}
    for match in every:
        if match.same or match.narrative is None:
            continue
        question = match.look.question
        slots = {"narrative": _plain(told(match.narrative, prompts), marks), "question": question.text}
        texts = [_plain(said.text, marks) for said in match.answers]
        if mode == "pair":
            for order, (a, b) in ORDERS.items():
                text = fill(prompts.pair, first=texts[a], second=texts[b], **slots)
                asks[f"{match.id}:{order}"] = _ask(match.look, f"{match.id}:{order}", text, draw)
        else:
            for key, answer in zip(_score_keys(match), texts, strict=True):
                asks[key] = _ask(match.look, key, fill(prompts.score, answer=answer, **slots), draw)
    return list(asks.values())


def _score_keys(match: Match) -> tuple[str, str]:
    """An answer that stands in several pairs is scored once."""
    name = match.look.question.id
    return f"{name}@{match.places[0]}", f"{name}@{match.places[1]}"


def _ask(look: Look, key: str, text: str, draw: tuple[float, int]) -> Ask:
    question = Question(key, look.question.video, text, subtitles=look.question.subtitles)
    return Ask(key, replace(look, question=question), (Draw(draw[0], keyed(draw[1], "judge", key)),))


def _plain(text: str, marks: Sequence[str]) -> str:
    """The text without tokens that steer a chat."""
    text = MARK.sub("", text)
    for mark in marks:
        text = text.replace(mark, "")
    return text


def schema(mode: Mode) -> Mapping[str, Any]:
    """The JSON that an endpoint is asked for."""
    properties = PAIR_SCHEMA if mode == "pair" else SCORE_SCHEMA
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def settle(mode: Mode, match: Match, replies: Ledger) -> Judged:
    """What a match came to. Kept: both orders name the same answer, or one scored higher than the other."""
    if match.same or match.narrative is None:
        return Judged(match, (), "same" if match.same else "failed")
    keys = [f"{match.id}:{order}" for order in ORDERS] if mode == "pair" else _score_keys(match)
    orders = ORDERS if mode == "pair" else ("0", "1")
    verdicts = tuple(_verdict(mode, order, replies, key) for order, key in zip(orders, keys, strict=True))
    if any(one.error for one in verdicts):
        return Judged(match, verdicts, "failed")
    if not all(one.said for one in verdicts):
        return Judged(match, verdicts, "unparsable")
    if mode == "rubric":
        scores = float(verdicts[0].said), float(verdicts[1].said)
        if scores[0] == scores[1]:
            return Judged(match, verdicts, "tie", scores=scores)
        return Judged(match, verdicts, "kept", scores.index(max(scores)), scores)
    named = [one.names for one in verdicts]
    if None in named:
        return Judged(match, verdicts, "tie")
    return Judged(match, verdicts, "kept", named[0]) if named[0] == named[1] else Judged(match, verdicts, "flipped")


def _verdict(mode: Mode, order: str, replies: Ledger, key: str) -> Verdict:
    reply = replies.get(key)
    if reply is None or reply.error:
        return Verdict(order, "", "", reply.error if reply else "it was not asked", "")
    text, finish = reply.said[0].text, reply.said[0].finish
    if mode == "pair":
        return Verdict(order, verdict(text) or "", text, "", finish)
    value = score(text)
    return Verdict(order, "" if value is None else f"{value:g}", text, "", finish)
