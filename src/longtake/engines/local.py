"""The engine in the trainer's own process: same weights, same kernels, each prefix computed once for all its answers.

N questions, G answers each, A = N G, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

from longtake.engines.decode import Decode, Pairs
from longtake.engines.graph import Disagreement, Step, recorder_for
from longtake.errors import UserError
from longtake.maths.pack import answer_rows, pack
from longtake.protocols import Model
from longtake.records import Answer, Draw, Group, Prompt
from longtake.runtime.prefix import Keep, Prefill, begin
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import FeaturesOf, bare, cached, compute, lead


def _silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Neighbouring questions, answered on one prefill that training goes on with."""

    groups: tuple[Group, ...]
    made: Prefill


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Answers with the model itself.

    Example: LocalEngine(model, films.features, "sft-400").generate([prompt], [[Draw(1.0, 7)]], 48).
    """

    model: Model
    features: FeaturesOf  # handles → features
    weights: str  # version written on every answer
    row_tokens: int = 16384  # prefix tokens whose keys and values are held at once
    answers: int = 512  # decoded together
    prefixes: PrefixCache | None = None  # keys and values of prefixes, kept for the run (aLoRA)
    say: Callable[[str], None] = _silent  # is told once if decoding must go on without CUDA graphs

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; every prompt has the same number of draws, and an answer depends on its own draw's seed alone.

        Neighbours that ask about the same features share what their prompts begin with.
        Raises ValueError for ragged draws, UserError for a model whose numbers are not finite.
        """
        groups: list[Group] = []
        for start, stop in self._batches(prompts, draws):
            made = compute(self.model, bare(self.model, prompts[start:stop]), self.features, "nothing")
            groups += self._answers([made], prompts[start:stop], draws[start:stop], max_tokens)
        return groups

    @torch.no_grad()
    def rollout(
        self,
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        max_tokens: int,
        keep: Callable[[Sequence[Prompt]], Keep],
    ) -> Iterator[list[Kept]]:
        """`generate` for training: batch by batch, each film's prefill kept as `keep` says of its prompts."""
        start = 0
        for runs in self.prefills(prompts, draws, keep):
            stop = start + sum(len(run) for run, _ in runs)
            yield self._answered(runs, prompts[start:stop], draws[start:stop], max_tokens)
            start = stop

    def _answered(
        self,
        runs: list[tuple[list[Prompt], Prefill]],
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        max_tokens: int,
    ) -> list[Kept]:
        """The prompts of `runs` answered; empties it, so that nobody but the caller holds the prefills."""
        groups = iter(self._answers([made for _, made in runs], prompts, draws, max_tokens))
        kept = [Kept(tuple(next(groups) for _ in run), made) for run, made in runs]
        runs.clear()
        return kept

    @torch.no_grad()
    def prefills(
        self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], keep: Callable[[Sequence[Prompt]], Keep]
    ) -> Iterator[list[tuple[list[Prompt], Prefill]]]:
        """Batch by batch, each film's prompts and their prefill, kept as `keep` says of them."""
        for start, stop in self._batches(prompts, draws):
            runs = [list(run) for run in _by_film(prompts[start:stop])]
            yield [(run, self._prefill(run, keep(run))) for run in runs]

    def _batches(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]]) -> Iterator[tuple[int, int]]:
        """(start, stop) of prompts that are answered together."""
        if len({len(own) for own in draws}) > 1:
            raise ValueError("every prompt needs the same number of draws in one call")
        start = 0
        while start < len(prompts):
            stop, tokens = start + 1, len(prompts[start].ids)
            while stop < len(prompts) and tokens + len(prompts[stop].ids) <= self.row_tokens:
                if (stop + 1 - start) * len(draws[start]) > self.answers:
                    break
                tokens += len(prompts[stop].ids)
                stop += 1
            yield start, stop
            start = stop

    def _prefill(self, prompts: Sequence[Prompt], keep: Keep) -> Prefill:
        """One film's prefixes: computed, or as they were kept."""
        row = bare(self.model, prompts)
        if self.prefixes is None:
            return compute(self.model, row, self.features, keep)
        return cached(self.model, row, self.features, self.prefixes)

    def _answers(
        self, mades: Sequence[Prefill], prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int
    ) -> list[Group]:
        per_prompt = len(draws[0])
        hidden_NE, begun = self._begin(mades, prompts)
        logits = self.model.head(hidden_NE).repeat_interleave(per_prompt, 0)
        if not logits.isfinite().all():
            why, fix = "its weights are damaged, or too large for their dtype", "try --dtype float32"
            raise UserError("the model computes no finite numbers", why=why, fix=fix)
        starts = [int(prompt.position_3P.max()) + 1 for prompt in prompts for _ in range(per_prompt)]
        flat = [draw for own in draws for draw in own]
        fresh = partial(Decode, mades, per_prompt, max_tokens, begun)
        with _alone(hidden_NE, len(flat), max(len(prompt.ids) for prompt in prompts)):
            rows = iter(self._rows(fresh, starts, flat, logits, max_tokens))
        return [
            Group(prompt, tuple(self._answer(draw, *next(rows)) for draw in own))
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def _rows(
        self,
        fresh: Callable[..., Decode],
        starts: Sequence[int],
        draws: Sequence[Draw],
        logits: Tensor,
        max_tokens: int,
    ) -> list[tuple[list[int], list[float]]]:
        """Tokens and log-probabilities of every answer; `starts`: positions of their first tokens."""
        while True:
            recorder = recorder_for(self.model)
            step = Step(self.model, fresh(static=recorder is not None), starts, recorder, self.say)
            try:
                return _Loop(step, self.model.end_ids, draws, max_tokens).run(logits)
            except Disagreement:
                continue  # from now on without a recorder

    def _begin(self, mades: Sequence[Prefill], prompts: Sequence[Prompt]) -> tuple[Tensor, Pairs | None]:
        """What predicts the answers' first token [N, E]; keys and values [N, K, t, D] of an activated LoRA's header."""
        tokens = lead(self.model)
        if not tokens:
            return torch.cat([made.tips_NE for made in mades]), None
        hidden, kept, start = [], [], 0
        for made in mades:
            stop = start + len(made.tips_NE)
            one = [[(0,)] for _ in prompts[start:stop]]  # never fed: only the header before it is
            row = pack(prompts[start:stop], one, [[(0.0,)]] * len(one), lead=tokens)
            for part in answer_rows(row, len(row.ids_T)):
                found, kv = begin(self.model, made, part)
                hidden.append(found)
                kept.append([tuple(x[0].unflatten(1, (-1, tokens)).transpose(0, 1) for x in pair) for pair in kv])
            start = stop
        layers = [tuple(torch.cat(sides) for sides in zip(*pairs, strict=True)) for pairs in zip(*kept, strict=True)]
        return torch.cat(hidden), [(k, v) for k, v in layers]

    def _answer(self, draw: Draw, ids: list[int], logprobs: list[float]) -> Answer:
        """One answer cut at its end token."""
        end = next((place + 1 for place, token in enumerate(ids) if token in self.model.end_ids), None)
        kept = ids[:end]
        text = self.model.tokenizer.decode(kept[:-1] if end else kept, skip_special_tokens=False)
        return Answer(tuple(kept), tuple(logprobs[:end]), text, "stop" if end else "length", draw.seed, self.weights)


class _Loop:
    """Token by token, until every answer has ended; answers that have ended leave when they are half of all."""

    def __init__(self, step: Step, ends: Sequence[int], draws: Sequence[Draw], max_tokens: int) -> None:
        self.step, self.max_tokens = step, max_tokens
        chance = np.stack([np.random.Generator(np.random.Philox(key=draw.seed)).random(max_tokens) for draw in draws])
        self.chance_At = torch.from_numpy(chance).to(step.device)
        self.heat_A1 = torch.tensor([[draw.temperature] for draw in draws], device=step.device)
        self.greedy = not any(draw.temperature for draw in draws)
        self.ends = torch.tensor(ends, device=step.device)

    def run(self, logits_AV: Tensor) -> list[tuple[list[int], list[float]]]:
        """Of every answer its tokens and their log-probabilities; what follows an end token means nothing."""
        found: list[tuple[list[int], list[float]]] = [([], []) for _ in range(len(logits_AV))]
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
                next_A, done_A = self._only((~done_A).nonzero()[:, 0], next_A, done_A)
            logits_AV = self.step(next_A, self.max_tokens - 2 - step)
        self._write(found, ids, logprobs)
        return found

    def _draw(self, logits_AV: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Next tokens [A], and their log-probabilities under what they were drawn from (greedy: temperature 1)."""
        if self.greedy:
            next_A, policy_AV = logits_AV.argmax(-1), logits_AV
        else:
            next_A = sample(logits_AV, self.heat_A1, self.chance_At[:, step])
            policy_AV = logits_AV / torch.where(self.heat_A1 > 0, self.heat_A1, 1)
        return next_A, policy_AV.log_softmax(-1).gather(1, next_A[:, None])[:, 0]

    def _only(self, alive: Tensor, next_A: Tensor, done_A: Tensor) -> tuple[Tensor, Tensor]:
        self.step.only(alive)
        self.chance_At, self.heat_A1 = self.chance_At[alive], self.heat_A1[alive]
        return next_A[alive], done_A[alive]

    def _write(
        self, found: list[tuple[list[int], list[float]]], ids: Sequence[Tensor], logprobs: Sequence[Tensor]
    ) -> None:
        """Adds what was drawn since the last time to the answers that were decoded."""
        columns = (torch.stack(list(ids), 1).tolist(), torch.stack(list(logprobs), 1).tolist())
        for answer, own_ids, own_logprobs in zip(self.step.decode.answers, *columns, strict=True):
            found[answer][0].extend(own_ids)
            found[answer][1].extend(own_logprobs)


@contextmanager
def _alone(hidden_NE: Tensor, answers: int, longest: int) -> Iterator[None]:
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


def _by_film(prompts: Sequence[Prompt]) -> Iterator[Iterator[Prompt]]:
    """Neighbours on the same features together; a prompt without any stands alone."""
    for _, run in groupby(enumerate(prompts), lambda one: one[1].features or one[0]):
        yield (prompt for _, prompt in run)


def sample(logits_AV: Tensor, heat_A1: Tensor, chance_A: Tensor) -> Tensor:
    """The token where the cumulative probability passes `chance`; temperature 0 takes the likeliest.

    chance_A is uniform in [0, 1). Inverse transform sampling: one number decides a token, whatever the batch holds.
    """
    greedy_A = logits_AV.argmax(-1)
    share_AV = (logits_AV.double() / heat_A1.clamp(min=1e-6)).softmax(-1).cumsum(-1)
    drawn_A = torch.searchsorted(share_AV, (chance_A * share_AV[:, -1])[:, None], right=True)[:, 0]
    return torch.where(heat_A1[:, 0] > 0, drawn_A.clamp(max=logits_AV.shape[1] - 1), greedy_A)
