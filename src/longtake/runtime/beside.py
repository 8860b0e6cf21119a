"""Further adapters, with their scalar heads, on a model that is loaded: one base in memory for all that PPO needs."""

from __future__ import annotations

from pathlib import Path

from longtake.errors import UserError
from longtake.models import adapter_files, context_file, heads
from longtake.models.checkpoint import read_json
from longtake.protocols import Model
from longtake.runtime.load import base_of, find_folder


def load_beside(model: Model, name: str, source: str | Path, *, trainable: bool, scalar: bool) -> None:
    """Puts the adapter of a folder or hub id beside the model's own, as `name`; with its head where `scalar`.

    Raises UserError if it was trained on another base or carries no head.
    """
    folder, kind = find_folder(source), "reward" if scalar else name  # a value model begins as a reward model
    if not (folder / adapter_files.CONFIG).is_file():
        why, fix = "it is a whole model: one base in memory carries adapters alone", "train it with --adapter.kind lora"
        raise UserError(f"the {kind} model is no adapter", where=str(source), why=why, fix=fix)
    saved = read_json(folder / adapter_files.CONFIG)
    base_name, base = base_of(folder, saved)
    own = model.net.name_or_path
    if own not in (base_name, str(base.resolve())):
        why = f"its base is {base_name}, the policy's is {own}"
        raise UserError(f"the {kind} model has another base", where=str(source), why=why, fix="train both on one base")
    if (kept := context_file.read(folder)) != model.context:
        why = f"trained with {kept}, the policy with {model.context}: they share one base and its prefixes"
        fix = "train both with one --context.rope and --context.reduce"
        raise UserError(f"the {kind} model reads another context", where=str(source), why=why, fix=fix)
    adapter_files.add_saved(model, name, folder, saved, trainable=trainable)
    if scalar and not heads.load(model, folder, name, trainable=trainable):
        why = f"no {heads.FILE} in it"
        raise UserError(
            f"the {kind} model gives no scores", where=str(source), why=why, fix="train it with `longtake reward`"
        )
