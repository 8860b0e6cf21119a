"""One reader for each shape of row: chat (`messages`), LLaVA (`conversations`) and benchmark (`problem` or `question`).

A chat or LLaVA row is read as it stands. Its first user turn is the question, all that is asked where answers are
sampled; to learn from, all its turns are one sequence. A benchmark row becomes question + option lines + an
instruction, the same for training and evaluation. Keys from: qwen-vl-utils; LLaVA-Video-178K; LongVideo-Reason,
Video-R1, EasyVideoR1; Video-MME, MLVU, LVBench, LongVideoBench, NExT-QA and EgoSchema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from longtake.data.choices import LETTERS, Choices, choices, gold, options_in
from longtake.data.fields import FILM, evidence_of, first, hops_of, id_of, kind_of, spans_of, weight_of
from longtake.data.jsonrows import Malformed
from longtake.data.shown import shown_of
from longtake.records import FramePolicy, Span

THINK = "First think about the video step by step between <think> and </think>, then give only "
CHOOSE = THINK + "the letter of the right option between <answer> and </answer>."
ANSWER = THINK + "the final answer between <answer> and </answer>."

PROBLEM = ("problem", "question")
OPTIONS = ("options", "candidates", "choices")
GOLD = ("solution", "answer", "correct_answer", "correct_choice", "answer_idx")
REASONING = ("process", "reasoning")
NUMBERED = ("option{}", "option {}", "option_{}", "a{}")  # LongVideoBench, EgoSchema, NExT-QA: counted from 0
FROM_ZERO = ("correct_choice", "answer_idx")  # keys whose number counts options from 0 whatever their shape
ROLES = {"user": "human", "assistant": "gpt"}  # as some LLaVA files write them
SHOWN = ("video", "image")  # parts of the first user turn that are looked at
BESIDE = ("video", "videos")  # keys of a chat row that name its film
PLACEHOLDER = re.compile(r"\s*<(?:video|image)>\s*")


@dataclass(frozen=True, slots=True)
class Draft:
    """A row as read, before its options and film are judged.

    Example: Draft("7", "films/7.mp4", "Where? A left B right", Choices(("A", "B"), ("left", "right")), "B").
    """

    id: str
    film: str | None  # or picture
    stem: str  # the question without option lines, or the whole first user turn of a chat row
    choices: Choices
    answer: str  # letter where there are options; "" = none given
    chat: bool = True  # read as it stands
    kind: str = ""
    hops: int = 0
    evidence: tuple[tuple[float, float], ...] = ()
    policy: FramePolicy | None = None
    targets: tuple[tuple[Span, ...], ...] = ()  # answers to learn from
    row: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def image(self) -> bool:
        """Whether it is about a picture."""
        return self.policy is not None and self.policy.image

    @property
    def text(self) -> str:
        """The user turn as the model reads it. Options stand in order of their letters."""
        if self.chat:
            return self.stem
        lines = [f"{letter}. {option}" for letter, option in zip(LETTERS, self.choices.in_order(), strict=False)]
        return "\n".join((self.stem, *lines, CHOOSE if lines else ANSWER))


def drafts(row: dict[str, Any], fallback: str) -> Iterator[Draft]:
    """The questions of one JSON row, `fallback` the id of a row without one. Raises Malformed."""
    if "messages" in row:
        yield chat_draft(row, fallback)
    elif "conversations" in row:
        yield conversation_draft(row, fallback)
    elif any(key in row for key in PROBLEM):
        yield benchmark_draft(row, fallback)
    elif nested := next((key for key in ("questions", "qa") if isinstance(row.get(key), list)), None):
        shared = {key: value for key, value in row.items() if key not in (nested, "id")}
        for number, inner in enumerate(row[nested], start=1):
            if not isinstance(inner, dict) or not any(key in inner for key in PROBLEM):
                raise Malformed(f"entry {number} of {nested!r} has no question")
            yield benchmark_draft({**shared, **inner}, f"{fallback}#{number}")
    elif {"chosen", "rejected"} <= row.keys():
        raise Malformed("a preference pair has no single answer", "`longtake reward` and `longtake dpo` read pairs")
    else:
        raise Malformed(
            f"no question: the keys are {', '.join(list(row)[:8])}", "name it `messages`, `problem` or `question`"
        )


def chat_draft(row: dict[str, Any], fallback: str) -> Draft:
    """Our own format: {"messages": [{"role": "user", "content": [video, text]}, {"role": "assistant", …}, …]}."""
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Malformed("`messages` must be a list of turns {role, content}")
    _check_order([str(turn.get("role")) for turn in turns], "user", "assistant")
    film, policy, stem = _first_turn(turns[0], row)
    given = choices(first(row, OPTIONS))
    known = given if given.options else options_in(stem)[1]
    answer = gold(row.get("answer"), known)
    if not given.options and known.flaw(answer):
        known, answer = (
            Choices(),
            gold(row.get("answer"), Choices()),
        )  # lines that look like options, of an open question
    told = [(turn.get("content"), turn) for turn in turns[1:]]
    base = _draft(row, fallback, stem)
    return replace(base, film=film, choices=known, answer=answer, policy=policy, targets=_targets(told, row))


def _check_order(roles: Sequence[str], asks: str, tells: str) -> None:
    """Raises Malformed unless both take turns and a question that has answers ends with one."""
    if "system" in roles:
        raise Malformed("there is a system turn, and prompts here have none", "move its text into the user turn")
    wanted = [(asks, tells)[place % 2] for place in range(len(roles))]
    if not roles or list(roles) != wanted or (len(roles) > 1 and len(roles) % 2):
        said = ", ".join(roles) or "none"
        fix = f"give {asks} and {tells} turns in alternation, the last one by {tells}"
        raise Malformed(f"the turns are {said:.80}", fix)


def _targets(turns: Sequence[tuple[Any, dict[str, Any]]], row: dict[str, Any]) -> tuple[tuple[Span, ...], ...]:
    """What is learned of (content, turn) after the first user turn: answers, with later user turns between them."""
    weight = weight_of(row, "the row")
    spans: list[Span] = []
    for place, (content, turn) in enumerate(turns):
        if place % 2:
            spans.append(Span(_text(content, shows=False), 0.0, "user"))
        else:
            spans += spans_of(content, weight * weight_of(turn, "the assistant turn"))
    return (tuple(spans),) if spans else ()


def _first_turn(turn: dict[str, Any], row: dict[str, Any]) -> tuple[str | None, FramePolicy | None, str]:
    """(film or picture, its policy, text). It is the part before the text, or the row's `video`, `image` …"""
    content = turn.get("content")
    parts = content if isinstance(content, list) else []
    shows = bool(parts) and isinstance(parts[0], dict) and parts[0].get("type") in SHOWN
    text = _text(content, shows=shows)
    beside = {key: value for key, value in row.items() if key in BESIDE or key not in FILM}
    film, policy = shown_of(parts[0] if shows else beside)
    if film is None and (shows or PLACEHOLDER.search(_written(content))):
        raise Malformed("the user turn speaks of a film but none is named", 'add {"type": "video", "video": path}')
    return film, policy, text


def _text(content: Any, *, shows: bool) -> str:
    """The text of a user turn without placeholders; `shows`: a film or a picture stands before it. Raises Malformed."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Malformed(f"the user turn must be text or a list of parts, not {content!r:.60}")
    kinds = [part.get("type") for part in parts]
    if unknown := [kind for kind in kinds if kind not in (*SHOWN, "text")]:
        raise Malformed(
            f"a part of type {unknown[0]!r}", 'use {"type": "video", "video": path} and {"type": "text", "text": …}'
        )
    if later := [kind for kind in kinds[shows:] if kind != "text"]:
        several = "two films or pictures" if shows else f"the {later[0]} stands after the text"
        raise Malformed(several, "give one video or image part, then the text, in the first turn")
    if not all(isinstance(part.get("text"), str) for part in parts[shows:]):
        raise Malformed("a text part has no text")
    text = PLACEHOLDER.sub("\n", _written(content)).strip()
    if not text:
        raise Malformed("the user turn has no text")
    return text


def _written(content: Any) -> str:
    """All text of a user turn, placeholders included."""
    if isinstance(content, str):
        return content
    return "\n".join(str(part.get("text", "")) for part in content if part.get("type") == "text")


def conversation_draft(row: dict[str, Any], fallback: str) -> Draft:
    """LLaVA: {"conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}, …], "video": …}.

    Its first answer is taken for the right one; where the last turn is empty (VLM-RLAIF's rows for PPO) there is none.
    """
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Malformed("`conversations` must be a list of turns {from, value}")
    roles = [str(turn.get("from", turn.get("role"))) for turn in turns]
    _check_order([ROLES.get(role, role) for role in roles], "human", "gpt")
    told = [(turn.get("value", turn.get("content")), turn) for turn in turns]
    if len(told) == 2 and isinstance(told[1][0], str) and not told[1][0].strip():
        told = told[:1]
    if not all(isinstance(text, str) and text.strip() for text, _ in told):
        raise Malformed("a turn has no text")
    film, policy = shown_of(row)
    if film is None and any(PLACEHOLDER.search(text) for text, _ in told[::2]):
        raise Malformed("a turn speaks of a film but none is named", "add `video` or `image` to the row")
    stem = _text(told[0][0], shows=False)
    known, answer = options_in(stem)[1], ""
    if len(told) > 1:
        answer = gold(told[1][0], known)
        if known.flaw(answer):
            known, answer = Choices(), told[1][0].strip()
    base = _draft(row, fallback, stem)
    return replace(base, film=film, policy=policy, choices=known, answer=answer, targets=_targets(told[1:], row))


def benchmark_draft(row: dict[str, Any], fallback: str) -> Draft:
    """{"problem" or "question", options in any of the field's shapes, "solution" or "answer", film}."""
    stem = first(row, PROBLEM)
    if not isinstance(stem, str) or not stem.strip():
        raise Malformed("the question is empty")
    stem = PLACEHOLDER.sub("\n", stem).strip()
    known, from_zero = _options(row)
    if not known.options:
        stem, known = options_in(stem)
    key = next((key for key in GOLD if row.get(key) is not None), "")
    answer = gold(row.get(key), known, from_zero or key in FROM_ZERO)
    if not known.options and len(answer) == 1 and answer in LETTERS:
        raise Malformed(f"the answer is the letter {answer}, but there are no options", "add `options` to the row")
    thought = first(row, REASONING)
    targets: tuple[tuple[Span, ...], ...] = ()
    if isinstance(thought, str) and thought.strip() and answer:
        inside = re.sub(r"</?think>", "", thought).strip()
        told = f"<think>\n{inside}\n</think>\n<answer>{answer}</answer>"
        targets = (spans_of(told, weight_of(row, "the row")),)
    base = _draft(row, fallback, stem)
    film, policy = shown_of(row)
    return replace(base, film=film, choices=known, answer=answer, chat=False, policy=policy, targets=targets)


def _options(row: dict[str, Any]) -> tuple[Choices, bool]:
    """(options, whether the format's answers count them from 0)."""
    given = first(row, OPTIONS)
    if given is not None:
        return choices(given), False
    for name in NUMBERED:
        found = [row[name.format(number)] for number in range(len(LETTERS)) if name.format(number) in row]
        if found:
            return choices([option for option in found if option not in (None, "N/A")]), True
    lettered = [row[letter] for letter in LETTERS[:8] if isinstance(row.get(letter), str)]
    return choices(lettered), False


def _draft(row: dict[str, Any], fallback: str, stem: str) -> Draft:
    """What all shapes share: id, kind, hops, evidence, the row itself."""
    return Draft(
        id=id_of(row, fallback),
        film=None,
        stem=stem,
        choices=Choices(),
        answer="",
        kind=kind_of(row),
        hops=hops_of(row),
        evidence=evidence_of(row),
        row=row,
    )
