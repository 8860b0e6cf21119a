"""What a training recipe holds while it runs, opened so that it goes on where a killed run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn

from longtake.config import option
from longtake.data.cache import FrameTier, Quarantine
from longtake.data.rows import Bad
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.files import write_jsonl
from longtake.models.adapters import NAME, prepare
from longtake.models.heads import no_head
from longtake.models.tiled import pointwise, tile
from longtake.protocols import Model
from longtake.records import FramePolicy, Prompt, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model, tower_fingerprint
from longtake.runtime.onlooker import Onlooker
from longtake.runtime.prefixcache import PrefixCache
from longtake.runtime.words import unknown
from longtake.train import resume
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.passes import passes
from longtake.train.reach import Answers, check_fits
from longtake.train.selfcheck import check
from longtake.train.settings import Dtype, Optim, Video
from longtake.train.step import Passes, adamw, count_bad, step_optimizer

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

    def check(self, prompt: Prompt, answers: Sequence[Sequence[int]], log: Log) -> None:
        """The first time, compares fast and plain path on these answers and says how they agree. Raises UserError."""
        if self.checked:
            return
        self.checked = True
        with torch.no_grad():
            films = self.films.features([prompt.features] if prompt.features else [])
        log.note(str(check(self.model, self.params, prompt, answers, films, self.passes)))

    def step(self, count: float, optim: Optim, steps: int) -> float:
        """One optimizer step with the gradients there are, divided by `count`; returns their norm.

        Raises UserError if none is finite any more.
        """
        rate = optim.rate(self.progress.step, steps)
        norm = step_optimizer(self.optimizer, self.params, count=count, lr=rate, max_norm=optim.max_grad_norm)
        self.bad = count_bad(norm, self.bad)
        return norm

    def checkpoint(self) -> Path:
        """Writes where the run stands; the one before is dropped once this one is whole."""
        return resume.save(self.folder / "checkpoints", self.progress, self.model, self.optimizer)

    def finish(self) -> Path:
        """The trained model in folder/model, without optimizer state; checkpoints stay until the next run."""
        return resume.save_model(self.folder / "model", self.model)


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
    return Session(model, films, optimizer, params, progress, folder, way, _prefixes(config, log))


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


def open_films(model: Model, video: Video, folder: Path, *, frozen: bool) -> Films:
    """Films of a run; tier and features are shared with other runs where `video` names their folders.

    Raises UserError for settings of features that a tower in training would ignore.
    """
    store = None
    if frozen:
        quotas = video.features_ram, video.features_disk
        store = FeatureStore(video.features, tower_fingerprint(model), model.net.dtype, *quotas)
    elif idle := sorted(video.model_fields_set & {"features", "features_ram", "features_disk"}):
        why = "the vision tower is trained: features are made anew in every step"
        raise UserError("nothing is cached", where=option(f"video.{idle[0]}"), why=why, fix="leave it out")
    return Films(model, FrameTier(video.tier or folder / "tier"), store, Quarantine(folder))


def decode(
    films: Films,
    questions: Sequence[Question],
    video: Video,
    log: Log,
    policies: Callable[[Question], Iterable[FramePolicy]] | None = None,
    answers: Answers = lambda question: 0,
) -> list[Question]:
    """Decodes all films of the questions once, for every policy they may be looked at with; returns the usable ones.

    `policies` of a question; without it those of `video`. `answers`: tokens that may follow its prompt.

    Raises UserError if more films failed than `video.most_failed` allows, or all; for a cap of frames that caps none;
    for a prompt that does not fit the model's context.
    """
    policies = policies or video.policies
    if not films.subtitles and not films.sets and not any(question.subtitles for question in questions):
        raise UserError("the rows name no subtitles", where="--context.subtitles", fix="leave it out")
    wants: dict[str, list[FramePolicy]] = {}
    for question in questions:
        if question.video is not None:
            wants.setdefault(question.video, []).extend(policies(question))
    films.rated |= any(policy.fps is not None for own in wants.values() for policy in own)
    if wants and "max_frames" in video.model_fields_set and not films.rated:
        why, fix = "neither the run nor a row gives frames a second (fps), which it caps", "leave it out"
        raise UserError("the cap has no effect", where="--video.max-frames", why=why, fix=fix)
    with log.phase("decode"), counted(log, "films", len(wants)) as progress:
        films.decode({path: list(dict.fromkeys(policies)) for path, policies in wants.items()}, video.workers, progress)
    films.quarantine.must_not_exceed(video.most_failed, tuple(wants))
    films.sets += sum(len(set(policies)) for policies in wants.values())
    usable = [question for question in questions if films.usable(question)]
    if log.folder is not None:
        log.folder.set_films(films.used, ((bad.path, bad.reason) for bad in films.quarantine.films()))
    if questions and not usable:
        films.quarantine.must_not_exceed(0.0, tuple(wants))
    if not isinstance(films.model, Onlooker):
        check_fits(films, (Look(question, policy) for question in usable for policy in policies(question)), answers)
    strange = [words for question in usable if (words := unknown(films.model.tokenizer, question.text))]
    if strange:
        log.note(
            f"{len(strange)} of {len(usable)} questions hold words that the tokenizer does not know, such as "
            f"'{strange[0][0]}': the model reads {films.model.tokenizer.unk_token} in their place"
        )
    return usable


def encode(films: Films, looks: Sequence[Look], log: Log) -> None:
    """Encodes what is missing, counted as phase `encode`; the next step's row says how much was there: features_hit."""
    if films.store is None:
        return
    log.count("features", films.store.counts.numbers)
    with log.phase("encode"), counted(log, "frame sets", len(looks)) as progress:
        asked, missing = films.encode(looks, progress, log.note)
    log.share("features_hit", asked - missing, asked)


@contextmanager
def counted(log: Log, name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A (done, total) callback that moves a progress line; little work stays silent."""
    if total < 100:
        yield lambda done, total: None
        return
    with log.progress(name, total) as counter:
        yield lambda done, total: counter.advance(done - counter.done)
