"""The engine in the trainer's own process: same weights, same kernels, each prefix computed once for all its answers.

Over several ranks every sequence of them answers some batches of questions: its ranks compute the prefixes together,
then each decodes some of the answers, and none waits for another while it does. In the end all have all answers.

N questions, G answers each, A = N G, E model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from longtake.engines.decode import Decode, Pairs
from longtake.engines.graph import Disagreement, Step, recorder_for
from longtake.engines.loop import Loop, Written, alone
from longtake.errors import UserError
from longtake.maths.pack import answer_rows, pack
from longtake.parallel.fsdp import in_parts, whole
from longtake.parallel.ranks import ONE, Ranks
from longtake.protocols import Model
from longtake.records import Answer, Draw, Group, Prompt
from longtake.runtime.prefix import Keep, Prefill, begin
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import FeaturesOf, bare, cached, compute, lead

Runs = list[
    tuple[list[Prompt], Prefill | None]
]  # one film's prompts each, and their prefill; None = other ranks have it


def _silent(text: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Neighbouring questions, answered on one prefill that training goes on with."""

    groups: tuple[Group, ...]
    made: Prefill | None  # None = other ranks have it


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
    ranks: Ranks = ONE
    at: Callable[[str], None] = _silent  # is told which question is at work

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; every prompt has the same number of draws, and an answer depends on its own draw's seed alone.

        Neighbours that ask about the same features share what their prompts begin with.
        Raises ValueError for ragged draws, UserError for a model whose numbers are not finite.
        """

        def written(batch: tuple[int, int]) -> list[Written]:
            own, heats = prompts[slice(*batch)], draws[slice(*batch)]
            self.at(f"question {own[0].id}")
            made = compute(self.model, bare(self.model, own), self.features, "nothing", self.ranks)
            return self._written([made], own, heats, max_tokens)

        with whole(self.model.layers):
            found = self.ranks.data.deal(list(self._batches(prompts, draws)), written)
        return self._groups(prompts, draws, [answer for batch in found for answer in batch])

    @torch.no_grad()
    def rollout(
        self,
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        max_tokens: int,
        keep: Callable[[Sequence[Prompt]], Keep],
    ) -> Iterator[list[Kept]]:
        """`generate` for training: batch by batch, each film's prefill kept as `keep` says of its prompts; over several
        sequences of ranks as many batches at once as there are of these.
        """
        start, batches = 0, self.prefills(prompts, draws, keep)
        while start < len(prompts):
            with whole(self.model.layers):
                runs = next(batches)
                stop = start + sum(len(run) for run, _ in runs)
                kept = self._answered(runs, prompts[start:stop], draws[start:stop], max_tokens)
            yield kept
            start = stop
            del kept

    def _answered(
        self,
        runs: Runs,
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        max_tokens: int,
    ) -> list[Kept]:
        """The prompts of `runs` answered; empties it, so that nobody but the caller holds the prefills."""
        here = [made is not None for run, made in runs for _ in run]
        first, count = here.index(True) if any(here) else 0, sum(here)
        mine = slice(first, first + count)
        mades = [made for _, made in runs if made is not None]
        own = self._written(mades, prompts[mine], draws[mine], max_tokens) if mades else []
        every = [answer for one in self.ranks.data.gather(own) for answer in one]
        groups = iter(self._groups(prompts, draws, every))
        kept = [Kept(tuple(next(groups) for _ in run), made) for run, made in runs]
        runs.clear()
        return kept

    @torch.no_grad()
    def prefills(
        self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], keep: Callable[[Sequence[Prompt]], Keep]
    ) -> Iterator[Runs]:
        """Batch by batch, each film's prompts and their prefill, kept as `keep` says of them; see `rollout`."""
        batches, data = list(self._batches(prompts, draws)), self.ranks.data
        for first in range(0, len(batches), data.size):
            runs: Runs = []
            for place, (start, stop) in enumerate(batches[first : first + data.size]):
                films = [list(run) for run in _by_film(prompts[start:stop])]
                runs += [(run, self._prefill(run, keep(run)) if place == data.index else None) for run in films]
            yield runs

    def _batches(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]]) -> Iterator[tuple[int, int]]:
        """(start, stop) of prompts that are answered together."""
        if len({len(own) for own in draws}) > 1:
            raise ValueError("every prompt needs the same number of draws in one call")
        start, most = 0, -(-len(prompts) // self.ranks.data.size)  # something to do for every sequence of ranks
        while start < len(prompts):
            stop, tokens = start + 1, len(prompts[start].ids)
            while stop < len(prompts) and tokens + len(prompts[stop].ids) <= self.row_tokens:
                if (stop + 1 - start) * len(draws[start]) > self.answers:
                    break
                if stop - start >= most and not of_one_film(prompts[stop - 1], prompts[stop]):
                    break
                tokens += len(prompts[stop].ids)
                stop += 1
            yield start, stop
            start = stop

    def _prefill(self, prompts: Sequence[Prompt], keep: Keep) -> Prefill:
        """One film's prefixes: computed, or as they were kept."""
        row = bare(self.model, prompts)
        self.at(f"question {prompts[0].id}")
        if self.prefixes is None:
            return compute(self.model, row, self.features, keep, self.ranks)
        return cached(self.model, row, self.features, self.prefixes, self.ranks)

    def _written(
        self, mades: Sequence[Prefill], prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int
    ) -> list[Written]:
        """All answers to the prompts, prompt by prompt, each decoded by one rank of the sequence."""
        per_prompt = len(draws[0])
        hidden_NE, begun = self._begin(mades, prompts)
        logits = self.model.head(hidden_NE).repeat_interleave(per_prompt, 0)
        if not logits.isfinite().all():
            why, fix = "its weights are damaged, or too large for their dtype", "try --dtype float32"
            raise UserError("the model computes no finite numbers", why=why, fix=fix)
        starts = [int(prompt.position_3P.max()) + 1 for prompt in prompts for _ in range(per_prompt)]
        flat = [draw for own in draws for draw in own]
        fresh = partial(Decode, mades, per_prompt, max_tokens, begun)
        with alone(hidden_NE, len(flat), max(len(prompt.ids) for prompt in prompts)):
            mine = self._rows(fresh, starts, flat, logits, max_tokens)
        return self.ranks.sequence.woven(mine)

    def _groups(
        self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], answers: Sequence[Written]
    ) -> list[Group]:
        every = iter(answers)
        return [
            Group(prompt, tuple(self._answer(draw, *next(every)) for draw in own))
            for prompt, own in zip(prompts, draws, strict=True)
        ]

    def _rows(
        self,
        fresh: Callable[..., Decode],
        starts: Sequence[int],
        draws: Sequence[Draw],
        logits: Tensor,
        max_tokens: int,
    ) -> list[Written]:
        """Every answer that is this rank's to decode; `starts`: positions of their first tokens."""
        axis = self.ranks.sequence
        mine = torch.arange(len(draws), device=logits.device)[axis.index :: axis.size]
        if not len(mine):
            return []
        while True:
            recorder = None if in_parts(self.model.layers) else recorder_for(self.model)  # FSDP's streams are in a call
            step = Step(self.model, fresh(static=recorder is not None), starts, recorder, self.say)
            try:
                loop = Loop(step, self.model.end_ids, draws, max_tokens)
                return loop.run(logits, mine if axis.size > 1 else None)
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


def of_one_film(one: Prompt, other: Prompt) -> bool:
    """Whether they share features, and so most of a prefix."""
    return one.features is not None and one.features == other.features


def _by_film(prompts: Sequence[Prompt]) -> Iterator[Iterator[Prompt]]:
    """Neighbours on the same features together; a prompt without any stands alone."""
    for _, run in groupby(enumerate(prompts), lambda one: one[1].features or one[0]):
        yield (prompt for _, prompt in run)
