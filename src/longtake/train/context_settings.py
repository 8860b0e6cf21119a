"""The config block that stages share about longer inputs: positions beyond those trained, fewer tokens a frame."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.models.rope import parse
from longtake.records import Pick

if TYPE_CHECKING:
    from longtake.runtime.films import Films


class Context(Settings):
    """How more film fits into the model's context; a checkpoint that was trained so keeps it."""

    rope: str | None = Field(
        None, description="scale positions: linear:2, dynamic:2 or yarn:4 (default: as the checkpoint was trained)"
    )
    reduce: str | None = Field(
        None, description="make a frame's visual tokens fewer, as the family can (default: as the checkpoint does)"
    )
    subtitles: Literal["on", "off"] = Field("on", description="whether subtitles that rows name stand in the prompt")
    pick: Pick | None = Field(
        None, description="of equal bins of the film: the frame at their centre, or the key frame nearest to it"
    )
    budget: int | None = Field(
        None, ge=1, description="visual tokens of a film, at most: fewer frames where there would be more"
    )

    @field_validator("rope")
    @classmethod
    def _known(cls, spec: str | None) -> str | None:
        if spec is not None:
            try:
                parse(spec)
            except UserError as error:
                raise ValueError(f"{error.what}: {error.why or error.fix}") from None
        return spec

    @field_validator("reduce")
    @classmethod
    def _reduces(cls, spec: str | None) -> str | None:
        if spec is not None:
            from longtake.models.reduce import Reduction  # torch, and only for those who ask

            try:
                Reduction.parse(spec)
            except UserError as error:
                raise ValueError(f"{error.what}: {error.why or error.fix}") from None
        return spec

    def onto(self, films: Films) -> None:
        """How a run's films are looked at where rows do not say it themselves."""
        films.subtitles, films.pick, films.budget = self.subtitles == "on", self.pick, self.budget
