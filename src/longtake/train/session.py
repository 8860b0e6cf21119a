"""What a training recipe holds while it runs, opened so that it goes on where a killed run stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from longtake.data.rows import Bad
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.files import write_jsonl
from longtake.models.adapters import NAME, prepare
from longtake.models.heads import no_head
from longtake.models.tiled import pointwise, tile
from longtake.parallel.fsdp import whole
from longtake.parallel.ranks import Ranks, here
from longtake.protocols import Model
from longtake.records import Prompt
from longtake.runtime.films import Films
from longtake.runtime.load import load_model
from longtake.runtime.prefixcache import PrefixCache
from longtake.train import resume
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.footage import open_films
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.passes import passes
from longtake.train.ranks_settings import Ranks as Shared
from longtake.train.selfcheck import check
from longtake.train.settings import Dtype, Optim, Video
from longtake.train.step import Passes, adamw, add_gradients, count_bad, step_optimizer

Row = TypeVar("Row")


@dataclass(slots=True)
class Session:
    """A run's model, films, optimizer and progress. Example: session = open_session(…); session.checkpoint()."""

    model: Model
    films: Films
    optimizer: torch.optim.Optimizer
    params: list[nn.Parameter]
    progress: resume.Progress
    folder: Path
    passes: Passes
    prefixes: PrefixCache | None = None
    bad: int = 0  # optimizer steps in a row without a finite gradient
    checked: bool = False  # the fast path against the plain one, on this run's data
    at: Callable[[str], None] = lambda row: None  # is told which question is at work
    phase: Callable[[str], AbstractContextManager[object]] = nullcontext  # counts seconds under a name

    @property
    def ranks(self) -> Ranks:
        """Who else works on it."""
        return self.films.ranks

    def check(self, prompt: Prompt, answers: Sequence[Sequence[int]], log: Log) -> None:
        """The first time, compares fast and plain path on these answers and says how they agree. Raises UserError."""
        if self.checked:
            return
        self.checked = True
        with torch.no_grad(), whole(self.model.layers):  # of a tower in training too
            films = self.films.features([prompt.features] if prompt.features else [])
        log.note(str(check(self.model, self.params, prompt, answers, films, self.passes)))

    def step(self, count: float, optim: Optim, steps: int) -> float:
        """One optimizer step with the gradients of all ranks, divided by `count`; returns their norm.

        Raises UserError if none is finite any more.
        """
        rate = optim.rate(self.progress.step, steps)
        add_gradients(self.params, self.ranks.world)
        norm = step_optimizer(self.optimizer, self.params, count=count, lr=rate, max_norm=optim.max_grad_norm)
        self.bad = count_bad(norm, self.bad)
        return norm

    def checkpoint(self) -> Path:
        """Writes where the run stands; the one before is dropped once this one is whole."""
        folder = self.folder / "checkpoints"
        with self.phase("save"):
            return resume.save(folder, self.progress, self.model, self.optimizer, world=self.ranks.world)

    def finish(self) -> Path:
        """The trained model in folder/model, without optimizer state; checkpoints stay until the next run."""
        with self.phase("save"):
            return resume.save_model(self.folder / "model", self.model, self.ranks.world)


class Trains(Protocol):
    """The config of a recipe that trains, as far as opening its session goes."""

    @property
    def model(self) -> str: ...
    @property
    def out(self) -> Path: ...
    @property
    def dtype(self) -> Dtype: ...
    @property
    def seed(self) -> int: ...
    @property
    def video(self) -> Video: ...
    @property
    def context(self) -> Context: ...
    @property
    def optim(self) -> Optim: ...
    @property
    def adapter(self) -> Adapter: ...
    @property
    def prefix_gradient(self) -> PrefixGradient: ...
    @property
    def memory(self) -> Memory: ...
    @property
    def ranks(self) -> Shared: ...


def open_session(
    config: Trains,
    log: Log,
    *,
    train_vision: bool = False,
    scalar: bool = False,
    dress: Callable[[Model, Path | None], None] | None = None,
) -> Session:
    """Loads the newest checkpoint of the run's folder, else its model; metrics after the checkpoint are dropped.

    scalar: the model may be one that scores answers. dress: puts on the model what else it trains or asks (heads,
    further adapters); gets the checkpoint if there is one.
    """
    folder, optim, own = config.out, config.optim, config.adapter
    found = resume.latest(folder / "checkpoints")
    progress = found[0] if found else resume.Progress()
    config.memory.check(own.kind, config.prefix_gradient)
    if train_vision and own.kind != "full":
        why = "an adapter's folder holds the decoder's LoRA, the trained tower would be lost"
        fix = "--adapter.kind full, or leave --train-vision out"
        raise UserError("the vision tower cannot be trained beside an adapter", why=why, fix=fix)
    config.ranks.check(here().size, own)
    with log.phase("load"):
        model = _model(found[1] if found else None, config)
        if not scalar:
            no_head(model.heads.get(NAME), config.model)
        prepare(model, own.kind, own.rank, own.alpha, own.targets, config.seed)
        if dress is not None:
            dress(model, found[1] if found else None)
        for part in model.tower.parameters():
            part.requires_grad_(train_vision)
        way = passes(config.memory, config.prefix_gradient, config.seed, model, log)
        if way.keep != "graph" or not way.prefix_gradient or own.kind == "alora":  # a graph holds all as it is
            tile(pointwise(model.layers, model.norm), config.memory.tile)
        config.ranks.share_weights(model, own, log)
        modules = (model.net, *model.heads.values())
        params = [p for module in modules for p in module.parameters() if p.requires_grad]
        optimizer = adamw(params, optim.lr, optim.betas, optim.weight_decay)
        if found:
            resume.load_optimizer(found[1], optimizer)
            log.note(f"goes on from step {progress.step}")
    lost = log.cut_after(progress.step)
    if lost and not found:
        log.note(f"begins again at step 1: {lost} steps were made but no checkpoint is in {folder / 'checkpoints'}")
    if train_vision:
        log.note("the vision tower is trained: features are made anew in every step, nothing is cached")
    films = open_films(model, config.video, folder, frozen=not train_vision)
    config.context.onto(films)
    config.ranks.onto(films)
    shelf = _prefixes(config, log)
    return Session(model, films, optimizer, params, progress, folder, way, shelf, at=log.at, phase=log.phase)


def _prefixes(config: Trains, log: Log) -> PrefixCache | None:
    """Under an activated LoRA, keys and values of prefixes for the whole run."""
    if config.adapter.kind != "alora":
        return None
    memory = config.memory
    cache = PrefixCache(memory.prefixes_ram, memory.prefixes, memory.prefixes_disk)
    if cache.disk is not None:
        cache.disk.say = log.note
    log.count("prefixes", cache.counts.numbers)
    return cache


def _model(checkpoint: Path | None, config: Trains) -> Model:
    """The model of a checkpoint, or that of the config if there is none."""
    context = config.context
    load = partial(load_model, quantize=config.adapter.quantize, rope=context.rope, reduce=context.reduce)
    if checkpoint is None:
        return load(config.model, config.dtype)
    try:
        return load(checkpoint, config.dtype)
    except UserError as error:
        if str(checkpoint) not in error.where:  # an adapter's base, or a library
            raise
        raise resume.damaged(checkpoint, "; ".join(filter(None, (error.what, error.why)))) from error


def read_rows(
    sift: Callable[[Path, Path | None], tuple[list[Row], list[Bad]]], path: Path, video: Video, log: Log
) -> list[Row]:
    """Rows by `sift_questions` or `sift_examples`; malformed ones are left out, counted, and kept in bad_rows-*.jsonl.

    Raises UserError for the first malformed row if more than `video.most_failed` of them are malformed, or all.
    """
    if video.root is not None and not video.root.is_dir():
        raise UserError("no such folder of films", where=str(video.root), fix="correct --video.root")
    good, bad = sift(path, video.root)
    if bad and (not good or len(bad) > video.most_failed * (len(good) + len(bad))):
        raise bad[0].error(path, len(bad) - 1)
    if not good:
        raise UserError("no row in this file", where=str(path))
    if bad and log.folder is not None:
        log.note(f"{len(bad)} malformed rows of {path} left out, the first at {bad[0].place}: {bad[0].reason}")
        write_jsonl(log.folder.path / f"bad_rows-{path.stem}.jsonl", [asdict(row) for row in bad])
    return good
