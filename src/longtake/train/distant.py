"""An endpoint that is asked: frames as JPEG, requests side by side, and an end where nobody answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any

from longtake.data.cache import FrameTier
from longtake.data.subtitles import told
from longtake.data.video import VideoError
from longtake.data.workers import Fit
from longtake.engines.endpoint import jpeg, shown
from longtake.engines.remote import Remote
from longtake.records import Pick
from longtake.runtime.onlooker import Onlooker, sent
from longtake.train.asking import Ask, Replies, Reply, Said

GIVE_UP = 20  # requests in a row that failed after all their tries: the endpoint is gone, and asking on helps nobody
Schema = Mapping[str, Any]


@dataclass(slots=True)
class RemoteAsker:
    """Up to `workers` requests at once. Example: RemoteAsker(Remote(url, model), tier, fit_for(262144), 8)."""

    remote: Remote
    tier: FrameTier
    fit: Fit
    workers: int
    temperature: float | None = 0.0
    schema: Schema | None = None
    subtitles: bool = True  # whether those of the rows are read
    pick: Pick | None = None  # of frames, where rows name none
    gave_up: str = ""  # why nobody was asked any more
    marks: tuple[str, ...] = ()

    def ask(self, asks: Sequence[Ask], max_tokens: int, known: Collection[str]) -> Replies:
        """In the order in which replies come. Raises UserError where the endpoint refuses everybody."""
        todo = deque(one for one in asks if one.key not in known)
        expected, stop, in_a_row, counting = len(todo), Event(), 0, Lock()
        heard: SimpleQueue[tuple[str, Reply, int] | BaseException] = SimpleQueue()

        def work() -> None:
            nonlocal in_a_row
            while not stop.is_set():
                try:
                    one = todo.popleft()
                except IndexError:
                    return
                try:
                    reply = self._one(one, max_tokens)
                except BaseException as error:
                    heard.put(error)
                    return
                with counting:  # here and not where replies are taken: that may be far behind, and workers ask on
                    in_a_row = in_a_row + 1 if reply.error else 0
                    if in_a_row == GIVE_UP:
                        stop.set()
                    heard.put((one.key, reply, in_a_row))

        for _ in range(min(self.workers, expected)):
            Thread(target=work, daemon=True).start()
        try:
            for _ in range(expected):
                got = heard.get()
                if isinstance(got, BaseException):
                    raise got
                key, reply, failed = got
                yield key, reply
                if failed == GIVE_UP:
                    self.gave_up = f"{failed} requests in a row failed, the last with {reply.error}"
                    return
        finally:
            stop.set()

    def close(self) -> None:
        self.remote.close()

    def _one(self, one: Ask, max_tokens: int) -> Reply:
        """One request. A film that cannot be read is this request's failure."""
        (draw,), question = one.draws, one.look.question
        if self.subtitles:
            question = told(question, one.look.policy)
        pictures: list[bytes] = []
        said, receipt = "", None
        if question.video is not None:
            try:
                policy = sent(one.look.policy, self.pick)
                frames_FHWC, receipt = self.tier.take(Path(question.video), policy, self.fit)
            except VideoError as error:
                return Reply((), calls=0, error=" ".join(str(error).split())[:300])
            pictures = [jpeg(frame) for frame in frames_FHWC]
            said = shown(receipt.seconds)
        heard = self.remote.chat(
            question.text, pictures, max_tokens, said=said, temperature=self.temperature,
            seed=draw.seed % 2**31 if self.temperature else None, schema=self.schema,
        )  # fmt: skip
        texts = () if heard.error else (Said(heard.text, heard.tokens_out, heard.finish),)
        return Reply(texts, heard.tokens_in, heard.calls, heard.troubles, heard.error, receipt)


def fit_for(most: int) -> Fit:
    """Frames at their own size, or smaller: at most `most` pixels."""
    return Onlooker(most).fit
