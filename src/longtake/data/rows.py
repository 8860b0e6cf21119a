"""Files of rows to questions and examples: every shape of row that `data.readers` knows, JSON or JSONL.

`read_*` stop at the first malformed row with its place; `sift_*` go on and hand back the malformed rows with reasons.
Whether a film exists and can be decoded is not looked at here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from longtake.data.fields import FILM, located
from longtake.data.jsonrows import Malformed, Numbered, numbered_rows
from longtake.data.readers import REASONING, Draft, drafts
from longtake.data.subtitles import subtitles_of
from longtake.errors import UserError
from longtake.records import Cue, Example, FramePolicy, Question, Span

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bad:
    """A row that was left out. Example: Bad(17, "cups-7", "option D is empty")."""

    place: int  # line of a JSONL file, else number of the row; both from 1
    id: str  # "" if the row does not get as far as an id
    reason: str
    fix: str = ""

    def error(self, path: Path, more: int) -> UserError:
        """`more` rows of the file are malformed too."""
        what = f"{path}:{self.place}: {self.reason}"
        why = f"{more} more {'rows are' if more > 1 else 'row is'} malformed too" if more else ""
        return UserError(
            what, where=self.id and f"row {self.id!r:.60}", why=why, fix=self.fix or "mend or drop the row"
        )


@dataclass(slots=True)
class _Prompt:
    """The rows that ask one question, gathered."""

    place: int
    question: Question
    targets: list[tuple[Span, ...]]


def read_questions(path: Path, videos: Path | None = None) -> list[Question]:
    """Questions in order of appearance; rows that are several answers to one prompt make one question.

    path: JSON or JSONL; videos: folder that relative film paths start from, the file's own where None.
    Raises UserError at the first malformed row.
    """
    questions, bad = sift_questions(path, videos)
    return _unless(questions, bad, path)


def sift_questions(path: Path, videos: Path | None = None) -> tuple[list[Question], list[Bad]]:
    """Like read_questions, with malformed rows set aside: (questions, rows left out)."""
    prompts, bad = _gather(path, videos, learn=False)
    return [prompt.question for prompt in prompts], bad


def read_examples(path: Path, videos: Path | None = None) -> list[Example]:
    """Questions with the answers to learn from, in order of first appearance.

    Rows with the same id and the same user turn become one Example with several targets; the weights of row, turn and
    part multiply. Raises UserError at the first malformed row, one without an answer to learn from included.
    """
    examples, bad = sift_examples(path, videos)
    return _unless(examples, bad, path)


def sift_examples(path: Path, videos: Path | None = None) -> tuple[list[Example], list[Bad]]:
    """Like read_examples, with malformed rows set aside: (examples, rows left out)."""
    prompts, bad = _gather(path, videos, learn=True)
    return [Example(prompt.question, tuple(prompt.targets)) for prompt in prompts], bad


def read_drafts(path: Path) -> tuple[list[tuple[int, Draft]], list[Bad]]:
    """Every row that has a shape we know, with its place and unjudged: options may be empty or labelled twice."""
    good: list[tuple[int, Draft]] = []
    bad: list[Bad] = []
    for numbered in numbered_rows(path):
        for draft in _drafts(numbered, path):
            if isinstance(draft, Bad):
                bad.append(draft)
            else:
                good.append((numbered.place, draft))
    return good, bad


def _drafts(numbered: Numbered, path: Path) -> Iterator[Draft | Bad]:
    if numbered.flaw:
        yield Bad(numbered.place, "", numbered.flaw)
        return
    try:
        yield from drafts(numbered.row, f"{path.stem}-{numbered.place}")
    except Malformed as flaw:
        yield Bad(numbered.place, str(numbered.row.get("id", "")), flaw.reason, flaw.fix)


def _gather(path: Path, videos: Path | None, learn: bool) -> tuple[list[_Prompt], list[Bad]]:
    found, bad = read_drafts(path)
    prompts: dict[str, _Prompt] = {}
    for place, draft in found:
        try:
            question = _question(draft, videos or path.parent, prompts)
        except Malformed as wrong:  # its subtitles
            bad.append(Bad(place, draft.id, wrong.reason, wrong.fix))
            continue
        known = prompts.get(question.id)
        flaw = _flaw(draft, learn) or (_clash(known, question, draft) if known else None)
        if flaw:
            bad.append(Bad(place, question.id, flaw.reason, flaw.fix))
        elif known:
            known.targets.extend(draft.targets)
        else:
            prompts[question.id] = _Prompt(place, question, list(draft.targets))
    return list(prompts.values()), sorted(bad, key=lambda row: row.place)


def question_from(draft: Draft, root: Path) -> Question:
    """The draft as it stands, its film or picture and subtitles looked for from `root` on. Raises Malformed."""
    given = draft.row.get("subtitles")
    if given is not None and (draft.film is None or draft.image):
        raise Malformed("subtitles without a film", "name the film, or take the key `subtitles` out of the row")
    return Question(
        id=draft.id,
        video=None if draft.film is None else str(root / draft.film) if draft.image else located(root, draft.film),
        text=draft.text,
        options=draft.choices.in_order(),
        answer=draft.answer,
        kind=draft.kind,
        hops=draft.hops,
        evidence=draft.evidence,
        policy=draft.policy,
        subtitles=() if given is None else subtitles_of(given, root),
        row=draft.row | {"subtitles": str(root / given)} if isinstance(given, str) else draft.row,
    )


def _question(draft: Draft, root: Path, taken: dict[str, _Prompt]) -> Question:
    question = question_from(draft, root)
    if "conversations" in draft.row:  # LLaVA files name all rows about one film alike
        number = 1
        while question.id in taken and _prompt(taken[question.id].question) != _prompt(question):
            number += 1
            question = replace(question, id=f"{draft.id}#{number}")
    return question


def _flaw(draft: Draft, learn: bool) -> Malformed | None:
    """Why a well-shaped row cannot be used."""
    reason = draft.choices.flaw(draft.answer)
    if reason:
        return Malformed(reason)
    if not draft.chat and draft.film is None and draft.row.get("data_type") != "text":
        return Malformed(f"no film: none of the keys {', '.join(FILM)}", 'name it, or say "data_type": "text"')
    if learn and not draft.targets:
        needed = "an assistant turn" if draft.chat else f"{' or '.join(REASONING)} beside the answer"
        return Malformed("no answer to learn from", f"SFT rows need {needed}")
    return None


def _clash(known: _Prompt, question: Question, draft: Draft) -> Malformed | None:
    """Why a row whose id was met before is not one more answer to that prompt."""
    rename = "give every question its own id"
    if _prompt(known.question) != _prompt(question):
        return Malformed(f"the id was used for another question at {known.place}", rename)
    if not draft.targets or not known.targets:
        return Malformed(f"the same row as at {known.place}", "drop one of the two")
    if "messages" in draft.row and (known.question.options, known.question.answer) != (
        question.options,
        question.answer,
    ):
        return Malformed(f"the same question has other options or another answer at {known.place}", rename)
    return None


def _prompt(question: Question) -> tuple[str | None, str, FramePolicy | None, tuple[Cue, ...]]:
    return question.video, question.text, question.policy, question.subtitles


def _unless(good: list[T], bad: list[Bad], path: Path) -> list[T]:
    if bad:
        raise bad[0].error(path, len(bad) - 1)
    if not good:
        raise UserError("no question in this file", where=str(path))
    return good
