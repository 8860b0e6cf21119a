"""`longtake ask film.mp4 "question"`: an answer, the times that were seen, and the receipt."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log
from longtake.train.context_settings import Context
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.records import Receipt


IDLE = {"root", "workers", "features", "features_ram", "features_disk", "most_failed"}  # of one film


class Config(Settings):
    """Ask a model about one film."""

    film: Path = Field(description="any file that PyAV decodes, a picture, or a folder of frames")
    question: str = Field(description="what to ask")
    model: str = Field(description="hub id or folder of a checkpoint")
    temperature: float = Field(0.0, ge=0, description="0 = the likeliest answer")
    max_tokens: int = Field(512, ge=1, description="longest answer")
    strip: Path | None = Field(None, description="write a filmstrip of what was seen to this jpg")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling, above temperature 0")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")

    @model_validator(mode="after")
    def _used(self) -> Config:
        if idle := self.video.model_fields_set & IDLE:
            raise ValueError(f"has no effect on one film: video.{', video.'.join(sorted(idle))}")
        if "subtitles" in self.context.model_fields_set:
            raise ValueError("context.subtitles has no effect: a question of the command line has none")
        if self.video.fps is None and "max_frames" in self.video.model_fields_set:
            raise ValueError("video.max_frames caps video.fps, which is not given: leave it out")
        if len(self.video.frames) > 1:
            raise ValueError("the film is looked at once: give one number of video.frames")
        if self.temperature == 0 and "seed" in self.model_fields_set:
            raise ValueError("seed has no effect at temperature 0: leave it out, or raise temperature")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns {"answer", "finish", "unknown_words", "receipt"}."""
    from longtake.data.cache import FrameTier, Quarantine
    from longtake.data.strip import save_strip
    from longtake.engines.local import LocalEngine
    from longtake.records import Draw, Question
    from longtake.runtime.films import Films, Look
    from longtake.runtime.load import load_model
    from longtake.runtime.words import unknown
    from longtake.train.reach import check_prompt

    if not config.question.strip():
        raise UserError("the question is empty", fix='longtake ask film.mp4 "What happens?" --model …')
    if any("\ud800" <= letter <= "\udfff" for letter in config.question):
        why, fix = "this locale knows plain ASCII only", "set LC_ALL=C.UTF-8 and ask again"
        raise UserError("the question cannot be read", why=why, fix=fix)
    _check_film(config.film)  # a model may take minutes to load
    model = load_model(config.model, config.dtype, rope=config.context.rope, reduce=config.context.reduce)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        films = Films(model, FrameTier(config.video.tier or folder), None, Quarantine(folder))
        question = Question("ask", str(config.film), config.question)
        look = Look(question, config.video.policy(question, 0))
        config.context.onto(films)
        films.tier.fill({config.film: [films.settled(str(config.film), look.policy)]}, model.fit, workers=0)
        prompt = films.prompt(look)
        check_prompt(model, prompt, config.max_tokens, "fewer --video.frames or --max-tokens")
        engine = LocalEngine(model, films.features, "")
        answer = engine.generate([prompt], [[Draw(config.temperature, config.seed)]], config.max_tokens)[0].answers[0]
        if config.strip is not None:
            save_strip(films.frames(look), config.strip)
    assert prompt.receipt is not None
    log.say(f"{answer.text}\n\n{told(prompt.receipt)}")
    if strange := unknown(model.tokenizer, config.question):
        log.say(f"words the model does not know, read as {model.tokenizer.unk_token}: {', '.join(strange)}")
    if answer.finish == "length":
        log.say(f"the answer was cut at {config.max_tokens} tokens: raise --max-tokens")
    found = {"answer": answer.text, "finish": answer.finish, "unknown_words": strange}
    return found | {"receipt": asdict(prompt.receipt)}


def _check_film(film: Path) -> None:
    """Raises UserError for one that cannot be looked at."""
    from longtake.data.album import album
    from longtake.data.damage import fault
    from longtake.data.pictures import film_stamp

    if album(film) is not None:
        film_stamp(film)
    elif wrong := fault(film):
        raise UserError(wrong[0], where=str(film), why=wrong[1], fix=wrong[2])


def told(receipt: Receipt) -> str:
    """A receipt in two or three lines."""
    seconds = receipt.seconds[: len(receipt.seconds) - receipt.padded]
    shown = [f"{value:.1f}" for value in (seconds if len(seconds) <= 8 else (*seconds[:4], *seconds[-3:]))]
    if len(seconds) > 8:
        shown.insert(4, "…")
    size = f"{receipt.width} x {receipt.height} pixels, {receipt.tokens} visual tokens, {receipt.backend}"
    cut = f"\ncut: {receipt.cut}" if receipt.cut else ""
    return f"saw {len(seconds)} frame{'s' * (len(seconds) > 1)} of {receipt.path} at {' '.join(shown)} s\n{size}{cut}"
