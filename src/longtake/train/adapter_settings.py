"""The config block that says what is trained: all weights, or an adapter on frozen ones. No torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from longtake.config import Settings


class Adapter(Settings):
    """LoRA (arXiv 2106.09685), activated LoRA (arXiv 2504.12397), QLoRA (arXiv 2305.14314), or none of them."""

    kind: Literal["full", "lora", "alora"] = Field(
        "lora", description="lora: an adapter; alora: one that acts on answers only; full: every weight"
    )
    rank: int = Field(32, ge=1, description="of the adapter's matrices")
    alpha: float = Field(64.0, gt=0, description="the adapter acts with alpha / rank")
    targets: tuple[str, ...] | None = Field(
        None, min_length=1, description="linear layers to adapt, as q_proj (default: all of the decoder's)"
    )
    quantize: Literal["nf4"] | None = Field(None, description="keeps the decoder's own weights in four bits (QLoRA)")

    @model_validator(mode="after")
    def _has_effect(self) -> Adapter:
        idle = sorted(self.model_dump(exclude_unset=True, exclude_none=True).keys() - {"kind"})
        if self.kind == "full" and idle:
            raise ValueError(f"{', '.join(idle)} has no effect on full fine-tuning: set kind to lora or alora")
        return self
