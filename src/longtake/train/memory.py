"""Config of how rows go through the network: what is kept, how much at once, whose gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from longtake.config import Settings, option
from longtake.errors import UserError

PrefixGradient = Literal["exact", "none"] | Annotated[float, Field(gt=0, lt=1)]


class Memory(Settings):
    """What a step holds at once. None of it changes what is learned."""

    row_tokens: int = Field(16384, ge=1, description="prefix tokens in one forward pass, and held at once")
    answer_tokens: int = Field(2048, ge=1, description="answer tokens in one forward and backward on a prefix")
    keep: Literal["auto", "graph", "attention", "layers", "host"] = Field(
        "auto",
        description="kept of a prefix for its backward: graph (fastest), layer inputs and attention outputs, layer "
        "inputs alone, these on the host; auto: the fastest that fits",
    )
    prefixes: Path | None = Field(
        None, description="folder of prefixes' keys and values under an alora, shared by runs (default: memory alone)"
    )
    prefixes_ram: float = Field(8.0, gt=0, description="GiB of these in each rank's memory")
    prefixes_disk: float = Field(200.0, gt=0, description="GiB of these in that folder")
    tile: int = Field(8192, ge=1, description="tokens of a layer, attention aside, that are computed at once")

    def check(self, kind: str, gradient: PrefixGradient) -> None:
        """Raises UserError for settings that an adapter of this kind would ignore."""
        named = self.model_fields_set
        if kind != "alora" and (idle := sorted(named & {"prefixes", "prefixes_ram", "prefixes_disk"})):
            why = "keys and values of a prefix outlive a step only where the adapter acts on answers alone"
            raise UserError(
                "nothing is kept", where=option(f"memory.{idle[0]}"), why=why, fix="set --adapter.kind alora"
            )
        if self.prefixes is None and "prefixes_disk" in named:
            raise UserError("no folder to fill", where="--memory.prefixes-disk", fix="name one with --memory.prefixes")
        why = "under an alora no gradient goes through a prefix"
        if kind == "alora" and gradient != "exact":
            raise UserError("it is exact as it is", where="--prefix-gradient", why=why, fix="leave it out")
        if "keep" in named and (kind == "alora" or gradient == "none"):
            raise UserError("nothing is kept for a backward", where="--memory.keep", why=why, fix="leave it out")


def probability(gradient: PrefixGradient) -> float:
    """How often the backward goes through a prefix."""
    return {"exact": 1.0, "none": 0.0}[gradient] if isinstance(gradient, str) else gradient
