"""One optimizer step: rows in, gradients summed over rows, scaled once.

It never learns which algorithm wrote the weights.

R answer tokens, A those that are fed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.maths.logprob import score_tokens
from longtake.maths.loss import Loss, LossTerms
from longtake.maths.pack import answer_rows, stem
from longtake.parallel.axis import Axis
from longtake.parallel.fsdp import Turns, clip_, in_shares, kinds
from longtake.parallel.ranks import ONE, Ranks
from longtake.protocols import Model
from longtake.records import AnswerRow, PrefixRow
from longtake.runtime.prefix import TILE, Keep, Prefill, extend, finish
from longtake.runtime.rows import FeaturesOf, compute, lead
from longtake.train.keys import keyed
from longtake.train.oom import Facts, explained, facts_of

MOST_BAD = 5  # steps in a row without a finite gradient
ON_DEVICE = ("position_3A", "target_R", "weight_R", "old_logprob_R", "answer_R")


@dataclass(frozen=True, slots=True)
class Sums:
    """What the rows of a step add up to. Example: sums.entropy / sums.tokens."""

    loss: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    kl: float = 0.0  # k3 estimate of KL(old || new)
    tokens: float = 0.0  # what the loss counts: tokens, or pairs
    watched: Mapping[str, float] = field(default_factory=dict)  # what a loss watches beside these

    def __add__(self, other: Sums) -> Sums:
        names = self.watched.keys() | other.watched.keys()
        watched = {name: self.watched.get(name, 0.0) + other.watched.get(name, 0.0) for name in sorted(names)}
        added = {name: getattr(self, name) + getattr(other, name) for name in Sums.__slots__ if name != "watched"}
        return Sums(**added, watched=watched)

    def means(self) -> dict[str, float]:
        """What to watch, per token; nan where there was none."""
        tokens = self.tokens or math.nan
        return {"entropy": self.entropy / tokens, "clipped": self.clipped / tokens, "kl": self.kl / tokens}

    def watched_means(self) -> dict[str, float]:
        """What the loss watches, per token or pair."""
        return {name: value / (self.tokens or math.nan) for name, value in self.watched.items()}


class Goal(Protocol):
    """What a step minimises: a function of the hidden states that predict the answers' tokens."""

    @property
    def together(self) -> int:
        """Answers that are in one forward, because the loss of one depends on the others: 2 for pairs."""

    def __call__(self, model: Model, hidden_RE: Tensor, row: AnswerRow) -> tuple[LossTerms, Tensor]:
        """The sum over `row`, and the entropy of its tokens (0 where there is none)."""


@dataclass(frozen=True, slots=True)
class Objective:
    """A loss on log-probabilities. Example: Objective(cross_entropy, on_policy=True)."""

    loss: Loss
    on_policy: bool  # the weights are those that sampled: the ratio is 1, old log-probabilities are the new ones
    temperature: float = 1.0  # of the policy, as it sampled; 1 for supervised rows
    together: int = 1

    def __call__(self, model: Model, hidden_RE: Tensor, row: AnswerRow) -> tuple[LossTerms, Tensor]:
        """See Goal."""
        scored = score_tokens(model.head, hidden_RE, row.target_R, temperature=self.temperature)
        old_R = scored.logprob_R.detach() if self.on_policy else row.old_logprob_R
        terms = self.loss(scored.logprob_R, old_R, row.weight_R, row.answer_R)
        return terms, torch.where(row.weight_R != 0, scored.entropy_R, 0).sum()


@dataclass(frozen=True, slots=True)
class ScalarObjective:
    """A loss on what a scalar head says of the states before the answers' tokens (models.heads).

    Its columns of the row are its own business: see the losses. Example: ScalarObjective("value", partial(…)).
    """

    head: str  # whose: the name of an adapter
    loss: Loss  # gets scalars in place of log-probabilities
    weight: float = 1.0  # of the loss, beside others on the same weights' norm
    together: int = 1

    def __call__(self, model: Model, hidden_RE: Tensor, row: AnswerRow) -> tuple[LossTerms, Tensor]:
        """See Goal."""
        scalar_R = model.heads[self.head](hidden_RE)
        terms = self.loss(scalar_R, row.old_logprob_R, row.weight_R, row.answer_R)
        return replace(terms, total=terms.total * self.weight), scalar_R.new_zeros(())


@dataclass(frozen=True, slots=True)
class Passes:
    """How rows go through the network; nothing of it changes the gradient, but for prefix_gradient below 1.

    Example: Passes("layers", answer_tokens=4096, prefix_gradient=0.25).
    """

    keep: Keep = "graph"  # what a prefill keeps for its backward
    answer_tokens: int = 16384  # in one forward and backward on a prefill
    tile: int = TILE  # tokens of a layer that is computed again
    prefix_gradient: float = 1.0  # probability of the backward through a prefix, which then counts 1/p; 0 = never
    seed: int = 0
    graph_tokens: int | None = None  # of a prefix on a rank: of a longer one layers' inputs are kept and no graph

    def scale(self, *key: object) -> float:
        """By what the gradient through the prefix named `key` is multiplied: 1/p, or 0 where it is left out."""
        p = self.prefix_gradient
        return 1 / p if keyed(self.seed, "prefix gradient", *key) < p * 2**63 else 0.0

    def kept(self, tokens: int, *key: object) -> Keep:
        """What that prefix's prefill must keep, of so many tokens on a rank."""
        return self.of(tokens) if self.scale(*key) else "nothing"

    def of(self, tokens: int) -> Keep:
        """What is kept of a prefix of so many tokens on a rank."""
        long = self.graph_tokens is not None and tokens > self.graph_tokens
        return "layers" if long and self.keep in ("graph", "attention") else self.keep


EXACT = Passes()


def backward(
    model: Model,
    features: FeaturesOf,
    row: PrefixRow | None,
    objective: Goal,
    passes: Passes = EXACT,
    made: Prefill | None = None,
    scale: float = 1.0,
    ranks: Ranks = ONE,
) -> Sums:
    """Gradients of the SUMMED loss of one packed row are added to the parameters': prefixes, answers, prefixes back.

    made: the row's prefixes as the rollout computed them, with these weights; without it they are computed here.
    scale: of the gradient through the prefixes; 0 leaves that out. The ranks of a sequence share the row: sums and
    gradients over them are the row's. Without a row a rank takes part in what others do, where weights are in shares.
    Raises UserError where memory is short.
    """

    def facts() -> Facts:
        assert row is not None
        visual, most = int(row.visual_T.sum()), passes.answer_tokens
        return facts_of(model, row.layout, keep, visual=visual, answer_tokens=most)

    sums, axis, parts = Sums(), ranks.sequence, list[AnswerRow]()
    keep: Keep = made.keep if made else "nothing"
    if row is not None and made is None and scale and not lead(model):
        keep = passes.of(row.layout.stem.total // axis.size)
    if row is not None:
        parts = list(answer_rows(row, passes.answer_tokens, objective.together, (axis.index, axis.size)))
    turns = Turns.agreed(model.layers, ranks.world, row is not None and made is None, len(parts), keep != "nothing")
    if row is not None and made is None:
        with explained("prefill", facts):
            made = compute(model, stem(row), features, keep, ranks)
    else:
        turns.prefill()
    with explained("answers", facts):
        for part in parts:
            assert made is not None
            sums += _answers(model, made, part, objective, once=len(parts) == 1)
        turns.answers(len(parts))
    if made is not None and keep != "nothing":
        with explained("prefix_backward", facts):
            finish(model, made, scale, passes.tile)
    else:
        turns.finish()
    return sums


def _answers(model: Model, made: Prefill, row: AnswerRow, objective: Goal, *, once: bool) -> Sums:
    """The same for some answers on their prefixes, whose share of the gradient stays in `made`."""
    row = on_device(row, model)
    if not len(row.ids_A):  # no layer is called
        Turns.pass_by(model.layers)
    terms, entropy = objective(model, extend(model, made, row, once=once), row)
    if terms.total.requires_grad:  # not so for answers of one token on prefixes without a backward: nothing learns
        terms.total.backward()
    loss, spread, clipped, kl, count = (
        float(x.detach()) for x in (terms.total, entropy, terms.clipped, terms.kl_k3, terms.count)
    )
    return Sums(loss, spread, clipped, kl, count, {name: float(x.detach()) for name, x in terms.watched.items()})


def on_device(row: AnswerRow, model: Model) -> AnswerRow:
    """The row with its tensors where the model is."""
    return replace(row, **{name: getattr(row, name).to(model.net.device) for name in ON_DEVICE})


@torch.no_grad()
def read_out(
    model: Model,
    features: FeaturesOf,
    row: PrefixRow,
    of: Callable[[Tensor, AnswerRow], Tensor],
    passes: Passes = EXACT,
    made: Prefill | None = None,
    ranks: Ranks = ONE,
) -> Tensor:
    """[R] on the CPU: what `of` makes of the states that predict the answers' tokens, prefixes computed once.

    of: (hidden_RE, answers) → [R]; made: the row's prefixes, if they are known. Nothing is kept for a backward. The
    ranks of a sequence read some answers each, and get all. Raises UserError where memory is short.
    """

    def facts() -> Facts:
        visual, most = int(row.visual_T.sum()), passes.answer_tokens
        return facts_of(model, row.layout, "nothing", visual=visual, answer_tokens=most)

    if made is None:
        with explained("prefill", facts):
            made = compute(model, stem(row), features, "nothing", ranks)
    axis, read = ranks.sequence, []
    with explained("answers", facts):
        for part in answer_rows(row, passes.answer_tokens, dealt=(axis.index, axis.size)):
            here = on_device(part, model)
            read.append((part.answer_R, of(extend(model, made, here), here).cpu()))
    every = [own for rank in axis.gather(read) for own in rank]
    order_R = torch.cat([answer_R for answer_R, _ in every]).argsort(stable=True)
    return torch.cat([numbers for _, numbers in every])[order_R]


def add_gradients(params: Sequence[nn.Parameter], world: Axis) -> None:
    """Gradients become their sums over all ranks; one that a parameter has on no rank stays None, one in shares is a
    sum already.
    """
    if world.size == 1:
        return
    params = [p for p in params if not in_shares(p)]
    has = [any(own) for own in zip(*world.gather([p.grad is not None for p in params]), strict=True)]
    learned = [p for p, some in zip(params, has, strict=True) if some]
    for p in learned:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    world.add_([p.grad for p in learned if p.grad is not None])


def step_optimizer(
    optimizer: torch.optim.Optimizer, params: Sequence[nn.Parameter], *, count: float, lr: float, max_norm: float
) -> float:
    """Divides the summed gradients by `count`, clips, steps, clears. Returns the gradient norm before clipping.

    A norm that is not finite leaves the weights as they were and is returned for the recipe to count.
    """
    gradients = [p.grad for p in params if p.grad is not None]
    for gradient in gradients:
        gradient.div_(count)
    norm = clip_(params, max_norm) if gradients else 0.0
    if gradients and torch.isfinite(torch.tensor(norm)):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def count_bad(norm: float, bad: int) -> int:
    """How many steps in a row had a gradient that is not finite, this one included.

    Raises UserError at MOST_BAD: such steps change no weight, so the run would end as it began.
    """
    bad = 0 if math.isfinite(norm) else bad + 1
    if bad >= MOST_BAD:
        why = "the gradient norm was not finite; the weights were left as they are"
        fix = "lower optim.lr, check the rows, or set dtype to float32"
        raise UserError(f"{bad} steps in a row could not be made", why=why, fix=fix)
    return bad


def adamw(
    params: Iterable[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over what is trained, all parameters in a few calls."""
    groups = [{"params": own} for own in kinds(list(params))]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, weight_decay=weight_decay, foreach=True)
