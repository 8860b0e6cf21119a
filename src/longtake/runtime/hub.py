"""Models from the Hugging Face hub, without waiting for ever."""

from __future__ import annotations

from pathlib import Path

from longtake.errors import UserError
from longtake.log.files import disk_full, full
from longtake.models.checkpoint import first_line

FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]  # of a hub repository: weights once, no .bin, no .pth
PATIENCE = 4  # seconds in which the hub must say something; its client asks twice


def download(name: str) -> Path:
    """The local copy of a hub repository, brought up to date if the hub answers. Raises UserError."""
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    silent: Exception | None = None
    try:
        try:
            HfApi().model_info(name, timeout=PATIENCE)  # snapshot_download asks the same without a limit
        except (GatedRepoError, RepositoryNotFoundError):
            raise
        except Exception as error:  # the client lets its HTTP library's own errors through, and changes that library
            silent = error
        return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=silent is not None))
    except GatedRepoError as error:
        fix = "accept its terms on its hub page, then `hf auth login`"
        raise UserError("the model is gated", where=name, why=first_line(error), fix=fix) from error
    except RepositoryNotFoundError as error:
        why, fix = (
            "neither a folder here nor a public repository on the hub",
            "check the spelling; private: `hf auth login`",
        )
        raise UserError("no such model", where=name, why=why, fix=fix) from error
    except Exception as error:
        if disk_full(error):
            raise full(Path(constants.HF_HUB_CACHE)) from error
        fix = f"check the network, or copy the model and give its folder (no folder {name} here)"
        raise UserError("the hub cannot be reached", where=name, why=first_line(silent or error), fix=fix) from error
