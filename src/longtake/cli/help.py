"""The two helps: all stages in one screen, and the settings of one stage (written by tyro)."""

from __future__ import annotations

from collections.abc import Mapping

from longtake.cli.stages import Stage
from longtake.config import Settings

ALSO = (
    "Settings may also come from YAML files, merged left to right before the options. Every stage takes --dry-run "
    "(show the settings and what would be read and written) and --json (one JSON object at the end)."
)


def stages_help(stages: Mapping[str, Stage]) -> str:
    """What `longtake --help` prints."""
    width = max(map(len, stages))
    lines = [f"  {name:<{width}}  {stage.sentence}" for name, stage in stages.items()]
    usage = "usage: longtake STAGE [settings.yaml …] [rows.jsonl …] [--key value …]"
    return "\n".join([usage, "", *lines, "", "longtake STAGE --help lists the settings of a stage.", "", ALSO])


def print_stage_help(name: str, stage: Stage, kind: type[Settings]) -> None:
    """Print the settings of a stage by group, with defaults."""
    import tyro

    arguments = "".join(f" [{field.upper()}]" for field in stage.positional)
    sentence = stage.sentence[0].upper() + stage.sentence[1:]
    try:
        tyro.cli(
            kind,
            args=["--help"],
            prog=f"longtake {name} [settings.yaml …]{arguments}",
            description=f"{sentence}. {ALSO}",
        )
    except SystemExit:
        return
