"""What learning costs in tokens through the network, counted from run folders; and the steps that cost the same.

    cost = 3 · learned + generated + read

learned     prompt and answer tokens of rows with a backward: forward 1, backward 2; a shared prompt counts once a row
generated   tokens of sampled answers: forward 1
read        prompt tokens of prefills without a backward, and rows that a reference, reward or value model reads: 1

Costs of a film's frames are left out: they are encoded once for all arms. So are looks at held-out rows.

N questions a step, G answers each, P prompt tokens, R tokens of an answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from longtake.log import read_json, read_jsonl

BATCH = 32  # rows a step of sft, pairs a step of dpo
QUESTIONS, GROUP = 16, 8  # of grpo
PPO_QUESTIONS, PPO_GROUP, PPO_EPOCHS = 24, 4, 2
TRAINED, READERS = 2, 3  # of ppo: policy and value model; reward model, reference and value model read every answer

# what a trial of row (a) showed, to set the steps by; what an arm took is counted from its own run
PROMPT = 147.5
ANSWER = 31.0  # tokens of a full chain, written or sampled
RIGHT = 80.0  # of all right answers of a question that difficulty keeps
KEPT = 0.21  # of GRPO's groups: in the others all rewards are equal
PAIRS = 620.0  # different ones that the judge keeps
START_STEPS = 600  # of SFT before: more of the same teach little
GRPO_STEPS = 160  # whose cost is everyone's


@dataclass(frozen=True, slots=True)
class Tokens:
    """What passed through the network. Example: Tokens(learned=5792.0, generated=0.0, read=0.0)."""

    learned: float = 0.0
    generated: float = 0.0
    read: float = 0.0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.learned + other.learned, self.generated + other.generated, self.read + other.read)

    def __mul__(self, times: float) -> Tokens:
        return Tokens(self.learned * times, self.generated * times, self.read * times)

    @property
    def cost(self) -> float:
        return 3 * self.learned + self.generated + self.read

    def row(self, before: str = "") -> dict[str, float]:
        """Whole tokens by name, each name beginning with `before`."""
        own = {"learned": self.learned, "generated": self.generated, "read": self.read, "cost": self.cost}
        return {before + name: float(round(value)) for name, value in own.items()}


def grpo_step(prompt: float, answer: float, kept: float, questions: float = QUESTIONS, group: float = GROUP) -> Tokens:
    """A one-forward step: the rollout's prefill serves the backward of the groups that are kept."""
    learned = kept * questions * (prompt + group * answer)
    return Tokens(learned, questions * group * answer, (1 - kept) * questions * prompt)


def ppo_step(prompt: float, answer: float, questions: float = PPO_QUESTIONS, group: float = PPO_GROUP) -> Tokens:
    """Sampled once, read by three models, learned from by two in every epoch."""
    row = questions * (prompt + group * answer)
    sampled = Tokens(0.0, questions * group * answer, questions * prompt)
    return sampled + Tokens(TRAINED * PPO_EPOCHS * row, 0.0, READERS * row)


def nominal() -> dict[str, tuple[Tokens, Tokens]]:
    """Of every arm of row (a): what comes once, and what a step takes, by the numbers above."""
    pair = PROMPT + 2 * ANSWER
    return {
        "full": (Tokens(), Tokens(BATCH * (PROMPT + ANSWER))),
        "rejection": (Tokens(), Tokens(BATCH * (PROMPT + RIGHT))),
        "grpo": (Tokens(), grpo_step(PROMPT, ANSWER, KEPT)),
        "dpo": (Tokens(read=PAIRS * pair), Tokens(BATCH * pair)),
        "ppo": (Tokens(), ppo_step(PROMPT, ANSWER)),
    }


def equal_steps() -> dict[str, int]:
    """Steps of every arm that cost about what GRPO_STEPS of GRPO cost."""
    every = nominal()
    budget = every["grpo"][1].cost * GRPO_STEPS
    return {name: max(1, round((budget - once.cost) / step.cost)) for name, (once, step) in every.items()}


STEPS = equal_steps()


def prompt_tokens(demo: Path) -> float:
    """P at 64 frames, mean over the questions that the demo's judge asked about."""
    return fmean(row["tokens_in"] for row in read_jsonl(demo / "judge" / "asked" / "policy.jsonl"))


def counted(folder: Path, prompt: float) -> Tokens:
    """Of a run of sft, grpo, ppo, dpo or reward; `prompt`: P, which the last four do not write down."""
    run, steps = read_json(folder / "run.json"), read_jsonl(folder / "metrics.jsonl")
    config: Mapping[str, Any] = run["config"]
    stage = run["stage"]
    if stage == "sft":
        return Tokens(learned=sum(row["tokens"] for row in steps))
    if stage == "grpo":
        questions, group = config["questions"], config["group_size"]
        each = [grpo_step(prompt, row["length"], row["groups_kept"], questions, group) for row in steps]
        return sum(each, Tokens())
    if stage == "ppo":
        return sum(
            (ppo_step(prompt, row["length"], config["questions"], config["group_size"]) for row in steps), Tokens()
        )
    assert stage in ("dpo", "reward"), stage
    learned = sum(config["batch"] * prompt + row["tokens"] for row in steps)
    pairs = read_jsonl(folder / "reference.jsonl") if stage == "dpo" else []
    answers = fmean(row["tokens"] for row in steps) / config["batch"]
    return Tokens(learned, 0.0, sum(len(row["logprobs"]) for row in pairs) * (prompt + answers))


def judging(folder: Path) -> Tokens:
    """Of a run of judge: the policy's answers, captions, verdicts."""
    summary, asked = read_json(folder / "summary.json"), read_jsonl(folder / "asked" / "policy.jsonl")
    said = sum(answer["tokens"] for row in asked for answer in row["said"])
    return Tokens(0.0, summary["tokens_out"] + said, summary["tokens_in"] + sum(row["tokens_in"] for row in asked))


def sorting(folder: Path, prompt: float, answer: float) -> Tokens:
    """Of a run of difficulty; `answer`: mean tokens of one, which it does not write down."""
    summary = read_json(folder / "summary.json")
    return Tokens(0.0, summary["questions"] * summary["answers"] * answer, summary["questions"] * prompt)


def seconds(*folders: Path) -> float:
    """Wall seconds of runs, over all sittings."""
    return sum(sum(read_json(folder / "run.json")["seconds"].values()) for folder in folders)
