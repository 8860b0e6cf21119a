"""`longtake ask film.mp4 "question"`: an answer, the times that were seen, and the receipt."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log
from longtake.train.settings import Video

if TYPE_CHECKING:
    from longtake.records import Receipt


class Config(Settings):
    """Ask a model about one film."""

    film: Path = Field(description="any file that PyAV decodes")
    question: str = Field(description="what to ask")
    model: str = Field(description="hub id or folder of a checkpoint")
    temperature: float = Field(0.0, ge=0, description="0 = the likeliest answer")
    max_tokens: int = Field(512, ge=1, description="longest answer")
    strip: Path | None = Field(None, description="write a filmstrip of what was seen to this jpg")
    dtype: str = Field("auto", description="auto (as saved), float32 or bfloat16")
    seed: int = Field(0, description="of sampling, above temperature 0")
    video: Video = Field(Video(), description="which frames are looked at")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns {"answer", "finish", "receipt"}."""
    from longtake.data.cache import FrameTier, Quarantine
    from longtake.data.strip import save_strip
    from longtake.engines.local import LocalEngine
    from longtake.records import Draw, Question
    from longtake.runtime.films import Films, Look
    from longtake.runtime.load import load_model

    if not config.question.strip():
        raise UserError("the question is empty", fix='longtake ask film.mp4 "What happens?" --model …')
    model = load_model(config.model, config.dtype)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        films = Films(model, FrameTier(config.video.tier or folder), None, Quarantine(folder))
        question = Question("ask", str(config.film), config.question)
        look = Look(question, config.video.policy(question, 0))
        films.tier.fill({config.film: [look.policy]}, model.fit, workers=0)
        prompt = films.prompt(look)
        engine = LocalEngine(model, films.features, "")
        answer = engine.generate([prompt], [[Draw(config.temperature, config.seed)]], config.max_tokens)[0].answers[0]
        if config.strip is not None:
            save_strip(films.frames(look), config.strip)
    assert prompt.receipt is not None
    log.say(f"{answer.text}\n\n{told(prompt.receipt)}")
    if answer.finish == "length":
        log.say(f"the answer was cut at {config.max_tokens} tokens: raise --max-tokens")
    return {"answer": answer.text, "finish": answer.finish, "receipt": asdict(prompt.receipt)}


def told(receipt: Receipt) -> str:
    """A receipt in two or three lines."""
    seconds = receipt.seconds[: len(receipt.seconds) - receipt.padded]
    shown = [f"{value:.1f}" for value in (seconds if len(seconds) <= 8 else (*seconds[:4], *seconds[-3:]))]
    if len(seconds) > 8:
        shown.insert(4, "…")
    size = f"{receipt.width} x {receipt.height} pixels, {receipt.tokens} visual tokens, {receipt.backend}"
    cut = f"\ncut: {receipt.cut}" if receipt.cut else ""
    return f"saw {len(seconds)} frames of {receipt.path} at {' '.join(shown)} s\n{size}{cut}"
