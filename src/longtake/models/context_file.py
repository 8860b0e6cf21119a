"""context.json beside a model's weights: the scaled positions and the reduced frames that it was trained with.

A whole model's config.json holds the scaled positions as well, for transformers; an adapter's base knows of neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longtake.errors import UserError
from longtake.models.checkpoint import read_json
from longtake.models.rope import Scaling, already, check, parse, scale

if TYPE_CHECKING:
    from longtake.models.network import Network

FILE = "context.json"


@dataclass(frozen=True, slots=True)
class Kept:
    """How a model's context was made larger. Example: Kept(rope="linear:2")."""

    rope: str | None = None  # see models.rope
    reduce: str | None = None  # see Network.set_reduction

    def __str__(self) -> str:
        told = [f"{name} {spec}" for name, spec in asdict(self).items() if spec]
        return " and ".join(told) or "positions and frames as they are"


def save(kept: Kept, folder: Path) -> None:
    """Writes folder/context.json where there is something to say."""
    if kept != Kept():
        (folder / FILE).write_text(json.dumps(asdict(kept), indent=2) + "\n")


def read(folder: Path) -> Kept:
    """What folder/context.json says; nothing without it. Raises UserError if it is damaged."""
    if not (folder / FILE).is_file():
        return Kept()
    found = read_json(folder / FILE)
    if found.keys() - {"rope", "reduce"} or not all(isinstance(text, str | None) for text in found.values()):
        raise UserError("the file of a model's context is damaged", where=str(folder / FILE), fix="copy it again")
    return Kept(**found)


def settle(model: Network, folder: Path, base: Path, rope: str | None, reduce: str | None) -> None:
    """Gives the network of `base` the context of `folder` (an adapter's, or `base` itself) or the one asked for.

    Positions that were scaled stay as they are; frames may be reduced otherwise than in training. Raises UserError.
    """
    check(model.text.config)
    built, kept = read(base), read(folder)
    if built.rope:
        _check_built(model, parse(built.rope), base)
    known = kept.rope or built.rope
    asked = str(parse(rope)) if rope else known
    if known and {known, built.rope or known} != {asked}:
        raise already(f"the model was trained with {known}")
    if asked and not built.rope:
        scale(model.text, parse(asked))
    seen = reduce or kept.reduce or built.reduce
    if seen:
        model.set_reduction(seen)
    model.context = Kept(asked, seen)


def _check_built(model: Network, said: Scaling, base: Path) -> None:
    """Raises UserError if the network that was built has not the positions that its context.json tells of."""
    own = model.text.config.rope_parameters
    plain = {"rope_type": "default"} if said.way == "dynamic" else {"rope_type": said.way, "factor": said.factor}
    if any(own.get(name) != value for name, value in plain.items()):
        why = f"context.json says {said}, config.json {own['rope_type']} by {own.get('factor', 1):g}"
        raise UserError("the files of the model's positions disagree", where=str(base), why=why, fix="copy both again")
