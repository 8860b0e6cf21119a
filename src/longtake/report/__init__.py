"""One self-contained HTML page about a run folder, made from its files alone."""

from longtake.report.build import NAME, build

__all__ = ["NAME", "build"]
