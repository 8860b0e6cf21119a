"""The sections on feedback: what judges preferred, and reward models that learned it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from longtake.report.files import Run
from longtake.report.judged import Preferences, preferences
from longtake.report.pair_cards import Known, key
from longtake.report.pair_files import Judged, judged, said, scored
from longtake.report.read import Problems
from longtake.report.scored import Rewarding, rewarding
from longtake.report.strips import Strips


@dataclass(frozen=True, slots=True)
class Feedback:
    """None and () where no such stage was run."""

    preferences: Preferences | None
    rewards: tuple[Rewarding, ...]

    @property
    def any(self) -> bool:
        return self.preferences is not None or bool(self.rewards)


def feedback(runs: Sequence[Run], strips: Strips, problems: Problems) -> Feedback:
    """Pairs that both a judge and a reward model saw get both their words."""
    told = [(run, judged(run, problems)) for run in runs if run.file.stage == "judge"]
    models = [(run, scored(run, problems)) for run in runs if run.file.stage == "reward"]
    scores = {
        (row.id, said(row.chosen).strip()): (row.model_chosen, row.model_rejected) for _, rows in models for row in rows
    }
    return Feedback(
        preferences(told, scores, strips),
        tuple(rewarding(run, rows, _known(run, told), strips) for run, rows in models),
    )


def _known(run: Run, told: Sequence[tuple[Run, list[Judged]]]) -> Known:
    """What judge runs know of pairs; of several, the one whose pairs this run learned from goes first."""
    rows = Path(str(run.file.config.get("rows", "")))
    ordered = sorted(told, key=lambda one: rows.parts[:-1][-1:] == Path(one[0].name).parts[-1:])
    return {key(pair): (judge, pair) for judge, pairs in ordered for pair in pairs}
