"""From the settings of an engine to the engine: in this process, in another, or behind a URL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import cast

from longtake.data.cache import FrameTier, Quarantine
from longtake.engines.endpoint import Endpoint
from longtake.engines.for_all import Distant, OneForAll
from longtake.engines.local import LocalEngine
from longtake.engines.remote import Remote, read_key
from longtake.engines.sglang import SglangEngine
from longtake.engines.vllm import Place, VllmEngine
from longtake.errors import UserError
from longtake.log import Log
from longtake.protocols import Engine, Model
from longtake.runtime.films import Films
from longtake.runtime.load import load_model, weights_version
from longtake.runtime.onlooker import Onlooker
from longtake.runtime.rows import FeaturesOf
from longtake.train import engine_settings
from longtake.train.context_settings import Context
from longtake.train.footage import open_films
from longtake.train.outside import Outside
from longtake.train.session import Session
from longtake.train.settings import Video

CACHED = {"features", "features_ram", "features_disk"}


def films_of(
    settings: engine_settings.Engine, name: str, dtype: str, context: Context, video: Video, folder: Path, log: Log
) -> Films:
    """The films of a run that answers, with the model that looks at them; for an endpoint nothing is loaded.

    Raises UserError, also for settings that an endpoint would ignore.
    """
    settings.found()
    if settings.kind != "remote":
        with log.phase("load"):
            loaded = load_model(name, dtype, rope=context.rope, reduce=context.reduce)
        films = open_films(loaded, video, folder, frozen=True)
        context.onto(films)
        return films
    if context.model_fields_set - {"subtitles", "pick"} or dtype != "auto":
        fix = "leave --context.rope, --context.reduce, --context.budget and --dtype out"
        raise UserError("an endpoint decides itself how it computes", fix=fix)
    if idle := sorted(video.model_dump(exclude_unset=True, exclude_none=True).keys() & CACHED):
        raise UserError("an endpoint gets frames, not features", where=f"--video.{idle[0]}", fix="leave it out")
    model = cast(Model, Onlooker(settings.max_pixels))  # as much of one as Films calls
    films = Films(model, FrameTier(video.tier or folder / "tier"), None, Quarantine(folder))
    context.onto(films)
    return films


@contextmanager
def engine_of(settings: engine_settings.Engine, name: str, films: Films, folder: Path, log: Log) -> Iterator[Engine]:
    """What answers about `films`, until the block ends. `name`: of the model, which an endpoint knows by it."""
    if settings.kind == "local":
        weights = weights_version(films.model)
        yield LocalEngine(films.model, films.features, weights, ranks=films.ranks, at=log.at)
        return
    if settings.kind == "remote":
        assert settings.url is not None
        assert isinstance(films.model, Onlooker)
        remote = Remote(
            settings.url,
            name,
            read_key(settings.key_file, "engine.key_file"),
            retries=settings.retries,
            timeout=settings.timeout,
        )
        try:
            yield Endpoint(
                remote, films.pixels, films.model.asked.__getitem__, settings.workers, folder / "answers.jsonl"
            )
        finally:
            remote.close()
        return
    with beside_of(settings, films, weights_version(films.model), folder, log) as engine:
        yield engine


@contextmanager
def outside_of(settings: engine_settings.Engine, session: Session, log: Log) -> Iterator[Outside | None]:
    """The engine in another process that samples for training, until the block ends; None: the model itself does."""
    if settings.kind == "local":
        yield None
        return
    with beside_of(settings, session.films, f"step-{session.progress.step}", session.folder, log) as engine:
        yield Outside(engine, session.passes, settings.cap, settings.gate)


@contextmanager
def beside_of(
    settings: engine_settings.Engine, films: Films, weights: str, folder: Path, log: Log
) -> Iterator[Distant]:
    """The engine in another process, with these weights; one for all ranks."""

    def begin(features: FeaturesOf) -> AbstractContextManager[Distant]:
        own = vllm_of if settings.kind == "vllm" else sglang_of
        return own(settings, films, weights, folder, log, features)

    with OneForAll.open(films.ranks.world, films.model, films.features, begin) as engine:
        yield engine


@contextmanager
def sglang_of(
    settings: engine_settings.Engine, films: Films, weights: str, folder: Path, log: Log, features: FeaturesOf
) -> Iterator[SglangEngine]:
    """A server of SGLang with these weights."""
    assert settings.url is not None
    with log.phase("engine"):
        server = SglangEngine.open(films.model, settings.url, folder, features, weights, settings.patience)
    yield server


@contextmanager
def vllm_of(
    settings: engine_settings.Engine, films: Films, weights: str, folder: Path, log: Log, features: FeaturesOf
) -> Iterator[VllmEngine]:
    """vLLM with the weights of the model that looks at `films`, until the block ends. Raises UserError."""
    worker = settings.python or settings.url
    assert worker is not None
    place = Place(worker, folder, context=settings.context, memory=settings.memory, patience=settings.patience)
    with log.phase("engine"):
        engine = VllmEngine.open(films.model, place, features, weights, log.note)
    with engine:
        yield engine
