"""Whether prompts and the answers behind them fit the positions that a model knows: said before a run spends an hour.

What counts is positions: those of M-RoPE are fewer than tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from longtake.errors import UserError
from longtake.models.rope import known_to, scaled
from longtake.protocols import Model
from longtake.records import Prompt, Question, Receipt, Span
from longtake.runtime.films import Films, Look
from longtake.train.turns import tokens_of

Answers = Callable[[Question], int]  # tokens of the longest answer to a question
GROWTH = 11  # bytes that a Unicode normal form makes of one beyond ASCII: U+FDFA under NFKC
MARK = 3  # bytes of the mark that some tokenizers write before a text


@dataclass(frozen=True, slots=True)
class Written:
    """Answers that are there as text: counted only where the most tokens that they can have do not fit.

    Example: written(tokenizer, end, [("q1", (Span("B"),))])(question) == 2.
    """

    bound: Mapping[str, int]  # by question id
    count: Callable[[str], int]

    def __call__(self, question: Question) -> int:
        return self.count(question.id)

    def most(self, question: Question) -> int:
        """No answer to the question has more tokens."""
        return self.bound[question.id]


def written(tokenizer: Any, end: int, answers: Iterable[tuple[str, tuple[Span, ...]]], more: int = 0) -> Written:
    """Of (question id, answer in spans), each with `more` tokens behind it.

    Conversations are counted now: that says as well whether the chat template can hold them (UserError).
    """
    bound: dict[str, int] = {}
    texts: dict[str, list[tuple[Span, ...]]] = {}

    def count(spans: tuple[Span, ...]) -> int:
        return more + len(tokens_of(tokenizer, end, spans)[0])

    for name, spans in answers:
        single = all(span.role == "assistant" for span in spans)
        most = more + 1 + sum(most_tokens(span.text) for span in spans) if single else count(spans)
        bound[name] = max(bound.get(name, 0), most)
        texts.setdefault(name, []).append(spans)
    return Written(bound, lambda name: max(map(count, texts[name])))


def most_tokens(text: str) -> int:
    """No tokenizer makes more of the text: a token stands for one byte of it or more, once it is normalised.

    ASCII is its own normal form, whichever of them a tokenizer has (Qwen's NFC, T5's NFKC).
    """
    plain, whole = len(text.encode("ascii", "ignore")), len(text.encode())
    return plain + GROWTH * (whole - plain) + MARK


@dataclass(slots=True)
class _Alike:
    """Looks at frames of one size, and of all they see what their widest prompt shows.

    Example: seen.add(receipt); seen.reached(model).
    """

    question: Question  # of one of them, as the model reads it
    looks: list[Look] = field(default_factory=list)
    most: int = 0  # tokens of a text and its answer
    ends: Receipt | None = None  # of the film that ends last
    spans: Receipt | None = None  # of that with the longest window

    def add(self, receipt: Receipt | None) -> None:
        """Keeps it if it is one of the two."""
        if receipt is None:
            return
        if self.ends is None or receipt.seconds[-1] > self.ends.seconds[-1]:
            self.ends = receipt
        if self.spans is None or _span(receipt) > _span(self.spans):
            self.spans = receipt

    def reached(self, model: Model) -> int:
        """Positions of the widest prompt."""
        return max(_reached(model.prompt(self.question, receipt, None)) for receipt in {self.ends, self.spans})


def check_fits(
    films: Films, looks: Iterable[Look], answers: Answers, fix: str = "fewer --video.frames or shorter answers"
) -> None:
    """Raises UserError for the first look whose prompt and longest answer reach beyond what the model knows.

    Looks of one size are bounded together, by the longest film and more tokens than any of their texts can become;
    one is made alone only where its own text does not fit that film. Of the films seen two a size are kept in memory.
    """
    limit = known_to(films.model.net.config, bool(films.model.context.rope))
    most = answers.most if isinstance(answers, Written) else answers

    def more(look: Look) -> int:
        question = films.told(look)
        return most_tokens(question.text) + most(question)

    alike: dict[object, _Alike] = {}
    known: dict[object, _Alike] = {}  # by film and policy
    for look in looks:
        if look.seen() not in known:
            seen = films.receipt(look)
            size = seen and (seen.width, seen.height, len(seen.indices), seen.image)
            known[look.seen()] = alike.setdefault(size, _Alike(films.told(look)))
            known[look.seen()].add(seen)
        own = known[look.seen()]
        own.looks.append(look)
        own.most = max(own.most, more(look))
    for own in alike.values():
        if (reached := own.reached(films.model)) + own.most > limit:
            for look in own.looks:
                if reached + more(look) > limit:
                    check_prompt(films.model, films.prompt(look), answers(look.question), fix)


def check_prompt(model: Model, prompt: Prompt, answer: int, fix: str) -> None:
    """Raises UserError if the prompt and an answer of so many tokens reach beyond the positions the model knows."""
    limit, end = known_to(model.net.config, bool(model.context.rope)), _reached(prompt) + answer
    if end <= limit:
        return
    why = f"{len(prompt.ids)} tokens and an answer of {answer} reach position {end}, the model knows {limit}"
    more = "" if model.context.rope or scaled(model.net.config) else f", or --context.rope linear:{-(-end // limit)}"
    raise UserError("a prompt does not fit the model", where=f"question {prompt.id}", why=why, fix=fix + more)


def _span(receipt: Receipt) -> float:
    return receipt.seconds[-1] - receipt.seconds[0]


def _reached(prompt: Prompt) -> int:
    return int(prompt.position_3P.max()) + 1
