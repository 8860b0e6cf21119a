"""Answers from an engine in another process, settled for training: the trainer's own log-probabilities, and a weight.

    engine    ← the trainer's weights, where they have changed
    engine    → G answers a question, with the log-probabilities they were sampled with
    trainer   → prefill, kept; the answers scored on it            (the one-forward step goes on with it)
    both      → every answer's importance weight, and how far apart they are (maths.importance)

After that nothing knows who sampled: an answer carries the trainer's log-probabilities and its `correction`.

N questions, G answers, R tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from longtake.engines.for_all import Distant
from longtake.engines.local import Kept, LocalEngine, Runs
from longtake.errors import UserError
from longtake.maths.importance import Mismatch, mismatch
from longtake.maths.logprob import score_tokens
from longtake.parallel.fsdp import whole
from longtake.records import Answer, AnswerRow, Draw, Group, Prompt
from longtake.runtime.prefix import Keep, Prefill
from longtake.train.rows import Item, packed
from longtake.train.step import Passes, read_out

Settled = tuple[list[tuple[Answer, ...]], Mismatch]  # the answers of every group, and how far they were apart


@dataclass(slots=True)
class Outside:
    """A run's engine in another process. Example: Outside(engine, Passes(), cap=3.0, gate=0.05).rollout(…)."""

    engine: Distant
    passes: Passes
    cap: float  # see maths.importance; 0 = no correction
    gate: float  # nats; the first answers must agree so far
    seen: list[Mismatch] = field(default_factory=list)  # since the last step
    checked: bool = False

    def rollout(
        self,
        local: LocalEngine,
        prompts: Sequence[Prompt],
        draws: Sequence[Sequence[Draw]],
        max_tokens: int,
        keep: Callable[[Sequence[Prompt]], Keep],
    ) -> Iterator[list[Kept]]:
        """What `local.rollout` gives, answered by the engine; all draws are of one temperature above 0.

        Raises UserError where log-probabilities of the first answers are further apart than the gate.
        """
        self.engine.load(local.model, local.weights)
        groups = iter(self.engine.generate(prompts, draws, max_tokens))
        batches = local.prefills(prompts, draws, keep)
        while True:
            with whole(local.model.layers):
                if (runs := next(batches, None)) is None:
                    return
                kept = self._kept(local, runs, groups, draws[0][0].temperature)
            yield kept
            del kept

    def _kept(self, local: LocalEngine, runs: Runs, groups: Iterator[Group], heat: float) -> list[Kept]:
        """The next groups, settled on their prefills, each by the ranks that have it; empties `runs`, so that nobody
        but the caller holds these.
        """
        asked = [[next(groups) for _ in run] for run, _ in runs]
        mades = [made for _, made in runs]
        runs.clear()
        own = [
            self._settled(local, some, heat, made) for some, made in zip(asked, mades, strict=True) if made is not None
        ]
        every = [one for each in local.ranks.data.gather(own) for one in each]
        return [Kept(self._noted(some, one), made) for some, one, made in zip(asked, every, mades, strict=True)]

    def settled(self, local: LocalEngine, groups: Sequence[Group], heat: float) -> tuple[Group, ...]:
        """The groups with the trainer's log-probabilities and importance weights. Raises UserError at the gate."""
        return self._noted(groups, self._settled(local, groups, heat))

    def _settled(
        self, local: LocalEngine, groups: Sequence[Group], heat: float, made: Prefill | None = None
    ) -> Settled:
        """Answers as the trainer sees them, on their prefill."""
        items = [Item(g.prompt, tuple(a.ids for a in g.answers), tuple(a.logprob for a in g.answers)) for g in groups]

        def score(hidden_RE: Tensor, row: AnswerRow) -> Tensor:
            return score_tokens(local.model.head, hidden_RE, row.target_R, temperature=heat).logprob_R

        row = packed(local.model, items)
        logprob_R = read_out(local.model, local.features, row, score, self.passes, made, local.ranks)
        found = mismatch(logprob_R, row.weight_R, row.answer_R, self.cap)
        weights, own = iter(found.weight_A.tolist()), iter(logprob_R.split([len(ids) for i in items for ids in i.ids]))
        answers = [
            tuple(replace(a, logprob=tuple(next(own).tolist()), correction=next(weights)) for a in group.answers)
            for group in groups
        ]
        return answers, found

    def _noted(self, groups: Sequence[Group], settled: Settled) -> tuple[Group, ...]:
        """The groups with these answers. Raises UserError at the gate."""
        answers, found = settled
        self._pass(found)
        self.seen.append(found)
        return tuple(replace(group, answers=own) for group, own in zip(groups, answers, strict=True))

    def _pass(self, found: Mismatch) -> None:
        """The gate, which the run's first answers go through."""
        if self.checked:
            return
        if not found.gap <= self.gate:
            why = (
                f"log-probabilities of sampled tokens differ by up to {found.gap:.2g} nats, {found.mean:.2g} on average"
            )
            fix = "longtake parity shows where; --dtype float32, or raise --engine.gate if so much is meant"
            raise UserError("engine and trainer do not agree", where="--engine", why=why, fix=fix)
        self.checked = True

    def numbers(self) -> dict[str, float]:
        """What to watch of the step's answers, per token and answer; forgets them."""
        seen, self.seen = self.seen, []
        tokens, answers = sum(one.tokens for one in seen), sum(len(one.weight_A) for one in seen)
        return {
            "engine_kl": sum(one.kl * one.tokens for one in seen) / tokens,
            "engine_gap": max(one.gap for one in seen),
            "engine_masked": sum(one.masked * len(one.weight_A) for one in seen) / answers,
        }
