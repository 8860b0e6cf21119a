"""Films that could not be used, each with its reason: counted, shown, never silently skipped."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

from longtake.errors import UserError
from longtake.log import append_jsonl, read_jsonl
from longtake.log.files import write_jsonl


@dataclass(frozen=True, slots=True)
class Quarantined:
    """Example: Quarantined("7.mp4", "the film is empty: the file has 0 bytes", "copy or download the film again")."""

    path: str
    reason: str
    fix: str


class Quarantine:
    """`quarantine.jsonl` in a folder: one line a film."""

    def __init__(self, folder: Path | str) -> None:
        self.written = True  # whether this process writes the file; of several ranks one does
        self._file = Path(folder) / "quarantine.jsonl"
        rows = read_jsonl(self._file) if self._file.exists() else []
        self._films = {row["path"]: Quarantined(**row) for row in rows}

    def add(self, path: Path | str, reason: str, fix: str) -> None:
        film = Quarantined(str(path), reason, fix)
        known = self._films.get(film.path)
        self._films[film.path] = film
        if known is None and self.written:
            append_jsonl(self._file, asdict(film))
        elif known != film:
            self._rewrite()

    def release(self, path: Path | str) -> None:
        """The film is usable after all."""
        if self._films.pop(str(path), None):
            self._rewrite()

    def holds(self, path: Path | str) -> bool:
        return str(path) in self._films

    def films(self) -> tuple[Quarantined, ...]:
        """By path: the order in which they failed depends on how many worked on them."""
        return tuple(sorted(self._films.values(), key=lambda film: film.path))

    def __len__(self) -> int:
        return len(self._films)

    def must_not_exceed(self, fraction: float, paths: Collection[Path | str]) -> None:
        """Raises UserError if more than `fraction` of these films are here: then something is wrong with them all."""
        bad = [self._films[path] for path in map(str, paths) if path in self._films]
        if len(bad) > fraction * len(paths):
            first = bad[0]
            raise UserError(
                f"{len(bad)} of {len(paths)} films cannot be used",
                where=str(self._file),
                why=f"{first.path}: {first.reason}",
                fix=first.fix or "mend the films or take them out of the rows",
            )

    def _rewrite(self) -> None:
        if self.written:
            write_jsonl(self._file, [asdict(film) for film in self._films.values()])
