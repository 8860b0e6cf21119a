"""From outcomes of single questions to the numbers of eval.json, and to paired differences between two models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from longtake.maths.stats import Estimate, paired_difference, share


@dataclass(frozen=True, slots=True)
class Outcome:
    """One question answered once. Example: Outcome("cups-7", "spatial", 5, True, True, 29, "…", "B", 64, 1.0)."""

    id: str
    kind: str
    hops: int  # 0 = unknown
    correct: bool
    format: bool  # the answer filled the think/answer template
    tokens: int  # of the whole answer
    text: str
    extracted: str | None  # what was read as its result; None = nothing could be
    frames: int  # asked for; 0 = the rows' own
    temperature: float  # 0 = greedy
    control: str = ""  # "" | no_video | shuffled | one_frame


@dataclass(frozen=True, slots=True)
class Setting:
    """What eval.json tells apart. Example: Setting(64, 1.0, "")."""

    frames: int
    temperature: float
    control: str


def setting_of(outcome: Outcome) -> Setting:
    return Setting(outcome.frames, outcome.temperature, outcome.control)


def summary(model: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """eval.json: one entry a setting, ordered by control, temperature and frames. Shares with 95 % Wilson intervals."""
    groups = _grouped(outcomes, lambda o: (o.control, o.temperature, o.frames))
    rows = len({outcome.id for outcome in outcomes})
    return {"model": model, "rows": rows, "settings": [numbers(group) for _, group in groups]}


def numbers(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """One setting's entry. Raises ValueError where the outcomes are none, or of several settings."""
    settings = {setting_of(outcome) for outcome in outcomes}
    if len(settings) != 1:
        raise ValueError(f"need outcomes of one setting, got {len(settings)} settings")
    setting = settings.pop()
    return {
        "frames": setting.frames,
        "temperature": setting.temperature,
        "control": setting.control,
        **_accuracy(outcomes),
        "by_kind": {kind: _accuracy(group) for kind, group in _grouped(outcomes, lambda o: o.kind) if kind},
        "by_hops": {str(hops): _accuracy(group) for hops, group in _grouped(outcomes, lambda o: o.hops) if hops},
        "chain_length": fmean(outcome.tokens for outcome in outcomes),
        "format": fmean(outcome.format for outcome in outcomes),
        "unread": fmean(outcome.extracted is None for outcome in outcomes),
    }


def paired(before: Sequence[Outcome], after: Sequence[Outcome]) -> dict[str, Any]:
    """after - before in accuracy on the same questions: overall, by kind, by hops and by frames, with 95 % intervals.

    Outcomes are paired by question, frames, temperature and control; what stands on one side only is counted as
    `unpaired` and left out. Raises ValueError where nothing pairs or a question stands twice on a side.
    """
    old, new = _by_key(before, "before"), _by_key(after, "after")
    pairs = [(old[key], new[key]) for key in old if key in new]
    if not pairs:
        raise ValueError("no question was answered by both at the same setting")
    return {
        **_difference(pairs),
        "by_kind": _differences(pairs, lambda o: o.kind),
        "by_hops": _differences(pairs, lambda o: o.hops),
        "by_frames": _differences(pairs, lambda o: o.frames),
        "unpaired": len(old) + len(new) - 2 * len(pairs),
    }


Pair = tuple[Outcome, Outcome]


def _by_key(outcomes: Iterable[Outcome], side: str) -> dict[tuple[str, Setting], Outcome]:
    found: dict[tuple[str, Setting], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.id, setting_of(outcome))
        if key in found:
            raise ValueError(f"question {outcome.id!r} stands twice in {side} at {key[1]}")
        found[key] = outcome
    return found


def _differences(pairs: Sequence[Pair], key: Callable[[Outcome], Any]) -> dict[str, Any]:
    values = sorted({key(old) for old, _ in pairs} - {"", 0})
    return {str(value): _difference([pair for pair in pairs if key(pair[0]) == value]) for value in values}


def _difference(pairs: Sequence[Pair]) -> dict[str, Any]:
    """The interval is null where one pair alone gives none."""
    before, after = [float(old.correct) for old, _ in pairs], [float(new.correct) for _, new in pairs]
    estimate = paired_difference(before, after) if len(pairs) > 1 else None
    return {
        "before": fmean(before),
        "after": fmean(after),
        "difference": fmean(after) - fmean(before),
        "interval": [estimate.low, estimate.high] if estimate else None,
        "gained": sum(new > old for old, new in zip(before, after, strict=True)),
        "lost": sum(new < old for old, new in zip(before, after, strict=True)),
        "n": len(pairs),
    }


def _accuracy(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    estimate: Estimate = share(sum(outcome.correct for outcome in outcomes), len(outcomes))
    return {"accuracy": estimate.value, "interval": [estimate.low, estimate.high], "n": estimate.n}


def _grouped(outcomes: Sequence[Outcome], key: Callable[[Outcome], Any]) -> list[tuple[Any, list[Outcome]]]:
    return [(value, list(group)) for value, group in groupby(sorted(outcomes, key=key), key=key)]
