"""One token further for all answers, recorded as a CUDA graph where that pays.

A step is a thousand small kernels, and to launch them one by one takes longer than to run them. A recording launches
them together, on the same places in memory: so a step reads what changes from token to token from the device. How
torch wants it done: a run on a side stream, the recording on that stream, replays.

A answers, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn

from longtake.engines.decode import Decode
from longtake.protocols import Model

PAYS = 32  # replays that are worth a recording
AGREE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # of the largest logit
Run = Callable[[], Tensor]
_plain: WeakSet[nn.Module] = WeakSet()  # networks that cannot be recorded


class Disagreement(Exception):
    """A recorded step gave other numbers, and nobody knows what it wrote where: decoding must start again."""


class Recorder(Protocol):
    """A device's way to record what runs on it."""

    def rehearse(self, run: Run) -> Tensor:
        """Runs it; raises RuntimeError where it cannot be recorded."""

    def record(self, run: Run) -> Run:
        """Notes what it would run: the result runs that again, into one and the same tensor. Raises RuntimeError."""


def recorder_for(model: Model) -> Recorder | None:
    """None where nothing can be recorded, or this network could not be."""
    device = model.net.device
    return Cuda(device) if device.type == "cuda" and model.net not in _plain else None


class Step:
    """Logits after one more token of every answer. Example: Step(model, decode, starts, None, print)(ids_A, left=8)."""

    def __init__(
        self, model: Model, decode: Decode, starts: Sequence[int], recorder: Recorder | None, say: Callable[[str], None]
    ) -> None:
        """`starts`: positions of the answers' first tokens; `recorder`: for a static `decode` only; `say` is told once
        why this network is not recorded.
        """
        self.decode, self.device = decode, model.net.device
        self._model, self._recorder, self._say = model, recorder, say
        self._position_A = torch.tensor(starts, device=self.device)
        self._ids_A = torch.zeros_like(self._position_A)
        self._none_A = torch.zeros_like(self._position_A, dtype=torch.bool)
        self._replay: Run | None = None
        self._proved = False

    def __call__(self, ids_A: Tensor, left: int) -> Tensor:
        """[A, V], good until the next call. `left`: how many calls will follow. Raises Disagreement."""
        if self.decode.make_room():
            self._replay = None
        self._ids_A.copy_(ids_A)
        if self._replay is not None:
            logits_AV = self._replay() if self._proved else self._prove(self._replay)
        elif self._recorder is not None and min(left, self.decode.room - self.decode.at - 1) >= PAYS:
            logits_AV = self._record(self._recorder)
        else:
            logits_AV = self._run()
        self.decode.at += 1
        return logits_AV

    def only(self, alive: Tensor) -> None:
        """Goes on with these of its answers alone."""
        self._replay = None
        self.decode.only(alive.tolist())
        self._position_A, self._ids_A, self._none_A = (x[alive] for x in (self._position_A, self._ids_A, self._none_A))

    def _run(self) -> Tensor:
        self.decode.enter()
        embed_AE = self._model.embed(self._ids_A)
        hidden_AE = self._model.hidden(embed_AE, self._position_A.expand(3, -1), self._none_A, None, self.decode)
        logits_AV = self._model.head(hidden_AE)
        for number in self._moving():
            number.add_(1)
        return logits_AV

    def _record(self, recorder: Recorder) -> Tensor:
        """This token the plain way; those that follow by what is recorded now."""
        before = [number.clone() for number in self._moving()]
        try:
            logits_AV = recorder.rehearse(self._run)
        except RuntimeError as error:
            self._give_up(str(error))
            self._back_to(before)
            return self._run()
        try:
            self._replay, self._proved = recorder.record(self._run), False
        except RuntimeError as error:
            self._give_up(str(error))
        return logits_AV

    def _prove(self, replay: Run) -> Tensor:
        """A recording's first token, both ways: not on the token of the recording, so that what went stale shows."""
        before = [number.clone() for number in self._moving()]
        want_AV = self._run()
        self._back_to(before)
        got_AV = replay()
        apart = float((got_AV - want_AV).abs().max() / want_AV.abs().max())
        self._proved = apart <= AGREE[self._model.net.dtype]
        if not self._proved:  # also where either is not a number
            self._give_up(f"a replayed step's logits were {apart:.1e} of the largest off")
            raise Disagreement
        return got_AV

    def _moving(self) -> list[Tensor]:
        """What a step counts up by one on the device."""
        return [self._position_A, *self.decode.moving]

    def _back_to(self, before: Sequence[Tensor]) -> None:
        for number, old in zip(self._moving(), before, strict=True):
            number.copy_(old)

    def _give_up(self, why: str) -> None:
        _plain.add(self._model.net)
        self._recorder = self._replay = None
        first = why.strip().partition("\n")[0]
        self._say(f"decoding goes on without CUDA graphs, slower: {first}")


class Cuda:
    """Recordings of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._side = _side_stream(device)

    def rehearse(self, run: Run) -> Tensor:
        now = torch.cuda.current_stream(self._side.device)
        self._side.wait_stream(now)
        with torch.cuda.stream(self._side), _no_waiting():
            out = run()
        now.wait_stream(self._side)
        return out

    def record(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        # the outer context brings the stream back where the recording's own end fails
        with (
            torch.cuda.stream(self._side),
            torch.cuda.graph(graph, stream=self._side, capture_error_mode="thread_local"),
        ):
            out = run()

        def replay() -> Tensor:
            graph.replay()
            return out

        return replay


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: libraries keep working memory for every stream that they have seen."""
    return torch.cuda.Stream(device)


@contextmanager
def _no_waiting() -> Iterator[None]:
    """What makes the host wait for the device, and so cannot be recorded, raises RuntimeError: a recording that fails
    half-way leaves torch's memory manager in a state that it does not get out of.
    """
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls this mode a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
