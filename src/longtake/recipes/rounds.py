"""Iterative, self-retrospective DPO (i-SRT, arXiv:2406.11280): the model that was just trained answers and judges next.

    for every round:
        questions of the round → answers → narratives → verdicts → pairs     (recipes.judge)
        pairs                  → a better model, from where it stands        (recipes.dpo)

A round's reference is the model that the round began with; what it judges with is that model too, unless another judge
is named. Each half is a run folder of its own in out/round-N.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log, RunFolder, begin, finish
from longtake.log.files import write_jsonl
from longtake.recipes import dpo, judge
from longtake.train import context_settings
from longtake.train.adapter_settings import Adapter
from longtake.train.judge_settings import Context, Judge
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.settings import Dtype, Optim, Video


class Config(Settings):
    """Answer, judge, learn from the verdicts; again with what came out."""

    rows: Path = Field(description="questions; every round takes its own share of them")
    model: str = Field(description="hub id or folder of a checkpoint, best after sft")
    out: Path = Field(Path("out/rounds"), description="run folder; the last model is in its last round's dpo/model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    rounds: int = Field(3, ge=1, description="times that the model answers, is judged and learns")
    answers: int = Field(2, ge=2, description="sampled to each question")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    mode: Literal["pair", "rubric"] = Field("pair", description="which is better, in both orders; or scores 1 to 5")
    prompts: Path | None = Field(None, description="YAML file with other words for the judge")
    context: Context = Field(Context(), description="what the judge is told about the film")
    judge: Judge = Field(Judge(), description="who judges (default: the model itself, as it stands)")
    loss: Literal["dpo", "ipo", "simpo"] = Field("dpo", description="of a pair")
    beta: float = Field(0.1, gt=0, description="weight of the log-ratio")
    epochs: float = Field(1.0, gt=0, description="passes over a round's pairs")
    batch: int = Field(16, ge=1, description="pairs a step")
    held_out: float = Field(0.05, ge=0, lt=1, description="share of films whose pairs are only looked at")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of everything drawn; every round draws anew")
    video: Video = Field(Video(), description="which frames are looked at")
    optim: Optim = Field(Optim(lr=5e-6), description="AdamW, begun again in every round")
    adapter: Adapter = Field(Adapter(), description="a LoRA on the decoder, or all weights")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")

    @model_validator(mode="after")
    def _shared(self) -> Config:
        if self.video.root is not None:
            raise ValueError("video.root is not for rounds: give rows whose films are found from their own folder")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """All rounds; returns {"rounds": [{"kept", "flip_rate", "judge_accuracy", "accuracy", "margin"}, …], "model"}."""
    reads = (config.rows, config.model)
    if known := begin(log, "rounds", config, config.out, fresh=config.fresh, reads=reads, makes=("summary.json",)):
        return known
    folder, model, told = log.folder, config.model, list[dict[str, Any]]()
    assert folder is not None
    shares = share_out(config, log)
    for number, rows in enumerate(shares, 1):
        judged = judge.run(judge_config(config, number, rows, model), log)
        if judged["written"] < config.batch:
            back(log, folder)
            why = f"the judge kept {judged['written']} pairs of {judged['pairs']}, a step learns from {config.batch}"
            fix = "give more questions, or a smaller --batch"
            raise UserError(f"round {number} has too few pairs", where=str(rows), why=why, fix=fix)
        learned = dpo.run(dpo_config(config, number, model), log)
        model = learned["model"]
        back(log, folder)
        row = {"kept": judged["kept"], "flip_rate": judged["flip_rate"], "judge_accuracy": judged["accuracy"]}
        told.append(row | {"accuracy": learned["accuracy"], "margin": learned["margin"]})
        log.note(f"round {number} of {config.rounds}: {judged['kept']} pairs kept of {judged['pairs']}")
    return finish(log, {"rounds": told, "model": model})


def share_out(config: Config, log: Log) -> list[Path]:
    """A file of questions for every round; each question is in one. Raises UserError if there are too few."""
    from longtake.data.rows import sift_questions
    from longtake.data.write import canonical
    from longtake.train.keys import batch
    from longtake.train.session import read_rows

    questions = read_rows(sift_questions, config.rows, config.video, log)
    if len(questions) < config.rounds:
        what = f"{len(questions)} questions for {config.rounds} rounds"
        raise UserError(what, where=str(config.rows), fix=f"--rounds {len(questions)}, or more questions")
    order = list(batch(config.seed, len(questions), 0, len(questions)))
    files = []
    for number in range(config.rounds):
        home = config.out / f"round-{number + 1}"
        home.mkdir(exist_ok=True)
        mine = [questions[place] for place in order[number :: config.rounds]]
        write_jsonl(home / "rows.jsonl", [canonical(question, home) for question in mine])
        files.append(home / "rows.jsonl")
    return files


def judge_config(config: Config, number: int, rows: Path, model: str) -> judge.Config:
    """Of one round."""
    return judge.Config(
        rows=rows, model=model, out=config.out / f"round-{number}" / "judge", mode=config.mode, answers=config.answers,
        max_tokens=config.max_tokens, prompts=config.prompts, dtype=config.dtype, seed=config.seed + number,
        video=shared(config), context=config.context, judge=config.judge,
    )  # fmt: skip


def dpo_config(config: Config, number: int, model: str) -> dpo.Config:
    """Of one round."""
    home = config.out / f"round-{number}"
    shared_with_judge = {name: getattr(config.context, name) for name in context_settings.Context.model_fields}
    longer = context_settings.Context(**shared_with_judge)
    return dpo.Config(
        rows=home / "judge" / "pairs.jsonl", model=model, out=home / "dpo", loss=config.loss, beta=config.beta,
        epochs=config.epochs, batch=config.batch, held_out=config.held_out, dtype=config.dtype,
        seed=config.seed + number, video=shared(config), context=longer, optim=config.optim, adapter=config.adapter,
        prefix_gradient=config.prefix_gradient, memory=config.memory,
    )  # fmt: skip


def shared(config: Config) -> Video:
    """All rounds decode each film once."""
    return config.video if config.video.tier else config.video.model_copy(update={"tier": config.out / "tier"})


def back(log: Log, folder: RunFolder) -> None:
    """The stages of a round have run folders of their own; what follows belongs to this one."""
    log.open(folder)
