"""The one error people see: what, where, why, what to do; at most six lines."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input or a bad environment, said so that the reader knows the next step.

    Example: UserError("cannot read the film", where="films/7.mp4", why="moov atom not found", fix="copy it again").
    """

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        self.what, self.where, self.why, self.fix = what, where, why, fix
        parts = (what, where and f"  where: {where}", why and f"  why: {why}", fix and f"  do: {fix}")
        super().__init__("\n".join(part for part in parts if part))
