"""What follows a prompt, as weighted tokens: an answer, or a conversation as the model's own template writes it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any

from longtake.errors import UserError
from longtake.records import Span

MARK = "\x00{}\x00"  # stands for an answer; in no text


@lru_cache(maxsize=65536)
def tokens_of(tokenizer: Any, end: int, spans: tuple[Span, ...]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Token ids of what follows a prompt, given in spans, and the weight of each token.

    Every answer ends with the end token, which weighs as the answer's last span. Later user turns stand between the
    answers as the chat template writes them, with weight 0. Raises UserError where the template cannot.
    """
    turns = [tuple(run) for _, run in groupby(spans, key=lambda span: span.role)]
    between = iter(asked_between(tokenizer, end, turns) if len(turns) > 1 else ())
    ids: list[int] = []
    weights: list[float] = []
    for turn in turns:
        if turn[0].role == "user":
            piece = next(between)
            ids += piece
            weights += [0.0] * len(piece)
            continue
        for span in turn:
            piece = tokenizer(span.text, add_special_tokens=False)["input_ids"]
            ids += piece
            weights += [span.weight] * len(piece)
        ids.append(end)
        weights.append(turn[-1].weight)
    return tuple(ids), tuple(weights)


def asked_between(tokenizer: Any, end: int, turns: Sequence[tuple[Span, ...]]) -> list[list[int]]:
    """Token ids of every user turn among `turns` (answers and user turns in alternation): all that stands between the
    end token of the answer before it and the answer behind it.

    Raises UserError for a template that changes what was said before, or ends a turn with another token.
    """
    marks = [MARK.format(number) for number in range(sum(map(len, turns)))]
    names, marked, plain = iter(marks), [_said("user", ["?"])], [_said("user", ["?"])]
    firsts = []  # the mark that each answer begins with, and the one that it ends with
    for turn in turns:
        texts = [span.text for span in turn]
        here = [next(names) for _ in turn]
        asked = turn[0].role == "user"
        firsts += [] if asked else [(here[0], here[-1])]
        marked.append(_said(turn[0].role, texts if asked else here))
        plain.append(_said(turn[0].role, texts))
    whole = tokenizer.apply_chat_template(marked, tokenize=False)
    _check(tokenizer, plain, whole.partition(firsts[-1][0])[0], dict(zip(marks, _texts(turns), strict=True)))
    found = []
    for (_, before), (after, _) in pairwise(firsts):
        ids = tokenizer(whole.partition(before)[2].partition(after)[0], add_special_tokens=False)["input_ids"]
        if not ids or ids[0] != end:
            why = f"behind an answer it does not write {tokenizer.convert_ids_to_tokens(end)}"
            raise UserError("the chat template cannot hold several turns", why=why, fix="give each turn its own row")
        found.append(ids[1:])
    return found


def _check(tokenizer: Any, plain: list[dict[str, Any]], start: str, texts: dict[str, str]) -> None:
    """Raises UserError unless the conversation up to its last answer is its pieces behind one another."""
    for mark, text in texts.items():
        start = start.replace(mark, text)
    if not tokenizer.apply_chat_template(plain, tokenize=False).startswith(start):
        raise UserError(
            "the chat template changes earlier answers of a conversation",
            why="as one sequence it would not be learned as the model reads it later",
            fix="take the reasoning out of all answers but the last, or give each turn its own row",
        )


def _said(role: str, texts: Sequence[str]) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


def _texts(turns: Sequence[tuple[Span, ...]]) -> list[str]:
    return [span.text for turn in turns for span in turn]
