"""What a training recipe holds while it runs, opened so that it goes on where a killed run stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from longtake.data.cache import FrameTier, Quarantine
from longtake.data.rows import Bad
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.files import write_jsonl
from longtake.protocols import Model
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look
from longtake.runtime.load import load_model, tower_fingerprint
from longtake.runtime.words import unknown
from longtake.train import resume
from longtake.train.settings import Optim, Video
from longtake.train.step import adamw

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

    def checkpoint(self) -> Path:
        """Writes where the run stands; the one before is dropped once this one is whole."""
        return resume.save(self.folder / "checkpoints", self.progress, self.model, self.optimizer)

    def finish(self) -> Path:
        """The trained model in folder/model, without optimizer state; checkpoints stay until the next run."""
        return resume.save_model(self.folder / "model", self.model)


def open_session(
    name: str, folder: Path, video: Video, optim: Optim, log: Log, *, train_vision: bool, dtype: str
) -> Session:
    """Loads the newest checkpoint of `folder`, else the model `name`; metrics after the checkpoint are dropped."""
    found = resume.latest(folder / "checkpoints")
    progress = found[0] if found else resume.Progress()
    with log.phase("load"):
        model = _model(found[1] if found else None, name, dtype)
    for part in model.tower.parameters():
        part.requires_grad_(train_vision)
    params = [p for p in model.net.parameters() if p.requires_grad]
    optimizer = adamw(params, optim.lr, optim.betas, optim.weight_decay)
    if found:
        resume.load_optimizer(found[1], optimizer)
        log.note(f"goes on from step {progress.step}")
    lost = log.cut_after(progress.step)
    if lost and not found:
        log.note(f"begins again at step 1: {lost} steps were made but no checkpoint is in {folder / 'checkpoints'}")
    if train_vision:
        log.note("the vision tower is trained: features are made anew in every step, nothing is cached")
    films = open_films(model, video, folder, frozen=not train_vision)
    return Session(model, films, optimizer, params, progress, folder)


def _model(checkpoint: Path | None, name: str, dtype: str) -> Model:
    """The model of a checkpoint, or that of the name if there is none."""
    if checkpoint is None:
        return load_model(name, dtype)
    try:
        return load_model(checkpoint, dtype)
    except UserError as error:
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
        raise UserError("no question in this file", where=str(path))
    if bad and log.folder is not None:
        log.note(f"{len(bad)} malformed rows of {path} left out, the first at {bad[0].place}: {bad[0].reason}")
        write_jsonl(log.folder.path / f"bad_rows-{path.stem}.jsonl", [asdict(row) for row in bad])
    return good


def open_films(model: Model, video: Video, folder: Path, *, frozen: bool) -> Films:
    """Films of a run; tier and features are shared with other runs where `video` names their folders."""
    store = None
    if frozen:
        store = FeatureStore(video.features or folder / "features", tower_fingerprint(model), model.net.dtype)
    return Films(model, FrameTier(video.tier or folder / "tier"), store, Quarantine(folder))


def decode(
    films: Films,
    questions: Sequence[Question],
    video: Video,
    log: Log,
    policies: Callable[[Question], Iterable[FramePolicy]] | None = None,
) -> list[Question]:
    """Decodes all films of the questions once, for every policy they may be looked at with; returns the usable ones.

    `policies` of a question; without it those of `video`.

    Raises UserError if more films failed than `video.most_failed` allows, or all.
    """
    wants: dict[str, list[FramePolicy]] = {}
    for question in questions:
        if question.video is not None:
            wants.setdefault(question.video, []).extend((policies or video.policies)(question))
    with log.phase("decode"), counted(log, "films", len(wants)) as progress:
        films.decode({path: list(dict.fromkeys(policies)) for path, policies in wants.items()}, video.workers, progress)
    films.quarantine.must_not_exceed(video.most_failed, tuple(wants))
    films.sets += sum(len(set(policies)) for policies in wants.values())
    usable = [question for question in questions if films.usable(question)]
    if log.folder is not None:
        log.folder.set_films(films.used, ((bad.path, bad.reason) for bad in films.quarantine.films()))
    if questions and not usable:
        films.quarantine.must_not_exceed(0.0, tuple(wants))
    strange = [words for question in usable if (words := unknown(films.model.tokenizer, question.text))]
    if strange:
        log.note(
            f"{len(strange)} of {len(usable)} questions hold words that the tokenizer does not know, such as "
            f"'{strange[0][0]}': the model reads {films.model.tokenizer.unk_token} in their place"
        )
    return usable


def encode(films: Films, looks: Sequence[Look], log: Log) -> None:
    """Encodes what is missing, counted as phase `encode`; the first time, says what all features will take on disk."""
    if films.store is None:
        return
    with log.phase("encode"), counted(log, "frame sets", len(looks)) as progress:
        films.encode(looks, progress)
    if films.sets:
        handles = [films.prompt(look).features for look in looks]
        sizes = [made.level_LNE.nbytes for made in films.features([handle for handle in handles if handle])]
        if sizes:
            total = films.sets * sum(sizes) / len(sizes) / 2**30
            log.note(f"features of {films.sets} sets of frames take about {total:.2g} GiB in {films.store.folder}")
        films.sets = 0
    if films.store.damaged:
        log.note(f"{films.store.damaged} damaged files of features in {films.store.folder} moved aside and made again")
        films.store.damaged = 0


@contextmanager
def counted(log: Log, name: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A (done, total) callback that moves a progress line; little work stays silent."""
    if total < 100:
        yield lambda done, total: None
        return
    with log.progress(name, total) as counter:
        yield lambda done, total: counter.advance(done - counter.done)
