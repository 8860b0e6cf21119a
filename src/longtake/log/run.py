"""How every stage begins and ends its run folder."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from longtake.errors import UserError
from longtake.log.files import read_json, write_json_atomic
from longtake.log.folder import DONE, RunFolder
from longtake.log.log import Log

BLOCK, BLOCKS = 1 << 16, 64  # bytes, and how many of them spread over a file tell two models apart
TRAINED = ("summary.json", "model/tokenizer_config.json")  # what a training stage makes, all weights or an adapter
MODEL = (".safetensors", ".json", ".jinja", ".txt")


class Described(Protocol):
    """A pydantic model of settings."""

    def model_dump(self, *, mode: str, exclude_defaults: bool = False) -> dict[str, Any]: ...


def begin(
    log: Log,
    stage: str,
    config: Described,
    out: Path,
    *,
    fresh: bool,
    reads: Sequence[str | Path],
    makes: Sequence[str] = TRAINED,
    mendable: bool = False,
) -> dict[str, Any] | None:
    """Opens the run folder for `log`; of a run that had ended well it returns its result, else None.

    Of several ranks the first does so, and all get its verdict.

    `makes`: files in the folder, the result first; if one of them is gone the run has not ended and goes on. What it
    `reads` may not change under its results; a `mendable` run that has not ended takes the change and says so.
    Raises UserError if `out` holds another run, or one of other contents of `reads`.
    """
    known = log.first(lambda: _opened(log, stage, config, out, fresh, reads, makes, mendable))
    if known is None:
        log.keep(out)
    return known


def finish(log: Log, summary: dict[str, Any], result: str = "summary.json") -> dict[str, Any]:
    """Writes the result and marks the run done; returns the result, the first rank's on every rank."""

    def written() -> dict[str, Any]:
        assert log.folder is not None, "begin() opened it"
        write_json_atomic(log.folder.path / result, summary)
        log.folder.set_status(DONE)
        return summary

    return log.first(written)


def _opened(
    log: Log,
    stage: str,
    config: Described,
    out: Path,
    fresh: bool,
    reads: Sequence[str | Path],
    makes: Sequence[str],
    mendable: bool,
) -> dict[str, Any] | None:
    chosen = config.model_dump(mode="json", exclude_defaults=True)
    folder = RunFolder.open(out, stage, config.model_dump(mode="json"), fresh=fresh, chosen=chosen, ranks=log.ranks)
    log.open(folder)
    whole = folder.was_done and all((out / name).exists() for name in makes)
    if whole:
        folder.set_status(DONE)
    prints = {str(path): fingerprint(Path(path)) for path in reads}
    changed = folder.changed(prints) if folder.begun else []
    if changed and (whole or not mendable):
        fix = "choose another --out, or --fresh to move the old run aside and begin again"
        raise UserError(f"{changed[0]} has changed since this run read it", where=str(out), fix=fix)
    for name in changed:
        log.note(f"{name} has changed since this run began; it goes on with what is there now")
    folder.set_reads(prints)
    return dict(read_json(out / makes[0])) if whole else None


def fingerprint(path: Path) -> str:
    """16 hex digits of a file's bytes, or of the files of a model's folder: names, sizes, blocks spread over each.

    "" for what is not there or can be read but once: a hub id, a pipe.
    """
    whole = path.is_file()
    files = [path] * whole
    if path.is_dir():  # some families keep weights in folders of their own
        files = sorted(file for depth in ("*", "*/*") for file in path.glob(depth) if file.suffix in MODEL)
    digest = blake2b(digest_size=8)
    try:
        for file in files:
            size = file.stat().st_size
            digest.update(f"{'' if whole else file.relative_to(path)} {size}".encode(errors="surrogateescape"))
            with file.open("rb") as opened:
                for start in range(0, size, BLOCK if whole else max(BLOCK, size // BLOCKS)):
                    opened.seek(start)
                    digest.update(opened.read(BLOCK))
    except OSError:  # whoever is to read it says why it cannot
        return ""
    return digest.hexdigest() if files else ""
