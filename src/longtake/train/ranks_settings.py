"""The config block that says how several ranks share the work. No torch here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from longtake.config import Settings, option
from longtake.errors import UserError

if TYPE_CHECKING:
    from longtake.log import Log
    from longtake.protocols import Model
    from longtake.runtime.films import Films
    from longtake.train.adapter_settings import Adapter


class Ranks(Settings):
    """Of a run that torchrun started. None of it changes what is learned."""

    sequence: int | None = Field(
        None, ge=1, description="ranks that share a prefix (default: as few as have room for the longest)"
    )
    attention: Literal["gather", "ulysses"] = Field(
        "gather", description="of those ranks: each its own queries, or each some heads where these can be parted"
    )

    weights: Literal["auto", "whole", "shares"] = Field(
        "auto", description="of full fine-tuning: on every rank, or a share on each (FSDP2); auto: shares if large"
    )

    def check(self, size: int, adapter: Adapter | None = None) -> None:
        """Raises UserError for what `size` ranks cannot do, or one would ignore; and for shares of an adapter's model:
        what it trains is small, and the rest is whole on every rank.
        """
        if size == 1 and self.model_fields_set:
            name = option(f"ranks.{min(self.model_fields_set)}")
            raise UserError("one rank shares with nobody", where=name, fix="start torchrun, or leave it out")
        if self.sequence is not None and size % self.sequence:
            fits = ", ".join(str(degree) for degree in range(1, size + 1) if size % degree == 0)
            what = f"{size} ranks cannot be sequences of {self.sequence} each"
            raise UserError(what, where=option("ranks.sequence"), fix=f"one of {fits}")
        if self.sequence == 1 and "attention" in self.model_fields_set:
            raise UserError("no prefix is shared", where=option("ranks.attention"), fix="leave it out")
        if adapter is not None and adapter.kind != "full" and self.weights == "shares":
            four = "four-bit weights are not gathered, and " if adapter.quantize else ""
            why = f"{four}a LoRA keeps its base whole on every rank"
            fix = "leave it out, or --adapter.kind full"
            raise UserError("these weights stay whole", where=option("ranks.weights"), why=why, fix=fix)

    def share_weights(self, model: Model, adapter: Adapter, log: Log) -> None:
        """Puts the weights of full fine-tuning in shares where that is asked for, or they are large."""
        from longtake.parallel.fsdp import shard
        from longtake.parallel.ranks import here
        from longtake.train.degree import large

        world = here()
        if adapter.kind != "full" or world.size == 1:
            return
        if self.weights == "shares" or (self.weights == "auto" and large(model)):
            shard([model.net], model.layers, world)
            log.note(f"weights, gradients and optimizer are in {world.size} shares (FSDP2)")

    def onto(self, films: Films) -> None:
        """How the ranks of a run share its films. Raises UserError."""
        self.check(films.ranks.world.size)
        films.sequence, films.attention = self.sequence, self.attention
