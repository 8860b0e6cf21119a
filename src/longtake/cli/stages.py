"""The stages people type, as data. A stage's module has `Config` and `run(config, log) -> summary`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One command. Example: Stage("longtake.recipes.sft", "teach …", ("rows",), trains=True)."""

    module: str  # imported only when the stage is chosen
    sentence: str
    positional: tuple[str, ...] = ()  # fields of Config that plain arguments fill
    trains: bool = False  # long work in a run folder: started under environment.BEFORE_START, goes on when run again
    speaks: bool = False  # says its result itself; else the summary is printed
    shared: bool = False  # several ranks may run it together


STAGES = {
    "demo": Stage(
        "longtake.cli.demo",
        "the whole chain on a laptop: films, training, evaluation, report",
        trains=True,
        speaks=True,
        shared=True,
    ),
    "difficulty": Stage(
        "longtake.recipes.difficulty", "answer each question k times; split by pass rate", ("rows",), True, shared=True
    ),
    "sft": Stage(
        "longtake.recipes.sft",
        "learn from written answers (chain-of-thought fine-tuning)",
        ("rows",),
        True,
        shared=True,
    ),
    "grpo": Stage(
        "longtake.recipes.grpo",
        "learn from rewards, without a critic (GRPO and its family)",
        ("rows",),
        True,
        shared=True,
    ),
    "judge": Stage(
        "longtake.recipes.judge",
        "preferences by a model: which of two answers is better, and why",
        ("rows",),
        True,
        shared=True,
    ),
    "reward": Stage(
        "longtake.recipes.reward", "learn to score answers from pairs (Bradley–Terry)", ("rows",), True, shared=True
    ),
    "dpo": Stage("longtake.recipes.dpo", "learn from pairs of answers (DPO, IPO, SimPO)", ("rows",), True, shared=True),
    "ppo": Stage(
        "longtake.recipes.ppo", "learn from a reward model, with a value model (PPO)", ("rows",), True, shared=True
    ),
    "rounds": Stage("longtake.recipes.rounds", "judge and dpo in turns: sample, judge, learn, again", ("rows",), True),
    "eval": Stage(
        "longtake.eval.command",
        "accuracy by frames and kind, with blind controls",
        ("rows",),
        trains=True,
        speaks=True,
        shared=True,
    ),
    "parity": Stage(
        "longtake.recipes.parity", "do engine and trainer agree: tokens, positions, log-probabilities", ("rows",), True
    ),
    "plan": Stage("longtake.cli.plan", "what a run will need: memory, seconds, disk", ("model",), speaks=True),
    "merge": Stage("longtake.cli.merge", "write a LoRA into its base: one plain model", ("model",), speaks=True),
    "ask": Stage("longtake.cli.ask", "answer a question about a film", ("film", "question"), speaks=True),
    "view": Stage("longtake.cli.view", "look at a run folder: one HTML page", ("folder",), speaks=True),
    "doctor": Stage("longtake.cli.doctor", "check this computer; every ✗ with the command that mends it", speaks=True),
}
