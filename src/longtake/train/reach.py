"""Whether prompts and the answers behind them fit the positions that a model knows: said before a run spends an hour.

What counts is positions: those of M-RoPE are fewer than tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from longtake.errors import UserError
from longtake.models.rope import known_to, scaled
from longtake.protocols import Model
from longtake.records import Prompt, Question, Receipt
from longtake.runtime.films import Films, Look

Answers = Callable[[Question], int]  # tokens of the longest answer to a question


def check_fits(
    films: Films, looks: Iterable[Look], answers: Answers, fix: str = "fewer --video.frames or shorter answers"
) -> None:
    """Raises UserError for the first look whose prompt and longest answer reach beyond what the model knows.

    Looks of one size are bounded together, by the longest film and more tokens than any of their texts can become;
    each is made alone only where the bound does not fit.
    """
    limit = known_to(films.model.net.config, bool(films.model.context.rope))
    alike: dict[object, list[tuple[Look, Receipt | None]]] = {}
    for look in looks:
        seen = films.receipt(look)
        size = seen and (seen.width, seen.height, len(seen.indices), seen.image)
        alike.setdefault(size, []).append((look, seen))
    for members in alike.values():
        texts = [films.told(look) for look, _ in members]
        most = max(len(question.text.encode()) + answers(question) for question in texts)
        if _widest(films.model, texts[0], [receipt for _, receipt in members]) + most > limit:
            for look, _ in members:
                check_prompt(films.model, films.prompt(look), answers(look.question), fix)


def check_prompt(model: Model, prompt: Prompt, answer: int, fix: str) -> None:
    """Raises UserError if the prompt and an answer of so many tokens reach beyond the positions the model knows."""
    limit, end = known_to(model.net.config, bool(model.context.rope)), _reached(prompt) + answer
    if end <= limit:
        return
    why = f"{len(prompt.ids)} tokens and an answer of {answer} reach position {end}, the model knows {limit}"
    more = "" if model.context.rope or scaled(model.net.config) else f", or --context.rope linear:{-(-end // limit)}"
    raise UserError("a prompt does not fit the model", where=f"question {prompt.id}", why=why, fix=fix + more)


def _widest(model: Model, question: Question, receipts: list[Receipt | None]) -> int:
    """Positions of these receipts' widest prompt: of the film that ends last, or of that with the longest window."""
    seen = [receipt for receipt in receipts if receipt is not None]
    if not seen:
        return _reached(model.prompt(question, None, None))
    ends = max(seen, key=lambda receipt: receipt.seconds[-1])
    spans = max(seen, key=lambda receipt: receipt.seconds[-1] - receipt.seconds[0])
    return max(_reached(model.prompt(question, receipt, None)) for receipt in (ends, spans))


def _reached(prompt: Prompt) -> int:
    return int(prompt.position_3P.max()) + 1
