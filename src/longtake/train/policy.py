"""The pieces of a policy-gradient step: which algorithm, which answers, which rows. The loop itself is in the recipe.

N questions, G answers each, R answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor

from longtake.config import suggest
from longtake.data.rows import sift_questions
from longtake.engines.local import Kept, LocalEngine
from longtake.errors import UserError
from longtake.log import Log
from longtake.maths.advantage import Weights, equal_groups, overlong_penalty
from longtake.maths.algorithms import ALGORITHMS, Algorithm
from longtake.parallel.fsdp import learning
from longtake.records import Group, Layout, Prompt, Question
from longtake.rewards.mix import Mix
from longtake.rewards.model import Scorer
from longtake.runtime.films import Look
from longtake.runtime.prefix import Keep
from longtake.runtime.rows import lead
from longtake.train.footage import encode
from longtake.train.keys import batch, epoch_fits, keyed
from longtake.train.oom import Facts, explained, facts_of
from longtake.train.outside import Outside
from longtake.train.rollout import Rollout, answer_kept, scored
from longtake.train.rows import Item, backward_items, packed, rows_of_others, summed
from longtake.train.session import Session, read_rows
from longtake.train.settings import Video
from longtake.train.step import Objective, Sums, backward

Keeper = Callable[[Sequence[Prompt]], Keep]


def choose(name: str, clip: tuple[float, float] | None, *, on_policy: bool, refill: int = 0) -> Algorithm:
    """The algorithm of that name with the clip that was set.

    Raises UserError for an unknown name, and for settings that would have no effect or a wrong one.
    """
    if name not in ALGORITHMS:
        near = suggest(name, ALGORITHMS)
        fix = f"did you mean '{near}'?" if near else f"one of {', '.join(ALGORITHMS)}"
        raise UserError(f"unknown algorithm '{name}'", where="--algorithm", fix=fix)
    algorithm = ALGORITHMS[name]
    if refill and not algorithm.drop_equal:
        raise UserError(f"{name} keeps groups of equal rewards", where="--refill", fix="leave --refill out")
    if not isinstance(algorithm.loss, partial) and not on_policy:  # no bounds: no ratio
        why = "its loss has no ratio: a second pass would be off-policy and uncorrected"
        raise UserError(f"{name} makes one pass", where="--epochs, --minibatches", why=why, fix="leave them at 1")
    if clip is None:
        return algorithm
    if not (isinstance(algorithm.loss, partial) and "clip_low" in algorithm.loss.keywords):
        raise UserError(f"{name} has no clip", where="--clip", fix="leave it out")
    if min(clip) <= 0:
        raise UserError("clip bounds must be above 0", where="--clip", why=f"they are {clip[0]:g} and {clip[1]:g}")
    if on_policy:
        why = "with one pass over fresh answers the ratio is 1 and nothing is clipped"
        raise UserError("a clip would have no effect", where="--clip", why=why, fix="raise --epochs or --minibatches")
    return replace(algorithm, loss=partial(algorithm.loss, clip_low=clip[0], clip_high=clip[1]))


def weights_of(names: Sequence[str]) -> dict[str, float]:
    """("accuracy", "format=0.1") → {"accuracy": 1.0, "format": 0.1}. Raises UserError for what is no number."""
    found: dict[str, float] = {}
    for text in names:
        name, _, weight = text.partition("=")
        if name in found:
            raise UserError(f"the reward {name} is given twice", where="--reward", fix="give it once, with its weight")
        try:
            found[name] = float(weight or 1.0)
        except ValueError:
            why = f"its weight is '{weight}'"
            raise UserError(f"cannot weigh reward {name}", where="--reward", why=why, fix=f"{name}=0.5") from None
    return found


def read_questions(path: Path, wanted: int, reward: Mix, video: Video, log: Log) -> list[Question]:
    """Questions that `reward` can judge, at least the `wanted` of a step: asked twice in one step a question gets the
    same answers, draw for draw. Raises UserError.
    """
    questions = read_rows(sift_questions, path, video, log)
    reward.check(questions)
    if (count := len(questions)) < wanted:
        why = f"a step asks {wanted} different ones"
        raise UserError(f"only {count} questions to ask", where=str(path), why=why, fix=f"--questions {count}")
    return questions


Batches = Iterator[tuple[list[Look], list[Kept]]]


@dataclass(frozen=True, slots=True)
class Sampler:
    """How a step's answers come about. Example: for answered, _ in sampler.answers(session, log): …"""

    questions: Sequence[Question]
    count: int  # questions a step
    refill: int  # further draws, at most, for groups whose rewards are all equal (DAPO, arXiv:2503.14476 §3.2)
    video: Video
    reward: Mix
    heats: tuple[float, ...]  # [G] temperatures
    max_tokens: int
    row_tokens: int  # prefix tokens held at once
    seed: int
    models: Mapping[str, Scorer] = field(default_factory=dict)  # of reward.models, loaded
    outside: Outside | None = None  # an engine in another process that samples

    def __post_init__(self) -> None:
        if len(self.questions) < self.count:
            why = f"films that cannot be used left {len(self.questions)}, a step asks {self.count} different ones"
            raise UserError("too few questions to ask", why=why, fix=f"--questions {len(self.questions)}")

    def looks(self, session: Session, log: Log) -> Iterator[list[Look]]:
        """The step's draws of questions, each encoded; those on one film are neighbours. The walk over questions goes
        on in session.progress.taken.
        """
        for _ in range(1 + self.refill):
            taken = epoch_fits(session.progress.taken, self.count, len(self.questions))
            picked = [self.questions[i] for i in batch(self.seed, len(self.questions), taken, self.count)]
            session.progress = replace(session.progress, taken=taken + self.count)
            step = session.progress.step
            asked = [Look(q, self.video.policy(q, keyed(self.seed, "frames", step, q.id))) for q in picked]
            first = {look.seen(): place for place, look in reversed(list(enumerate(asked)))}
            asked.sort(key=lambda look: first[look.seen()])
            encode(session.films, asked, log)
            yield asked

    def answers(self, session: Session, log: Log, keep: Keeper | None = None) -> Iterator[tuple[Rollout, list[Kept]]]:
        """Scored answers to the step's questions, batch by batch, until enough groups differ; with `keep` also the
        prefills that were kept for training, which the next batch needs the room of.
        """
        engine = LocalEngine(
            session.model,
            session.films.features,
            f"step-{session.progress.step}",
            self.row_tokens,
            prefixes=session.prefixes,
            say=log.note,
            ranks=session.ranks,
            at=log.at,
        )
        sample = engine.rollout if self.outside is None else partial(self.outside.rollout, engine)
        found = 0
        for number, looks in enumerate(self.looks(session, log)):
            key = (self.seed, "answers", session.progress.step, number)
            batches = answer_kept(
                sample, session.films, looks, self.heats, self.max_tokens, keep or (lambda _: "nothing"), *key
            )
            while (one := self._next(batches, session, looks, log)) is not None:
                asked, kept = one
                with log.phase("reward"):
                    groups = [group for each in kept for group in each.groups]
                    new = scored(asked, groups, self.reward, self.models, session.ranks)
                found += len(differing(new).looks)
                yield new, kept if keep else []
                del one, kept
            if found >= self.count:
                return

    def _next(
        self, batches: Batches, session: Session, looks: Sequence[Look], log: Log
    ) -> tuple[list[Look], list[Kept]] | None:
        """The next batch of answers; None after the last. Raises UserError where memory is short."""

        def facts() -> Facts:
            longest = max((session.films.prompt(look) for look in looks), key=lambda prompt: len(prompt.ids))
            layout = Layout(((len(longest.ids), ()),))
            visual = sum(stop - start for start, stop in longest.visual)
            asked = (len(self.heats), self.max_tokens)
            return facts_of(session.model, layout, session.passes.keep, visual=visual, asked=asked)

        with log.phase("rollout"), explained("generate", facts):
            return next(batches, None)


def differing(answered: Rollout) -> Rollout:
    """The groups whose rewards are not all equal."""
    if not answered.looks:
        return answered
    return answered.chosen([not equal for equal in equal_groups(answered.reward_NG).tolist()])


def kept(answered: Rollout, algorithm: Algorithm, most: int) -> Rollout:
    """What is learned from: groups that differ, at most `most`, for an algorithm that drops equal ones; else all."""
    if not algorithm.drop_equal:
        return answered
    mixed = differing(answered)
    return mixed.chosen([place < most for place in range(len(mixed.looks))])


def shaped(answered: Rollout, max_tokens: int, margin: int) -> Tensor:
    """Rewards [N, G] with DAPO's soft punishment of answers in the last `margin` tokens before the limit; 0 = off."""
    if not margin or not answered.looks:
        return answered.reward_NG
    return answered.reward_NG + overlong_penalty(answered.length_NG, max_tokens=max_tokens, margin=margin)


def minibatches(
    kept: Rollout, reward_NG: Tensor, algorithm: Algorithm, epochs: int, count: int
) -> Iterator[tuple[Rollout, Tensor]]:
    """Whole groups with their advantages over all of `kept`, in `count` parts a pass, `epochs` passes."""
    if not kept.looks:
        return
    advantage_NG = algorithm.advantage(reward_NG)
    size = -(-len(kept.looks) // count)
    for _ in range(epochs):
        for start in range(0, len(kept.looks), size):
            part = kept.chosen([start <= place < start + size for place in range(len(kept.looks))])
            yield part, advantage_NG[start : start + size]


def _item(group: Group, weight_G: Sequence[float]) -> Item:
    return Item(
        group.prompt,
        tuple(answer.ids for answer in group.answers),
        tuple(
            (weight * answer.correction,) * len(answer.ids)
            for weight, answer in zip(weight_G, group.answers, strict=True)
        ),
        tuple(answer.logprob for answer in group.answers),
    )


def backward_groups(session: Session, part: Rollout, weights: Weights, objective: Objective, row_tokens: int) -> Sums:
    """Adds the gradients of the summed loss of `part`, in packed rows of at most `row_tokens` prefix tokens.

    The policy is the distribution that was sampled from, so probabilities are taken at the sampling temperature.
    """
    items = [_item(group, own) for group, own in zip(part.groups, weights.weight_NG.tolist(), strict=True)]
    return backward_items(session, items, objective, row_tokens)


def backward_kept(
    session: Session, prefills: Sequence[Kept], part: Rollout, weights: Weights, objective: Objective
) -> Sums:
    """The same on the rollout's own prefills: the groups of `part` learn, prefills without any are let go."""
    learned = {id(group): own for group, own in zip(part.groups, weights.weight_NG.tolist(), strict=True)}
    sums = Sums()
    mine = [kept for kept in prefills if kept.made and any(id(group) in learned for group in kept.groups)]
    with learning(session.model.layers):
        attended = rows_of_others(session, objective, len(mine))
        for kept in mine:
            sums += _backward_one(session, kept, learned, objective)
        attended()
    return summed(session, sums)


def _backward_one(session: Session, kept: Kept, learned: Mapping[int, Sequence[float]], objective: Objective) -> Sums:
    """Those of its groups that are `learned` from: weights of their answers by the group's id()."""
    session.at(f"question {kept.groups[0].prompt.id}")
    items = [
        _item(group, learned[id(group)]) if id(group) in learned else Item(group.prompt, (), ())
        for group in kept.groups
    ]
    scale = session.passes.scale(session.progress.step, kept.groups[0].prompt.prefix)
    model, features, row = session.model, session.films.features, packed(session.model, items)
    return backward(model, features, row, objective, session.passes, kept.made, scale, session.ranks)


def keeper(session: Session) -> Keeper:
    """What a prefill keeps in this step: all that its backward needs, nothing where there will be none."""
    step, passes, aside = session.progress.step, session.passes, lead(session.model) > 0
    size = session.ranks.sequence.size
    return lambda own: "nothing" if aside else passes.kept(sum(len(p.ids) for p in own) // size, step, own[0].prefix)


def health(answered: Rollout) -> dict[str, float]:
    """What to watch of a step's answers, groups that are dropped included; nan where no answer is known."""
    reward_NG = answered.reward_NG
    right_N = [[score.correct for score in own] for own in answered.scores]
    known = [own for own in right_N if None not in own]
    ends = [answer.finish == "stop" for group in answered.groups for answer in group.answers]
    parts = [score.parts for own in answered.scores for score in own]
    return {
        "reward": float(reward_NG.mean()),
        **{f"reward_{name}": sum(part[name] for part in parts) / len(parts) for name in parts[0]},
        "reward_std": float(reward_NG.std(1, correction=0).mean()),
        "accuracy": answered.accuracy,
        "format": answered.formed,
        "length": float(answered.length_NG.float().mean()),
        "finished": sum(ends) / len(ends),
        "groups_all_right": sum(map(all, known)) / len(known) if known else math.nan,
        "groups_all_wrong": sum(not any(own) for own in known) / len(known) if known else math.nan,
    }


def late(rows: Sequence[Mapping[str, float | None]], names: Sequence[str]) -> dict[str, float | None]:
    """Means of these metrics over the last tenth of the steps; None where there is no number."""
    last = rows[-max(1, len(rows) // 10) :]
    found = {name: [value for row in last if (value := row[name]) is not None] for name in names}
    return {name: sum(values) / len(values) if values else None for name, values in found.items()}
