"""One reader for each shape of row: chat (`messages`), LLaVA (`conversations`) and benchmark (`problem` or `question`).

A chat or LLaVA row is read as it stands. A benchmark row becomes question + option lines + an instruction, the same
for training and evaluation. Keys from: qwen-vl-utils; LLaVA-Video-178K; LongVideo-Reason, Video-R1, EasyVideoR1;
Video-MME, MLVU, LVBench, LongVideoBench, NExT-QA and EgoSchema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from longtake.data.choices import LETTERS, Choices, choices, gold, options_in
from longtake.data.fields import evidence_of, film_of, first, hops_of, id_of, kind_of, policy_of, spans_of, weight_of
from longtake.data.jsonrows import Malformed
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
HUMAN, MODEL = {"human", "user"}, {"gpt", "assistant"}
PLACEHOLDER = re.compile(r"\s*<(?:video|image)>\s*")


@dataclass(frozen=True, slots=True)
class Draft:
    """A row as read, before its options and film are judged.

    Example: Draft("7", "films/7.mp4", "Where? A left B right", Choices(("A", "B"), ("left", "right")), "B").
    """

    id: str
    film: str | None
    stem: str  # the question without option lines, or the whole user turn of a chat row
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
        yield from conversation_drafts(row, fallback)
    elif any(key in row for key in PROBLEM):
        yield benchmark_draft(row, fallback)
    elif nested := next((key for key in ("questions", "qa") if isinstance(row.get(key), list)), None):
        shared = {key: value for key, value in row.items() if key not in (nested, "id")}
        for number, inner in enumerate(row[nested], start=1):
            if not isinstance(inner, dict) or not any(key in inner for key in PROBLEM):
                raise Malformed(f"entry {number} of {nested!r} has no question")
            yield benchmark_draft({**shared, **inner}, f"{fallback}#{number}")
    elif {"chosen", "rejected"} <= row.keys():
        raise Malformed("a preference pair has no single answer", "give pairs to the preference stages")
    else:
        raise Malformed(
            f"no question: the keys are {', '.join(list(row)[:8])}", "name it `messages`, `problem` or `question`"
        )


def chat_draft(row: dict[str, Any], fallback: str) -> Draft:
    """Our own format: {"messages": [{"role": "user", "content": [video, text]}, {"role": "assistant", …}]}."""
    turns = row["messages"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Malformed("`messages` must be a list of turns {role, content}")
    roles = [str(turn.get("role")) for turn in turns]
    if "system" in roles:
        raise Malformed("there is a system turn, and prompts here have none", "move its text into the user turn")
    if roles not in (["user"], ["user", "assistant"]):
        raise Malformed(
            f"the turns are {', '.join(roles) or 'none'}", "give one user turn, then at most one assistant turn"
        )
    film, policy, stem = _user_turn(turns[0], row)
    given = choices(first(row, OPTIONS))
    known = given if given.options else options_in(stem)[1]
    answer = gold(row.get("answer"), known)
    if not given.options and known.flaw(answer):
        known, answer = (
            Choices(),
            gold(row.get("answer"), Choices()),
        )  # lines that look like options, of an open question
    targets: tuple[tuple[Span, ...], ...] = ()
    if len(turns) == 2:
        weight = weight_of(row, "the row") * weight_of(turns[1], "the assistant turn")
        targets = (spans_of(turns[1].get("content"), weight),)
    base = _draft(row, fallback, stem)
    return replace(base, film=film, choices=known, answer=answer, policy=policy, targets=targets)


def _user_turn(turn: dict[str, Any], row: dict[str, Any]) -> tuple[str | None, FramePolicy | None, str]:
    """(film, its policy, text). The film is the video part before the text, or the row's `video` or `videos`."""
    content = turn.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Malformed(f"the user turn must be text or a list of parts, not {content!r:.60}")
    kinds = [part.get("type") for part in parts]
    unknown = [kind for kind in kinds if kind not in ("video", "text")]
    if unknown:
        raise Malformed(
            f"a part of type {unknown[0]!r}", 'use {"type": "video", "video": path} and {"type": "text", "text": …}'
        )
    if "video" in kinds[1:]:
        why = "two films" if kinds.count("video") > 1 else "the film stands after the text"
        raise Malformed(why, "give one video part, then the text")
    texts = [part.get("text") for part in parts if part["type"] == "text"]
    if not all(isinstance(text, str) for text in texts):
        raise Malformed("a text part has no text")
    written = "\n".join(map(str, texts))
    stem = PLACEHOLDER.sub("\n", written).strip()
    if not stem:
        raise Malformed("the user turn has no text")
    if "video" in kinds:
        film = film_of({"video": parts[0].get("video")})
        policy = policy_of(parts[0])
    else:
        film, policy = film_of({key: row.get(key) for key in ("video", "videos")}), policy_of(row)
    if film is None and ("video" in kinds or PLACEHOLDER.search(written)):
        raise Malformed("the user turn speaks of a film but none is named", 'add {"type": "video", "video": path}')
    return film, policy, stem


def conversation_drafts(row: dict[str, Any], fallback: str) -> Iterator[Draft]:
    """LLaVA: {"conversations": [{"from": "human", "value": "<image>\\n…"}, {"from": "gpt", …}, …]}.

    Each pair of turns is a question of its own about the same film, without the turns before it; the first keeps the
    row's id, the others get id#2, id#3, …
    """
    turns = row["conversations"]
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise Malformed("`conversations` must be a list of turns {from, value}")
    speakers = [str(turn.get("from", turn.get("role"))) for turn in turns]
    pairs = list(zip(speakers[::2], speakers[1::2], strict=False))
    if not turns or len(turns) % 2 or not all(asks in HUMAN and tells in MODEL for asks, tells in pairs):
        raise Malformed(f"the turns are {', '.join(speakers) or 'none'}", "give human and gpt turns in alternation")
    texts = [turn.get("value", turn.get("content")) for turn in turns]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise Malformed("a turn has no text")
    if film_of(row) is None and any(PLACEHOLDER.search(asked) for asked in texts[::2]):
        raise Malformed("a turn speaks of a film but none is named", "add `video` to the row")
    for number, (asked, told) in enumerate(zip(texts[::2], texts[1::2], strict=True), start=1):
        stem = PLACEHOLDER.sub("\n", asked).strip()
        known = options_in(stem)[1]
        answer = gold(told, known)
        if known.flaw(answer):
            known, answer = Choices(), told.strip()
        base = _draft(row, fallback, stem)
        targets = (spans_of(told, weight_of(row, "the row")),)
        name = base.id + (f"#{number}" if number > 1 else "")
        yield replace(base, id=name, film=film_of(row), choices=known, answer=answer, targets=targets)


def benchmark_draft(row: dict[str, Any], fallback: str) -> Draft:
    """{"problem" or "question", options in any of the field's shapes, "solution" or "answer", film}."""
    if row.get("data_type") == "image":
        raise Malformed("it is about an image, not a film", 'keep the rows with "data_type": "video"')
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
    film, policy = film_of(row), policy_of(row)
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
