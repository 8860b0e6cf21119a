"""Asking on a large scale: prompts in, replies out, each on disk as it comes, so that a killed run asks the rest only.

Whoever answers, the model in this process or an endpoint (train/distant.py), takes the same asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from longtake.engines.local import LocalEngine
from longtake.log import Log, append_jsonl, read_jsonl
from longtake.records import Draw, Receipt
from longtake.runtime.films import Films, Look
from longtake.train.footage import encode
from longtake.train.reach import check_fits


@dataclass(frozen=True, slots=True)
class Ask:
    """One prompt and how its answers are drawn. Example: Ask("cups-7#0:AB", look, (Draw(0.0, 7),))."""

    key: str  # names it on disk
    look: Look  # the whole text is the question's
    draws: tuple[Draw, ...]  # [G]


@dataclass(frozen=True, slots=True)
class Said:
    """One answer's text. Example: Said("<answer>A</answer>", 9, "stop")."""

    text: str
    tokens: int
    finish: str


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of an ask. Example: Reply((Said("B", 1, "stop"),), 812, receipt=receipt)."""

    said: tuple[Said, ...]  # [G]; () if it failed
    tokens_in: int = 0
    calls: int = 1
    troubles: tuple[str, ...] = ()  # tries that failed, by status or name
    error: str = ""  # why it failed in the end
    receipt: Receipt | None = None  # of what whoever answered saw


Replies = Generator[tuple[str, Reply], None, None]


class Asker(Protocol):
    """Someone who answers."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Tokens that steer its chat: no text that is quoted to it may hold them."""

    def ask(self, asks: Sequence[Ask], max_tokens: int, known: Collection[str]) -> Replies:
        """(key, reply) of all asks whose key is not in `known`, in any order; of others too if it must."""

    def close(self) -> None:
        """Lets go of what it holds."""


class Ledger:
    """Replies by key, in a file of JSON lines. Example: Ledger(out / "asked" / "verdicts.jsonl")["cups-7#0:AB"]."""

    def __init__(self, path: Path, *, writes: bool = True) -> None:
        """`writes`: False where another rank does, and this one keeps in memory what it adds."""
        self.path, self._writes = path, writes
        self._found: dict[str, list[Reply]] = {}
        for row in read_jsonl(path) if path.exists() else []:
            self._take(row.pop("key"), _reply(row))

    def __getitem__(self, key: str) -> Reply:
        return self._found[key][-1]

    def get(self, key: str) -> Reply | None:
        """The reply, None if the ask never came to one."""
        return self._found[key][-1] if key in self._found else None

    @property
    def known(self) -> set[str]:
        """Keys that need not be asked again: those that did not fail."""
        return {key for key, replies in self._found.items() if not replies[-1].error}

    def add(self, key: str, reply: Reply) -> None:
        if self._writes:
            append_jsonl(self.path, {"key": key, **asdict(reply)})
        self._take(key, reply)

    def _take(self, key: str, reply: Reply) -> None:
        """A batch that was cut short is answered again, to the same effect: such an answer counts once."""
        failed = [old for old in self._found.get(key, []) if old.error]
        self._found[key] = [*failed, reply]

    def spent(self) -> Spent:
        """What all of it took, failed tries and earlier sittings included."""
        every = [reply for replies in self._found.values() for reply in replies]
        failed = [replies[-1].error for replies in self._found.values() if replies[-1].error]
        return Spent(
            asks=len(self._found),
            failed=len(failed),
            calls=sum(reply.calls for reply in every),
            retries=sum(max(0, reply.calls - 1) for reply in every),
            tokens_in=sum(reply.tokens_in for reply in every),
            tokens_out=sum(said.tokens for reply in every for said in reply.said),
            failures=dict(sorted(Counter(name for reply in every for name in reply.troubles).items())),
            last_error=failed[-1] if failed else "",
        )


@dataclass(frozen=True, slots=True)
class Spent:
    """What asking took. Example: Spent(asks=24, failed=0, calls=25, retries=1, failures={"429": 1}, …)."""

    asks: int = 0
    failed: int = 0  # asks without a reply after all tries
    calls: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    failures: Mapping[str, int] = field(default_factory=dict)  # tries, by status or name
    last_error: str = ""

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.asks + other.asks,
            self.failed + other.failed,
            self.calls + other.calls,
            self.retries + other.retries,
            self.tokens_in + other.tokens_in,
            self.tokens_out + other.tokens_out,
            dict(sorted((Counter(self.failures) + Counter(other.failures)).items())),
            other.last_error or self.last_error,
        )


def ask(asker: Asker, asks: Sequence[Ask], max_tokens: int, ledger: Ledger, log: Log) -> None:
    """Puts into the ledger what it lacks of these asks."""
    name, known = ledger.path.stem, ledger.known
    with log.phase(name), log.progress(name, len(asks)) as progress:
        progress.advance(sum(one.key in known for one in asks))
        with closing(asker.ask(asks, max_tokens, known)) as replies:
            for key, reply in replies:
                ledger.add(key, reply)
                progress.advance(key not in known)


@dataclass(slots=True)
class LocalAsker:
    """The model in this process, `batch` asks at a time."""

    films: Films
    engine: LocalEngine
    batch: int
    log: Log

    @property
    def marks(self) -> tuple[str, ...]:
        return tuple(self.films.model.tokenizer.all_special_tokens)

    def ask(self, asks: Sequence[Ask], max_tokens: int, known: Collection[str]) -> Replies:
        """A batch is answered whole or not at all: what is computed together may differ in the last bit."""
        fix = "lower --video.frames, --judge.frames, --context.clips or one of the --max-tokens"
        check_fits(self.films, [one.look for one in asks if one.key not in known], lambda question: max_tokens, fix)
        for start in range(0, len(asks), self.batch):
            batch = asks[start : start + self.batch]
            if all(one.key in known for one in batch):
                continue
            encode(self.films, [one.look for one in batch], self.log)
            prompts = [self.films.prompt(one.look) for one in batch]
            groups = self.engine.generate(prompts, [one.draws for one in batch], max_tokens)
            for one, group in zip(batch, groups, strict=True):
                said = tuple(Said(answer.text, len(answer.ids), answer.finish) for answer in group.answers)
                yield one.key, Reply(said, len(group.prompt.ids), receipt=group.prompt.receipt)

    def close(self) -> None:
        """Nothing to let go of."""


def _reply(row: dict[str, Any]) -> Reply:
    """As asdict wrote it."""
    seen: dict[str, Any] | None = row.pop("receipt")
    receipt = None
    if seen is not None:
        tuples: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in seen.items()
        }
        receipt = Receipt(**tuples)
    said = tuple(Said(**one) for one in row.pop("said"))
    return Reply(said, troubles=tuple(row.pop("troubles")), receipt=receipt, **row)
