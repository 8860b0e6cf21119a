"""Jobs for a worker that may die: as many at once as it has room for, each film once, and once more after a death.

N visual tokens, E numbers of a visual token.
"""

from __future__ import annotations

import itertools
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from longtake.engines.vllm_process import Gone, Peer
from longtake.engines.vllm_troubles import dead, refused, unstarted
from longtake.models.network import Sent
from longtake.records import Prompt
from longtake.runtime.load import DTYPES
from longtake.runtime.rows import FeaturesOf

Begin = Callable[[Path, Mapping[str, Any], Path], Peer]  # a worker, of a folder of weights, options, and its log
AHEAD = 131072  # prompt tokens that are asked about at once; the worker holds features of no more than these


@dataclass(frozen=True, slots=True)
class Job:
    """Something to ask about a prompt. Example: Job("score", prompt, None, (7, 2), {"tail": 2})."""

    op: str
    prompt: Prompt
    sent: Sent | None  # how its features go; None = it has none
    tail: tuple[int, ...]  # tokens behind the prompt
    content: Mapping[str, Any]  # what else the worker's method reads


@dataclass(slots=True)
class Link:
    """A worker, which the first weights start. Example: Link(worker_at(python), python, {}, folder, features, 60)."""

    begin: Begin
    where: str  # its Python or URL
    options: Mapping[str, Any]  # of vllm.LLM
    folder: Path  # its log, and files on their way
    features: FeaturesOf
    patience: float  # seconds that it may take to start, or be silent
    say: Callable[[str], None] = lambda text: None
    restarts: int = 0  # times it died and was started again
    shelf: Path | None = None  # where its weights lie
    _process: Peer | None = None
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def load(self, shelf: Path) -> None:
        """It answers with the weights that lie there. Raises UserError."""
        self.shelf = shelf
        if self._process is None:
            self._start()
            return
        try:
            self._process.say("load", model=str(shelf))
            while "number" in (reply := self._hear()) and reply["number"] >= 0:
                pass  # of a call that was broken off
        except Gone as gone:
            self._restart(gone, "with the new weights")
            return
        if reply["op"] != "loaded":
            raise refused(reply, "the new weights", self.options)

    def exchange(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The worker's reply to each. Raises UserError, also when it dies a second time."""
        found: dict[int, dict[str, Any]] = {}
        try:
            self._try(jobs, found)
        except Gone as gone:
            self._restart(gone, f"for {len(jobs) - len(found)} of {len(jobs)} questions")
            try:
                self._try(jobs, found)
            except Gone as again:
                self._kill()
                raise dead(str(again), self.folder / "engine.log") from again
        return [found[place] for place in range(len(jobs))]

    def close(self) -> None:
        if self._process is not None:
            self._process.close()
        self._kill()
        for shelf in self.folder.glob("weights-*"):
            shutil.rmtree(shelf, ignore_errors=True)
        self.shelf = None

    def _try(self, jobs: Sequence[Job], found: dict[int, dict[str, Any]]) -> None:
        """`_round`; if that is broken off, the worker need not go on."""
        try:
            self._round(jobs, found)
        except Gone:
            raise
        except BaseException:
            if self._process is not None:
                self._process.say("drop")
            raise

    def _round(self, jobs: Sequence[Job], found: dict[int, dict[str, Any]]) -> None:
        """Asks for what is not found yet, as much at once as AHEAD allows. Raises Gone, and UserError."""
        if self._process is None:
            self._start()
        waiting = deque(place for place in range(len(jobs)) if place not in found)
        uses = Counter(jobs[place].prompt.features for place in waiting)
        there: set[str] = set()  # handles whose features it holds
        flying: dict[int, int] = {}  # number → place
        assert self._process is not None
        while waiting or flying:
            ahead = sum(len(jobs[place].prompt.ids) for place in flying.values())
            if waiting and (not flying or ahead + len(jobs[waiting[0]].prompt.ids) <= AHEAD):
                number = next(self._numbers)
                flying[number] = waiting.popleft()
                self._ask(number, jobs[flying[number]], there)
                continue
            reply = self._hear()
            if reply.get("number") not in flying:
                continue  # of a call that was broken off
            place = flying.pop(reply["number"])
            handle = jobs[place].prompt.features
            if reply["op"] == "refused":
                raise refused(reply, f"question {jobs[place].prompt.id}", self.options)
            found[place] = reply
            uses[handle] -= 1
            if handle is not None and not uses[handle]:
                self._process.say("forget", handle=handle)

    def _ask(self, number: int, job: Job, there: set[str]) -> None:
        """Sends a job, and before it the features of its film if the worker does not hold them."""
        assert self._process is not None
        film, short = None, job.prompt.ids
        handle = job.prompt.features
        if handle is not None:
            assert job.sent is not None
            film = asdict(job.sent) | {"handle": handle, "visual": job.prompt.visual}
            short = film.pop("ids")
            if handle not in there:
                there.add(handle)
                level_LNE = self.features([handle])[0].level_LNE
                tokens_NE = torch.cat(list(level_LNE), -1).to("cpu", DTYPES[self.options["dtype"]])
                if len(tokens_NE) != sum(stop - start for start, stop in job.prompt.visual):
                    raise ValueError(f"{len(tokens_NE)} visual tokens do not fill question {job.prompt.id}")
                file = self.folder / f"features-{number}.safetensors"
                save_file({"features": tokens_NE.contiguous()}, file)
                self._process.say("features", handle=handle, file=str(file))
        ids = {"ids": [*job.prompt.ids, *job.tail], "sent": [*short, *job.tail]}
        self._process.say(job.op, number=number, film=film, **ids, **job.content)

    def _hear(self) -> dict[str, Any]:
        """The next message that is more than a sign of life."""
        assert self._process is not None
        while (message := self._process.hear(self.patience))["op"] == "beat":
            pass
        if message["op"] == "broken":
            raise Gone(f"{message['kind']}: {message['why']}")
        return message

    def _start(self) -> None:
        log = self.folder / "engine.log"
        try:
            assert self.shelf is not None
            self._process = self.begin(self.shelf, self.options, log)
            message = self._process.hear(self.patience)
        except Gone as gone:
            message = {"op": "failed", "kind": "", "why": str(gone)}
        if message["op"] != "ready":
            self._kill()
            raise unstarted(message, self.where, log, self.options)
        self.say(f"vLLM {message['vllm']} answers on {message['device']}")

    def _restart(self, gone: Gone, what: str) -> None:
        self.restarts += 1
        self._kill()
        self.say(f"vLLM died ({gone}): it is started again {what}")
        self._start()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
        self._process = None
        for file in self.folder.glob("features-*"):
            file.unlink()
