"""Which weights an adapter was trained on: a mark of the base's files beside it, so that later ones are noticed."""

from __future__ import annotations

import json
from hashlib import blake2b
from pathlib import Path

from longtake.errors import UserError

MARK = "base.json"
PIECE = 65536  # bytes
PARTS = ("llm", "vision_tower", "mm_projector")  # folders that hold an NVILA's weights


def mark(base: Path) -> str:
    """16 hex digits of the sizes, heads, middles and tails of all weight files: any training changes them."""
    digest = blake2b(digest_size=8)
    for path in sorted(path for part in ("", *PARTS) for path in (base / part).glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size} ".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - PIECE)):
                file.seek(start)
                digest.update(file.read(PIECE))
    return digest.hexdigest()


def write_mark(folder: Path, name: str) -> None:
    """Writes the mark of the base `name` into an adapter's folder; a base on the hub needs none."""
    if Path(name).is_dir():
        (folder / MARK).write_text(json.dumps({"weights": mark(Path(name))}) + "\n")


def check_mark(folder: Path, base: Path) -> None:
    """Raises UserError if `base` is not what the adapter in `folder` was trained on; without a mark it may be."""
    path = folder / MARK
    if path.is_file() and path.read_text().strip() != json.dumps({"weights": mark(base)}):
        raise UserError(
            "the adapter's base has other weights than it was trained on",
            where=str(base),
            why=f"they differ from the mark in {path}",
            fix="bring the old ones back; delete the mark to use these all the same",
        )
