"""Config of how rows go through the network: what is kept, how much at once, whose gradient."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from longtake.config import Settings

PrefixGradient = Literal["exact", "none"] | Annotated[float, Field(gt=0, lt=1)]


class Memory(Settings):
    """What a step holds at once. None of it changes what is learned."""

    row_tokens: int = Field(16384, ge=1, description="prefix tokens in one forward pass, and held at once")
    answer_tokens: int = Field(16384, ge=1, description="answer tokens in one forward and backward on a prefix")
    keep: Literal["auto", "graph", "layers", "host"] = Field(
        "auto",
        description="kept of a prefix for its backward: graph (fastest), layer inputs, these on the host; "
        "auto: graph where it fits",
    )
    tile: int = Field(8192, ge=1, description="tokens of an MLP or a norm that are computed at once")


def probability(gradient: PrefixGradient) -> float:
    """How often the backward goes through a prefix."""
    return {"exact": 1.0, "none": 0.0}[gradient] if isinstance(gradient, str) else gradient
