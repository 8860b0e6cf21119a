"""The config block that stages share about longer inputs: positions beyond those trained, fewer tokens a frame."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.models.rope import parse


class Context(Settings):
    """How more film fits into the model's context; a checkpoint that was trained so keeps it."""

    rope: str | None = Field(
        None, description="scale positions: linear:2, dynamic:2 or yarn:4 (default: as the checkpoint was trained)"
    )
    reduce: str | None = Field(
        None, description="make a frame's visual tokens fewer, as the family can (default: as the checkpoint does)"
    )

    subtitles: Literal["on", "off"] = Field("on", description="whether subtitles that rows name stand in the prompt")

    @field_validator("rope")
    @classmethod
    def _known(cls, spec: str | None) -> str | None:
        if spec is not None:
            try:
                parse(spec)
            except UserError as error:
                raise ValueError(f"{error.what}: {error.why or error.fix}") from None
        return spec
