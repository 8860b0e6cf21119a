"""What a run looks at: its films decoded once, over all ranks, and encoded before they are asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from longtake.config import option
from longtake.data.cache import FrameTier, Quarantine
from longtake.errors import UserError
from longtake.log import Log
from longtake.parallel.ranks import here, mesh
from longtake.protocols import Model
from longtake.records import FramePolicy, Question
from longtake.runtime.features import FeatureStore
from longtake.runtime.films import Films, Look
from longtake.runtime.load import tower_fingerprint
from longtake.runtime.onlooker import Onlooker
from longtake.runtime.words import unknown
from longtake.train.degree import spread
from longtake.train.reach import Answers, check_fits
from longtake.train.settings import Video


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
    return Films(model, FrameTier(video.tier or folder / "tier"), store, Quarantine(folder), mesh(here(), 1))


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
        looks = [Look(question, policy) for question in usable for policy in policies(question)]
        check_fits(films, looks, answers)
        spread(films, looks, log)
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
