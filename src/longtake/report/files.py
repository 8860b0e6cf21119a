"""What stands in the files of a run folder, one frozen record per file or line. Unknown keys are let pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from longtake.records import Receipt


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A film that was left out. Example: Quarantined("films/3.mp4", "moov atom not found")."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class Films:
    used: int = 0
    quarantined: tuple[Quarantined, ...] = ()


@dataclass(frozen=True, slots=True)
class RunFile:
    """run.json: what was run on what."""

    stage: str
    status: str = ""  # "running" | "done" | "stopped: reason" | "failed: reason"
    started: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    counts: dict[str, dict[str, int]] = field(default_factory=dict)  # of caches, by name
    films: Films = Films()


@dataclass(frozen=True, slots=True)
class Curve:
    """One number over steps. Example: Curve("reward", ((0, 0.4), (1, 0.5)))."""

    name: str
    points: tuple[tuple[float, float], ...]  # (step, value), finite, by step


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a group, as written down."""

    text: str
    tokens: int = 0
    finish: str = ""
    reward: float | None = None
    parts: dict[str, float | None] = field(default_factory=dict)
    advantage: float | None = None
    correct: bool | None = None  # None = could not be checked


@dataclass(frozen=True, slots=True)
class Rollout:
    """One line of rollouts/<step>.jsonl: a question and its G answers."""

    id: str
    step: int = 0
    kind: str = ""
    hops: int = 0
    question: str = ""
    options: tuple[str, ...] = ()
    answer: str = ""
    evidence: tuple[tuple[float, float], ...] = ()
    receipt: Receipt | None = None
    strip: str | None = None
    answers: tuple[Sample, ...] = ()


@dataclass(frozen=True, slots=True)
class Share:
    accuracy: float
    n: int


@dataclass(frozen=True, slots=True)
class Setting:
    """One line of eval.json's settings: accuracy at so many frames, sampled or greedy, with or without a control."""

    frames: int
    temperature: float
    accuracy: float
    control: str = ""
    n: int = 0
    interval: tuple[float, float] | None = None
    by_kind: dict[str, Share] = field(default_factory=dict)
    by_hops: dict[str, Share] = field(default_factory=dict)
    chain_length: float | None = None
    format: float | None = None


@dataclass(frozen=True, slots=True)
class EvalFile:
    """eval.json."""

    settings: tuple[Setting, ...]
    model: str = ""
    rows: int = 0
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of outcomes/*.jsonl."""

    id: str
    correct: bool
    kind: str = ""
    hops: int = 0
    tokens: int = 0
    text: str = ""
    receipt: Receipt | None = None


@dataclass(frozen=True, slots=True)
class Blind:
    chance: float | None = None


@dataclass(frozen=True, slots=True)
class SummaryFile:
    """The part of the demo's summary.json that no stage folder has."""

    seed: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    blind: Blind = Blind()
    ceiling: dict[str, float] = field(default_factory=dict)  # frames -> what an ideal observer of them gets right
    max_decodes_per_film: int | None = None
    max_encodes_per_set: int | None = None


@dataclass(frozen=True, slots=True)
class Difficulty:
    """summary.json of a difficulty run: how often each question was answered rightly, of `answers` times."""

    answers: int
    histogram: dict[str, int]  # pass rate, as "0.30" -> questions


@dataclass(frozen=True, slots=True)
class JudgeFile:
    """summary.json of a judge run: what became of the questions judged, and what judging took."""

    pairs: int = 0
    kept: int = 0
    flipped: int = 0
    ties: int = 0
    unparsable: int = 0
    same: int = 0
    failed: int = 0
    flip_rate: float | None = None
    slot_a: float | None = None  # share of verdicts for the answer that stood first
    accuracy: float | None = None  # of kept pairs with exactly one right answer
    accuracy_n: int = 0
    human: int = 0  # preferences of people, written beside the judge's
    calls: int | None = None
    retries: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True)
class TruthFile:
    """Of pairs with one right and one wrong answer: how often the right one scores higher, how often it is chosen."""

    accuracy: float
    labels: float
    n: int = 0


@dataclass(frozen=True, slots=True)
class RewardFile:
    """summary.json of a reward run, of the held-out pairs."""

    accuracy: float | None = None
    n: int = 0
    length_correlation: float | None = None  # of score and tokens
    truth: TruthFile | None = None


@dataclass(frozen=True, slots=True)
class PairsFile:
    """summary.json of a dpo run; accuracy and margin of the held-out pairs."""

    held_out: int = 0
    accuracy: float | None = None
    margin: float | None = None

    @property
    def n(self) -> int:
        return self.held_out


SUMMARIES = {"difficulty": Difficulty, "judge": JudgeFile, "reward": RewardFile, "dpo": PairsFile}


@dataclass(frozen=True, slots=True)
class Run:
    """One stage folder: its run.json, its curves, where its rollouts are."""

    name: str  # folder relative to the one asked for, "" for that folder itself
    folder: Path
    file: RunFile
    curves: tuple[Curve, ...]
    phases: tuple[Curve, ...]  # seconds by step
    steps: tuple[Path, ...]  # rollout files, by step
    eval: EvalFile | None
    summary: Difficulty | JudgeFile | RewardFile | PairsFile | None  # summary.json, of stages where the page reads it

    @property
    def label(self) -> str:
        return self.name.rsplit("/", 1)[-1] or self.file.stage
