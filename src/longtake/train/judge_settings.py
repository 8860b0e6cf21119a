"""The config blocks of asking for preferences: what a judge is told about the film, and who judges. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.train import context_settings

JUDGE = "judge"  # as context.captioner: whoever judges
OF_ENDPOINTS = {"key_file", "max_pixels", "workers", "retries", "timeout", "price", "by_schema"}


class Context(context_settings.Context):
    """The narrative of the film that the judge reads beside it: clips, captioned one by one (VLM-RLAIF §3.2).

    `rope` and `reduce` are of the model whose answers are judged.
    """

    kind: Literal["narrative", "none"] = Field("narrative", description="none: the judge sees the film alone")
    clips: int = Field(3, ge=1, description="equal parts that a film is cut into")
    clip_seconds: float | None = Field(None, gt=0, description="cut every so many seconds instead, for long films")
    clip_frames: int = Field(20, ge=1, description="frames of a clip, at most")
    captioner: str | None = Field(
        None, description="hub id or folder of the model that captions; `judge` = whoever judges (default: the model)"
    )
    max_tokens: int = Field(512, ge=1, description="longest caption")

    @model_validator(mode="after")
    def _used(self) -> Context:
        idle = sorted(self.model_fields_set - {"kind", *context_settings.Context.model_fields})
        if self.kind == "none" and idle:
            raise ValueError(f"{', '.join(idle)} has no effect without a narrative: leave out, or set kind narrative")
        if self.clip_seconds is not None and "clips" in idle:
            raise ValueError("clips and clip_seconds exclude each other: give one")
        return self


class Judge(Settings):
    """Who judges: the model itself, another checkpoint (`model`), or an OpenAI-compatible endpoint (`url`)."""

    model: str | None = Field(None, description="hub id or folder; at an endpoint its name there (default: the model)")
    url: str | None = Field(None, description="of an endpoint, up to and including /v1")
    key_file: Path | None = Field(None, description="file that holds the endpoint's key (default: none is sent)")
    frames: int | None = Field(None, ge=1, description="frames that the judge sees (default: those the model saw)")
    max_pixels: int = Field(512 * 512, ge=1, description="pixels of a frame that is sent to an endpoint")
    temperature: float | None = Field(0.0, ge=0, description="of verdicts; null = the endpoint's own")
    max_tokens: int = Field(1024, ge=1, description="longest verdict, reasoning included")
    by_schema: bool = Field(True, description="ask for JSON by a schema where the endpoint takes one")
    workers: int = Field(8, ge=1, description="requests at once")
    retries: int = Field(5, ge=0, description="tries beyond the first of a request that failed")
    timeout: float = Field(120.0, gt=0, description="seconds of one try")
    price: tuple[float, float] = Field((0.0, 0.0), description="per million tokens in and out; 0 0 = unknown")
    most_failed: float = Field(0.05, ge=0, le=1, description="share of requests that may fail before the run does")

    @model_validator(mode="after")
    def _used(self) -> Judge:
        if self.url is None:
            if idle := sorted(self.model_fields_set & (OF_ENDPOINTS | {"most_failed"})):
                raise ValueError(f"{', '.join(idle)} has no effect without an endpoint: name its url")
            if self.temperature is None:
                raise ValueError("temperature null is for endpoints: give a number")
        elif not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url must begin with http:// or https://, got {self.url!r}")
        elif self.model is None:
            raise ValueError("an endpoint serves models by name: give model too")
        if min(self.price) < 0:
            raise ValueError("price must not be below 0")
        return self
