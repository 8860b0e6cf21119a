"""`longtake merge MODEL --out FOLDER`: an adapter and its base become one plain model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pydantic import Field

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log
from longtake.log.files import writing
from longtake.train.settings import Dtype


class Config(Settings):
    """Write a LoRA into the weights of its base."""

    model: str = Field(description="folder or hub id of a LoRA, such as the model/ of a run")
    out: Path = Field(description="folder of the plain model; it must not be there yet")
    dtype: Dtype = Field("auto", description="of the weights; auto = as the base is saved")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns {"model"}. Raises UserError for a model without an adapter, and for one that cannot be merged."""
    from longtake.models import adapter_files, adapters
    from longtake.rewards.model import FILE
    from longtake.runtime.load import find_folder, load_model
    from longtake.train.resume import save_model

    with writing(config.out):
        if config.out.exists() and (not config.out.is_dir() or any(config.out.iterdir())):
            raise UserError("there is something already", where=str(config.out), fix="choose another --out")
    folder = find_folder(config.model)
    if not (folder / adapter_files.CONFIG).is_file():
        why = "it is a whole model, no adapter"
        raise UserError("nothing to merge", where=config.model, why=why, fix="use it as it is")
    model = load_model(folder, config.dtype, "cpu")
    try:
        adapters.merge(model)
    except UserError as error:
        fix = error.fix or "use it as it is: --model takes adapters"
        raise UserError(error.what, where=config.model, why=error.why, fix=fix) from error
    save_model(config.out, model)
    if (folder / FILE).is_file():  # a reward model stays one
        with writing(config.out):
            shutil.copyfile(folder / FILE, config.out / FILE)
    log.say(str(config.out))
    return {"model": str(config.out)}
