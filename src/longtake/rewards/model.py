"""A reward model, as `longtake reward` trains it: one score for every answer, prompts computed once for all of theirs.

N prompts, G answers each, R tokens of all, E model width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from longtake.errors import UserError
from longtake.log import write_json_atomic
from longtake.maths.pack import answer_rows, pack
from longtake.models import adapter_files
from longtake.models.adapters import NAME
from longtake.models.checkpoint import read_json
from longtake.models.heads import FILE as HEAD
from longtake.models.rope import known_to
from longtake.models.tiled import pointwise, tile
from longtake.parallel.ranks import ONE, Ranks
from longtake.protocols import Model
from longtake.records import Answer, Group
from longtake.runtime.beside import load_beside
from longtake.runtime.load import base_of, find_folder, load_model, tower_fingerprint
from longtake.runtime.prefix import extend
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.rows import FeaturesOf, bare, cached, compute, lead

FILE = "reward.json"  # beside the weights: what stands behind an answer when it is scored
PAST = 0  # a packed row's last token is predicted but never fed: any token
Scorer = Callable[[Sequence[Group], Ranks], list[list[float]]]  # [N] groups → [N][G]


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Scores of answers. Example: RewardModel.open(policy, "out/reward/model").scores(groups, films.features)."""

    model: Model
    name: str  # of its head, and of its adapter where it has one
    suffix: tuple[int, ...]  # tokens behind every answer
    row_tokens: int  # prefix tokens held at once
    answer_tokens: int  # fed in one forward
    prefixes: PrefixCache | None  # of the run, under an activated LoRA

    @classmethod
    def beside(
        cls,
        policy: Model,
        source: str | Path,
        row_tokens: int = 16384,
        answer_tokens: int = 2048,
        *,
        name: str = "reward",
        prefixes: PrefixCache | None = None,
    ) -> RewardModel:
        """The adapter and head of a folder or hub id, as `name` beside the policy's own adapter on one base.

        Raises UserError if it is no reward model, or not an adapter on that base.
        """
        folder = find(source)
        load_beside(policy, name, folder, trainable=False, scalar=True)
        return cls(policy, name, _suffix(folder), row_tokens, answer_tokens, prefixes if lead(policy) else None)

    @classmethod
    def open(
        cls,
        policy: Model,
        source: str | Path,
        row_tokens: int = 16384,
        answer_tokens: int = 2048,
        *,
        name: str,
        prefixes: PrefixCache | None = None,
    ) -> RewardModel:
        """`beside` where both are adapters on one base, else a second network that reads the policy's features.

        Raises UserError if it is no reward model, or sees or reads otherwise than the policy.
        """
        folder = find(source)
        if policy.adapter is not None and _base(folder) in _names(policy):
            return cls.beside(policy, folder, row_tokens, answer_tokens, name=name, prefixes=prefixes)
        model = load_model(folder, str(policy.net.dtype).removeprefix("torch."), policy.net.device)
        _check(policy, model, source)
        model.net.requires_grad_(False)
        tile(pointwise(model.layers, model.norm))
        return cls(model, NAME, _suffix(folder), row_tokens, answer_tokens, None)

    @torch.no_grad()
    def scores(self, groups: Sequence[Group], features: FeaturesOf, ranks: Ranks = ONE) -> list[list[float]]:
        """[N][G]. An answer that was cut is scored as if it ended there. `ranks` share the work, each gets all scores.

        Raises UserError for a score that is not finite.
        """
        with self._acting():
            every = ranks.data.deal(list(self._runs(groups)), lambda run: self._run(run, features, ranks))
        found = [score for run in every for score in run]
        if wrong := next((g for g, own in zip(groups, found, strict=True) if not all(map(math.isfinite, own))), None):
            why = "the score of an answer is not finite"
            raise UserError("the reward model gave no score", where=f"row {wrong.prompt.id}", why=why)
        return found

    def _acting(self) -> AbstractContextManager[None]:
        return nullcontext() if self.model.adapter is None else self.model.adapter.using(self.name)

    def _runs(self, groups: Sequence[Group]) -> Iterator[list[Group]]:
        """Groups of one row: as many as its budget holds; those on one film where the run keeps their prefix."""
        if self.prefixes is not None:
            yield from (list(run) for _, run in groupby(groups, lambda g: g.prompt.prefix))
            return
        run: list[Group] = []
        tokens = 0
        for group in groups:
            tokens += len(group.prompt.ids)
            if run and tokens > self.row_tokens:
                yield run
                run, tokens = [], len(group.prompt.ids)
            run.append(group)
        if run:
            yield run

    def _run(self, run: Sequence[Group], features: FeaturesOf, ranks: Ranks) -> list[list[float]]:
        model, prompts = self.model, [group.prompt for group in run]
        end = model.end_ids[0]
        ids = [[read_ids(_said(answer, end), self.suffix) for answer in group.answers] for group in run]
        row = pack(prompts, ids, [[[0.0] * len(one) for one in own] for own in ids], lead=lead(model))
        bare_row = bare(model, prompts)
        if self.prefixes is None:
            made = compute(model, bare_row, features, "nothing", ranks)
        else:
            made = cached(model, bare_row, features, self.prefixes, ranks)
        axis = ranks.sequence
        flat: list[tuple[int, float]] = []  # answer and score
        for part in answer_rows(row, self.answer_tokens, dealt=(axis.index, axis.size)):
            last_R = torch.cat([part.answer_R[1:] != part.answer_R[:-1], torch.ones(1, dtype=torch.bool)])
            hidden_RE = extend(model, made, part)
            own = model.heads[self.name](hidden_RE[last_R.to(hidden_RE.device)]).tolist()
            flat += zip(part.answer_R[last_R].tolist(), own, strict=True)
        scores = (score for _, score in sorted(one for rank in axis.gather(flat) for one in rank))
        return [[next(scores) for _ in group.answers] for group in run]


def scorers(
    sources: Mapping[str, str],
    policy: Model,
    features: FeaturesOf,
    row_tokens: int,
    answer_tokens: int,
    prefixes: PrefixCache | None = None,
) -> dict[str, Scorer]:
    """Reward models by their names in a `rewards.mix.Mix`, ready for groups of the policy's answers."""
    opened = {
        name: RewardModel.open(policy, source, row_tokens, answer_tokens, name=f"reward{number}", prefixes=prefixes)
        for number, (name, source) in enumerate(sources.items())
    }
    return {name: partial(_scores, one, features) for name, one in opened.items()}


def _scores(one: RewardModel, features: FeaturesOf, groups: Sequence[Group], ranks: Ranks) -> list[list[float]]:
    return one.scores(groups, features, ranks)


def read_ids(ids: Sequence[int], suffix: Sequence[int]) -> tuple[int, ...]:
    """What is packed of an answer (its end token included) so that the last state is that of its last token read."""
    return *ids, *suffix, PAST


def write(folder: Path, suffix: Sequence[str], suffix_ids: Sequence[int]) -> Path:
    """Makes of a model's folder a reward model's."""
    write_json_atomic(folder / FILE, {"suffix": list(suffix), "suffix_ids": list(suffix_ids)})
    return folder


def find(source: str | Path) -> Path:
    """The folder of a reward model. Raises UserError for anything else."""
    fix = "name the model/ of a `longtake reward` run"
    if (Path(source).expanduser() / "model" / FILE).is_file():
        raise UserError("this is a run's folder, not its model", where=str(source), fix=f"name {source}/model")
    folder = find_folder(source)
    for name in (FILE, HEAD):
        if not (folder / name).is_file():
            raise UserError("this is no reward model", where=str(source), why=f"no {name} in it", fix=fix)
    return folder


def _suffix(folder: Path) -> tuple[int, ...]:
    found: Any = read_json(folder / FILE).get("suffix_ids")
    if not isinstance(found, list) or not all(type(token) is int and token >= 0 for token in found):
        why = "suffix_ids must be a list of token ids"
        raise UserError("the reward model's file is damaged", where=str(folder / FILE), why=why, fix="copy it again")
    return tuple(found)


def _said(answer: Answer, end: int) -> tuple[int, ...]:
    """An answer as pairs hold them: with the one end token that all of these have."""
    return (*(answer.ids[:-1] if answer.finish == "stop" else answer.ids), end)


def _base(folder: Path) -> str:
    """The base of an adapter as models name themselves; "" for a whole model."""
    if not (folder / adapter_files.CONFIG).is_file():
        return ""
    name, base = base_of(folder, read_json(folder / adapter_files.CONFIG))
    return str(base.resolve()) if Path(name).expanduser().exists() else name


def _names(policy: Model) -> set[str]:
    own = policy.net.name_or_path
    return {own} if own else set()


def _check(policy: Model, model: Model, source: str | Path) -> None:
    """Raises UserError unless the prompts and features of the policy mean the same to the other model."""
    fix = "train the reward model from a checkpoint of the policy's family and size, its tower frozen"
    what = "the reward model does not fit the policy"
    if policy.reduction != model.reduction:
        why = f"it was trained with {model.context}, the policy with {policy.context}"
        raise UserError(what, where=str(source), why=why, fix="train both with one --context.reduce")
    if tower_fingerprint(policy) != tower_fingerprint(model):
        raise UserError(what, where=str(source), why="its vision tower is another one", fix=fix)
    own, reads = (known_to(one.net.config, bool(one.context.rope)) for one in (policy, model))
    if reads < own:
        why = f"it knows {reads} positions, the policy {own}"
        raise UserError(what, where=str(source), why=why, fix="train both with one --context.rope")
    mine, other = policy.tokenizer, model.tokenizer
    if (mine.get_vocab(), mine.chat_template, policy.end_ids) != (
        other.get_vocab(),
        other.chat_template,
        model.end_ids,
    ):
        raise UserError(what, where=str(source), why="its tokenizer or chat template is another one", fix=fix)
