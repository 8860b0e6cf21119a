"""Token by token: how answers are drawn, and when each is done.

A answers, V vocabulary, t tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from longtake.engines.graph import Step
from longtake.records import Draw

Written = tuple[list[int], list[float]]  # tokens of one answer, and their log-probabilities


class Loop:
    """Token by token, until every answer has ended; answers that have ended leave when they are half of all."""

    def __init__(self, step: Step, ends: Sequence[int], draws: Sequence[Draw], max_tokens: int) -> None:
        self.step, self.max_tokens = step, max_tokens
        chance = np.stack([np.random.Generator(np.random.Philox(key=draw.seed)).random(max_tokens) for draw in draws])
        self.chance_At = torch.from_numpy(chance).to(step.device)
        self.heat_A1 = torch.tensor([[draw.temperature] for draw in draws], device=step.device)
        self.greedy = not any(draw.temperature for draw in draws)
        self.ends = torch.tensor(ends, device=step.device)

    def run(self, logits_AV: Tensor, mine: Tensor | None = None) -> list[Written]:
        """Every answer (of those that are `mine`); what follows an end token means nothing."""
        found: list[Written] = [([], []) for _ in range(len(logits_AV))]
        if mine is not None:
            self._only(mine)
            logits_AV = logits_AV[mine]
        done_A = torch.zeros(len(logits_AV), dtype=torch.bool, device=logits_AV.device)
        ids: list[Tensor] = []
        logprobs: list[Tensor] = []
        for step in range(self.max_tokens):
            next_A, logprob_A = self._draw(logits_AV, step)
            ids.append(next_A)
            logprobs.append(logprob_A)
            done_A |= torch.isin(next_A, self.ends)
            alive = len(done_A) - int(done_A.sum())
            if not alive or step == self.max_tokens - 1:
                break
            if 2 * alive <= len(done_A):
                self._write(found, ids, logprobs)
                ids, logprobs = [], []
                alive_A = (~done_A).nonzero()[:, 0]
                self._only(alive_A)
                next_A, done_A = next_A[alive_A], done_A[alive_A]
            logits_AV = self.step(next_A, self.max_tokens - 2 - step)
        self._write(found, ids, logprobs)
        return found if mine is None else [found[answer] for answer in mine.tolist()]

    def _draw(self, logits_AV: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Next tokens [A], and their log-probabilities under what they were drawn from (greedy: temperature 1)."""
        if self.greedy:
            next_A, policy_AV = logits_AV.argmax(-1), logits_AV
        else:
            next_A = sample(logits_AV, self.heat_A1, self.chance_At[:, step])
            policy_AV = logits_AV / torch.where(self.heat_A1 > 0, self.heat_A1, 1)
        return next_A, policy_AV.log_softmax(-1).gather(1, next_A[:, None])[:, 0]

    def _only(self, alive: Tensor) -> None:
        self.step.only(alive)
        self.chance_At, self.heat_A1 = self.chance_At[alive], self.heat_A1[alive]

    def _write(self, found: list[Written], ids: Sequence[Tensor], logprobs: Sequence[Tensor]) -> None:
        """Adds what was drawn since the last time to the answers that were decoded."""
        columns = (torch.stack(list(ids), 1).tolist(), torch.stack(list(logprobs), 1).tolist())
        for answer, own_ids, own_logprobs in zip(self.step.decode.answers, *columns, strict=True):
            found[answer][0].extend(own_ids)
            found[answer][1].extend(own_logprobs)


@contextmanager
def alone(hidden_NE: Tensor, answers: int, longest: int) -> Iterator[None]:
    """One thread for small decoding steps on a CPU: waking another costs more than its share (measured: half the time
    for 8 answers of a width of 256, a quarter less for 128 of 96; no gain beyond these bounds).
    """
    before = torch.get_num_threads()
    few = hidden_NE.device.type == "cpu" and answers * hidden_NE.shape[1] < 2**14 and answers * longest < 2**16
    torch.set_num_threads(1 if few else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def sample(logits_AV: Tensor, heat_A1: Tensor, chance_A: Tensor) -> Tensor:
    """The token where the cumulative probability passes `chance`; temperature 0 takes the likeliest.

    chance_A is uniform in [0, 1). Inverse transform sampling: one number decides a token, whatever the batch holds.
    """
    greedy_A = logits_AV.argmax(-1)
    share_AV = (logits_AV.double() / heat_A1.clamp(min=1e-6)).softmax(-1).cumsum(-1)
    drawn_A = torch.searchsorted(share_AV, (chance_A * share_AV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(heat_A1[:, 0] > 0, drawn_A.clamp(max=logits_AV.shape[1] - 1), greedy_A)
