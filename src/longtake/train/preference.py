"""What stages that learn from pairs of answers have in common: their rows, the split by film, a walk over them.

A pair is two answers on one prompt, the better first. P pairs, R answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.data.pairs import questions_of, sift_pairs
from longtake.errors import UserError
from longtake.log import Log, append_jsonl, read_jsonl
from longtake.maths.logprob import score_tokens
from longtake.records import Pair, Span
from longtake.runtime.films import Films, Look
from longtake.train.footage import counted, decode, encode
from longtake.train.keys import batch, keyed
from longtake.train.reach import Answers, written
from longtake.train.rows import Item, read_items
from longtake.train.session import Session, read_rows
from longtake.train.settings import Video
from longtake.train.step import Sums
from longtake.train.turns import tokens_of

Reference = dict[str, tuple[float, float]]  # pair id → log-probabilities of the chosen and the rejected answer


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs to learn from and pairs held out, and how a run looks at them.

    Example: pairs = parted(session, read(rows, video, log), video, log, share=0.05, seed=0, size=16, row_tokens=16384).
    """

    learned: list[Pair]
    held: list[Pair]
    video: Video
    seed: int
    size: int  # pairs a step, and at once in passes that only read
    row_tokens: int

    def next(self, session: Session) -> list[Pair]:
        """The next `size` pairs of the walk, those on one film neighbours."""
        picked = [self.learned[n] for n in batch(self.seed, len(self.learned), session.progress.taken, self.size)]
        first = {look(pair, self.video, self.seed).seen(): n for n, pair in reversed(list(enumerate(picked)))}
        return sorted(picked, key=lambda pair: first[look(pair, self.video, self.seed).seen()])

    def items(self, session: Session, pairs: Sequence[Pair], log: Log, known: Reference | None = None) -> list[Item]:
        """Rows of the pairs. `known`: the reference, spread evenly over an answer's tokens; losses read sums of it."""
        looks = [look(pair, self.video, self.seed) for pair in pairs]
        encode(session.films, looks, log)
        items = []
        for seen, pair in zip(looks, pairs, strict=True):
            ids = ids_of(session, pair)
            old = None
            if known is not None:
                old = tuple((total / len(own),) * len(own) for total, own in zip(known[pair.id], ids, strict=True))
            items.append(Item(session.films.prompt(seen), ids, tuple((1.0,) * len(own) for own in ids), old))
        return items

    def logprobs(self, session: Session, pairs: Sequence[Pair], log: Log) -> list[tuple[float, float]]:
        """[P] of the chosen and the rejected answer, as the model is now; at most `size` pairs in a call."""
        head = session.model.head
        items = self.items(session, pairs, log)
        found = read_items(
            session, items, lambda hidden, row: score_tokens(head, hidden, row.target_R).logprob_R, self.row_tokens
        )
        return [(float(chosen.double().sum()), float(rejected.double().sum())) for chosen, rejected in found]

    def reference(self, session: Session, file: Path, log: Log) -> Reference:
        """Log-probabilities of all answers under the weights at the run's start: computed once, kept in `file`.

        Raises UserError if the file has lost some after the weights have changed.
        """
        known: Reference = {}
        for line in read_jsonl(file) if file.exists() else []:
            known |= {name: (chosen, rejected) for name, (chosen, rejected) in line["logprobs"].items()}
        every = [*self.learned, *self.held]
        missing = sum(pair.id not in known for pair in every)
        if missing and session.progress.step:
            why = f"{missing} pairs are not in it, and the weights have changed since"
            raise UserError("the reference is gone", where=str(file), why=why, fix="begin again with --fresh")
        with log.phase("reference"), counted(log, "pairs under the reference", len(every)) as progress:
            for start in range(0, len(every), self.size):  # the same parts after a kill, to the last bit
                part = every[start : start + self.size]
                if any(pair.id not in known for pair in part):
                    found = dict(zip((pair.id for pair in part), self.logprobs(session, part, log), strict=True))
                    if log.leads:
                        append_jsonl(file, {"logprobs": found})
                    known |= found
                progress(start + len(part), len(every))
        return known


def read(rows: Path, video: Video, log: Log) -> list[Pair]:
    """The pairs of a file: before a model is loaded, which may take minutes. Raises UserError."""
    return read_rows(sift_pairs, rows, video, log)


def parted(
    session: Session, pairs: list[Pair], video: Video, log: Log, *, share: float, seed: int, size: int, row_tokens: int
) -> Pairs:
    """The pairs on films that can be used, `share` of the films held out; all films are decoded.

    Raises UserError if too few are left.
    """
    longest = longest_of(session, pairs)
    usable = {question.id for question in decode(session.films, questions_of(pairs), video, log, answers=longest)}
    pairs = [pair for pair in pairs if pair.question.id in usable]
    learned, held = split(session.films, pairs, video, share, seed)
    check_enough(learned, size, "--rows")
    return Pairs(learned, held, video, seed, size, row_tokens)


def told(sums: Sums) -> dict[str, float]:
    """What a loss over pairs watches, by the names of metrics.jsonl."""
    names = {"right": "accuracy", "margin": "margin", "chosen": "reward_chosen", "rejected": "reward_rejected"}
    means = sums.watched_means()
    return {name: means[key] for key, name in names.items()}


def check_enough(learned: Sequence[Pair], size: int, where: str) -> None:
    """Raises UserError if there are fewer than a step learns from."""
    if (count := len(learned)) < size:
        why = f"a step learns from {size} different ones"
        raise UserError(f"only {count} pairs to learn from", where=where, why=why, fix=f"--batch {count}")


def look(pair: Pair, video: Video, seed: int) -> Look:
    """How a pair's film is looked at: the same way in every epoch, so that what was computed of it once holds."""
    return Look(pair.question, video.policy(pair.question, keyed(seed, "frames", pair.question.id)))


def split(films: Films, pairs: Sequence[Pair], video: Video, share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(to learn from, held out): about `share` of the films, known by their content, with all their pairs.

    Raises UserError if one of the two is empty though it was asked for.
    """
    held = [keyed(seed, "held out", _film(films, look(pair, video, seed))) < share * 2**63 for pair in pairs]
    learned = [pair for pair, out in zip(pairs, held, strict=True) if not out]
    kept = [pair for pair, out in zip(pairs, held, strict=True) if out]
    if not learned or (share and not kept):
        what = f"{len(pairs)} pairs are on too few films to hold out {share:g} of these"
        raise UserError(what, why="no film may be on both sides", fix="give more pairs, or change --held-out")
    return learned, kept


def _film(films: Films, seen: Look) -> str:
    receipt = films.prompt(seen).receipt
    return receipt.content if receipt else seen.question.text


def longest_of(session: Session, pairs: Sequence[Pair], more: int = 0) -> Answers:
    """Tokens of the longest answer to each question, and `more` behind it."""
    answers = ((pair.question.id, (Span(text),)) for pair in pairs for text in [pair.chosen, pair.rejected])
    return written(session.model.tokenizer, session.model.end_ids[0], answers, more)


def ids_of(session: Session, pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the chosen and the rejected answer, each with its end token."""
    tokenizer, end = session.model.tokenizer, session.model.end_ids[0]
    chosen, rejected = (tokens_of(tokenizer, end, (Span(text),))[0] for text in (pair.chosen, pair.rejected))
    return chosen, rejected
