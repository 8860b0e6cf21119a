"""Files of preferences to pairs: two answers to one question, the better first.

Read are TRL's preference rows (prompt, chosen, rejected: strings, messages, or the prompt inside both answers), which
`judge` writes too; ShareGPTVideo's and LLaVA-Hound's (the same in strings, with `video` and the right `answer`); and
VLM-RLAIF's (`conversations`, whose last turn output_1 or output_2 takes, and the number of the better as `preference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from longtake.data.fields import FILM, LOOK, LOOK_TOO, first, id_of, is_number
from longtake.data.jsonrows import Malformed, numbered_rows
from longtake.data.readers import PROBLEM, chat_draft
from longtake.data.rows import Bad, question_from
from longtake.data.write import canonical
from longtake.errors import UserError
from longtake.records import Pair, Question

SCORES = (("score_chosen", "chosen_score"), ("score_rejected", "rejected_score"))  # ours; LLaVA-Hound's
READ = {  # what a row says of its pair
    *("id", "question_id", "prompt", "chosen", "rejected", "margin", "source", *SCORES[0], *SCORES[1]),
    *("conversations", "output_1", "output_2", "preference", "messages"),
}
JUDGED = {"narrative", "verdicts", "receipt"}  # how it came about
SHOWN = {*FILM, *LOOK, *LOOK_TOO, "sample_fps", "image", "images", "data_type"}  # what its question shows
ROLES = {"human": "user", "gpt": "assistant"}
Turn = dict[str, Any]  # {"role", "content"}


def read_pairs(path: Path, videos: Path | None = None) -> list[Pair]:
    """Pairs in the order of a JSON or JSONL file; film paths start from `videos`, the file's own folder where None.

    Raises UserError at the first malformed row.
    """
    pairs, bad = sift_pairs(path, videos)
    if bad:
        raise bad[0].error(path, len(bad) - 1)
    if not pairs:
        raise UserError("no pair in this file", where=str(path))
    return pairs


def sift_pairs(path: Path, videos: Path | None = None) -> tuple[list[Pair], list[Bad]]:
    """Like read_pairs, with malformed rows set aside: (pairs, rows left out).

    Pairs that ask the same share one Question, named after the first of them. A pair whose id was met before gets id#2.
    """
    pairs: list[Pair] = []
    questions, names = _Questions(), _Names()
    met: dict[tuple[str, str, str], int] = {}
    bad: list[Bad] = []
    for numbered in numbered_rows(path):
        place, row = numbered.place, numbered.row
        try:
            if numbered.flaw:
                raise Malformed(numbered.flaw)
            pair = _pair(row, f"{path.stem}-{place}", videos or path.parent)
            question = questions.shared(pair.question, named=bool(row.get("question_id")))
            said = question.id, pair.chosen, pair.rejected
            if said in met:
                raise Malformed(f"the same pair as at {met[said]}", "drop one of the two")
        except Malformed as flaw:
            bad.append(Bad(place, str(row.get("id", "")), flaw.reason, flaw.fix))
            continue
        met[said] = place
        pairs.append(replace(pair, id=names.fresh(pair.id), question=question))
    return pairs, bad


def questions_of(pairs: Sequence[Pair]) -> list[Question]:
    """What the pairs ask, each question once, in order of appearance."""
    return list({pair.question.id: pair.question for pair in reversed(pairs)}.values())[::-1]


def distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """The first of every two that ask and say the same: `sift_pairs` would refuse the second."""
    return list({(pair.question.id, pair.chosen, pair.rejected): pair for pair in reversed(pairs)}.values())[::-1]


def write_pair(pair: Pair, folder: Path) -> dict[str, Any]:
    """The pair as a TRL preference row, conversational with its prompt, for a file in `folder`: paths are relative.

    What pair.row holds beyond our own keys is kept: that is how `judge` adds narrative, verdicts and receipt.
    """
    question = pair.question
    row = canonical(question, folder, pair.chosen)
    scores = pair.scores or (None, None)
    known = {
        "id": pair.id,
        "question_id": question.id,
        "prompt": row.pop("messages")[:1],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "score_chosen": scores[0],
        "score_rejected": scores[1],
        "margin": pair.margin,
        "source": pair.source,
        **({} if question.video else {"data_type": "text"}),
    }
    return known | {key: value for key, value in (pair.row | row).items() if key not in READ | SHOWN}


def _pair(row: dict[str, Any], fallback: str, root: Path) -> Pair:
    """Raises Malformed."""
    if "output_1" in row or "preference" in row:
        turns, answers = _rlaif(row)
    elif "chosen" in row and "rejected" in row:
        turns, answers = _trl(row)
    else:
        keys = ", ".join(list(row)[:8])
        raise Malformed(f"no pair: the keys are {keys}", "name the two answers `chosen` and `rejected`")
    for which, answer in zip(("chosen", "rejected"), answers, strict=True):
        if not answer.strip():
            raise Malformed(f"the {which} answer is empty")
    if answers[0].strip() == answers[1].strip():
        raise Malformed("both answers are the same", "drop the row: it prefers nothing")
    scores, margin = _scores(row)
    name, source = id_of(row, fallback), row.get("source")
    return Pair(
        name,
        _question(row, turns, name, root),
        *answers,
        margin=margin,
        scores=scores,
        source=source if isinstance(source, str) else "",
        row=row,
    )


def _rlaif(row: dict[str, Any]) -> tuple[list[Turn], tuple[str, str]]:
    """(turns before the answer, (better, worse)) of a row of VLM-RLAIF's reward model."""
    turns = _turns(row.get("conversations"), "conversations")
    turns = turns[:-1] if turns[-1]["role"] == "assistant" else turns
    outputs = _answer(row.get("output_1"), "output_1"), _answer(row.get("output_2"), "output_2")
    better = row.get("preference")
    if isinstance(better, bool) or better not in (1, 2):
        raise Malformed(f"`preference` must be 1 or 2, not {better!r:.40}", "drop rows without a preference")
    return turns, outputs if better == 1 else outputs[::-1]


def _trl(row: dict[str, Any]) -> tuple[list[Turn], tuple[str, str]]:
    """(turns before the answer, (chosen, rejected)) of a row in any of TRL's forms."""
    chosen, rejected, prompt = row["chosen"], row["rejected"], first(row, ("prompt", "conversations", *PROBLEM))
    whole = [isinstance(told, list) and len(told) > 1 for told in (chosen, rejected)]
    if any(whole) and not isinstance(prompt, list):  # the prompt stands in both; beside it perhaps its text again
        better, worse = _turns(chosen, "chosen"), _turns(rejected, "rejected")
        if better[:-1] != worse[:-1]:
            raise Malformed("the two conversations part before their last turn", "pairs answer the same prompt")
        return better[:-1], (_answer(better[-1:], "chosen"), _answer(worse[-1:], "rejected"))
    if prompt is None:
        raise Malformed("two answers and no question", "name it `prompt`")
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else _turns(prompt, "prompt")
    return turns, (_answer(chosen, "chosen"), _answer(rejected, "rejected"))


def _turns(value: Any, key: str) -> list[Turn]:
    """Messages in TRL's or LLaVA's words, in the first."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # some of VLM-RLAIF's
    if not isinstance(value, list) or not value or not all(isinstance(turn, dict) for turn in value):
        raise Malformed(f"`{key}` must be a list of turns {{role, content}}, not {value!r:.60}")
    roles = [str(first(turn, ("role", "from"))) for turn in value]
    told = [turn.get("content") if turn.get("content") is not None else turn.get("value") for turn in value]
    return [{"role": ROLES.get(role, role), "content": text} for role, text in zip(roles, told, strict=True)]


def _answer(value: Any, key: str) -> str:
    """The text of an answer: a string, {"value": …}, a message, or a list of one."""
    if isinstance(value, str):
        return value.strip()  # TRL's plain strings go on with a space
    if isinstance(value, dict):
        value = [{"role": "assistant", **value}]
    turns = _turns(value, key)
    if len(turns) != 1 or turns[0]["role"] != "assistant":
        said = ", ".join(turn["role"] for turn in turns)
        raise Malformed(f"`{key}` must be one assistant turn, not {said:.60}")
    content = turns[0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content or "", str) else content
    if not isinstance(parts, list) or not all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in parts):
        raise Malformed(f"`{key}` must be text, not {content!r:.60}")
    return "".join(part["text"] for part in parts)


def _scores(row: dict[str, Any]) -> tuple[tuple[float, float] | None, float | None]:
    """(scores of chosen and rejected, margin: the row's own, else their difference)."""
    scores = [first(row, keys) for keys in SCORES]
    named = {"margin": row.get("margin"), **{keys[0]: score for keys, score in zip(SCORES, scores, strict=True)}}
    for key, value in named.items():
        if value is not None and not is_number(value):
            raise Malformed(f"`{key}` must be a number, not {value!r:.40}")
    if scores.count(None) == 1:
        raise Malformed("one answer has a score and the other has none", "give both or neither")
    both = None if None in scores else (float(scores[0]), float(scores[1]))
    margin = None if named["margin"] is None else float(named["margin"])
    if both and both[0] < both[1]:
        raise Malformed(f"the rejected answer has the higher score: {both[1]:g} to {both[0]:g}")
    if margin is not None and margin < 0:
        raise Malformed(f"`margin` must be from 0 on, not {margin:g}")
    return both, both[0] - both[1] if both and margin is None else margin


def _question(row: dict[str, Any], turns: Sequence[Turn], name: str, root: Path) -> Question:
    """What is asked, called `name` or as the row says. The turn names its film or picture, or the row's own keys do."""
    asked = [turn for turn in turns if turn["role"] == "user"]
    if len(asked) > 1:
        raise Malformed(f"the answers are to turn {len(asked)} of a conversation", "pairs answer a first question")
    rest = {key: value for key, value in row.items() if key not in READ | JUDGED | SHOWN}
    content = turns[0]["content"] if turns else None
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if isinstance(parts, list) and turns[0]["role"] == "user":
        parts = _with_shown(row, parts)
    messages = [{**turn, "content": parts if place == 0 else turn["content"]} for place, turn in enumerate(turns)]
    draft = chat_draft({**rest, "messages": messages}, name)
    reason = draft.choices.flaw(draft.answer)
    if reason:
        raise Malformed(reason)
    if draft.film is None and row.get("data_type") != "text":
        raise Malformed("no film or picture is named", 'add `video` or `image`, or say "data_type": "text"')
    return question_from(replace(draft, id=str(row.get("question_id") or name)), root)


def _with_shown(row: dict[str, Any], parts: list[Any]) -> list[Any]:
    """The parts of the user turn; where none names its film or picture, but the row does, with that first."""
    shows = [part for part in parts if isinstance(part, dict) and part.get("type") in ("video", "image")]
    beside = {key: row[key] for key in (*SHOWN, "conversations") if row.get(key) not in (None, "", [])}
    if any(part.get(part["type"]) for part in shows) or not beside.keys() & {*FILM, "image", "images"}:
        return parts
    if len(shows) > 1:
        raise Malformed(f"{len(shows)} films or pictures, where one is needed")
    return [{"type": "video", **beside}, *(part for part in parts if part not in shows)]


class _Names:
    """Every name once: the second q7 is q7#2."""

    def __init__(self) -> None:
        self._uses: Counter[str] = Counter()
        self._taken: set[str] = set()

    def fresh(self, name: str) -> str:
        self._uses[name] += 1
        number = self._uses[name]
        made = name if number == 1 else f"{name}#{number}"
        if made in self._taken:
            return self.fresh(name)
        self._taken.add(made)
        return made


class _Questions:
    """Those met in a file, each once whatever the number of its pairs."""

    def __init__(self) -> None:
        self._by_id: dict[str, Question] = {}
        self._asked: dict[tuple[object, ...], Question] = {}
        self._names = _Names()

    def shared(self, question: Question, *, named: bool) -> Question:
        """The one of this content, or this one, added to them; `named`: the row says which, by its question_id."""
        asks = question.video, question.text, question.policy, question.options, question.answer
        known = self._by_id.get(question.id) if named else self._asked.get(asks)
        if known is None:
            known = replace(question, id=self._names.fresh(question.id))
            self._by_id[known.id] = known
            self._asked.setdefault(asks, known)
        elif named and known != question:
            raise Malformed(f"`question_id` {question.id:.40} was used for another question", "give each its own")
        return known
