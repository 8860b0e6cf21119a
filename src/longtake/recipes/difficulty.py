"""Which questions are worth learning from: k answers to each, split by pass rate (LongVILA-R1, arXiv:2507.07966 §3.1).

Always right is easy, never right is hard, the rest is medium. Easy and hard feed `sft` where rows
hold a written answer, medium feeds `grpo`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from longtake.config import Settings
from longtake.log import Log, append_jsonl, begin, finish, read_jsonl
from longtake.log.files import write_jsonl
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.records import Question

SPLITS = ("easy", "medium", "hard")


class Config(Settings):
    """Answer every question k times, write easy.jsonl, medium.jsonl and hard.jsonl with `pass_rate` in every row."""

    rows: Path = Field(description="questions with known answers")
    model: str = Field(description="hub id or folder of a checkpoint")
    out: Path = Field(Path("out/difficulty"), description="run folder; the three files are written there")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    answers: int = Field(10, ge=2, description="k, answers to each question")
    easy_from: float = Field(1.0, gt=0, le=1, description="a pass rate from here on is easy")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    batch: int = Field(32, ge=1, description="questions answered together")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Answers and splits; returns the number of rows in each split and the histogram of pass rates."""
    from longtake.data.rows import sift_questions
    from longtake.engines.local import LocalEngine
    from longtake.rewards.mix import Mix
    from longtake.runtime.films import Look
    from longtake.runtime.load import load_model, weights_version
    from longtake.train.keep import keep
    from longtake.train.keys import keyed
    from longtake.train.rollout import rollout
    from longtake.train.session import decode, encode, open_films, read_rows

    reads, makes = (config.rows, config.model), ("summary.json", *(f"{name}.jsonl" for name in SPLITS))
    if known := begin(log, "difficulty", config, config.out, fresh=config.fresh, reads=reads, makes=makes):
        return known
    reward, rows = Mix({"accuracy": 1.0}), read_rows(sift_questions, config.rows, config.video, log)
    reward.check(rows)
    with log.phase("load"):
        model = load_model(config.model, config.dtype)
    films = open_films(model, config.video, config.out, frozen=True)
    questions = decode(films, rows, config.video, log)
    engine = LocalEngine(model, films.features, weights_version(model))
    rates_file = config.out / "rates.jsonl"
    lines = read_jsonl(rates_file) if rates_file.exists() else []
    log.cut_after(len(lines))  # a kill may fall between telling a batch and keeping it
    rates: dict[str, float] = {name: rate for line in lines for name, rate in line["rates"].items()}

    starts = range(0, len(questions), config.batch)
    for step, start in enumerate(starts, 1):
        batch = questions[start : start + config.batch]
        if all(question.id in rates for question in batch):
            continue
        looks = [Look(q, config.video.policy(q, keyed(config.seed, "frames", q.id))) for q in batch]
        encode(films, looks, log)
        with log.phase("rollout"):
            seen = rollout(
                engine, films, looks, [config.temperature] * config.answers, reward, config.max_tokens,
                config.seed, "difficulty",
            )  # fmt: skip
        if step == 1:
            keep(config.out, step, seen, [[None] * config.answers] * len(looks), films)
        for look, scores in zip(looks, seen.scores, strict=True):
            rates[look.question.id] = sum(score.correct is True for score in scores) / config.answers
        log.step(step, len(starts), {"accuracy": seen.accuracy})
        append_jsonl(rates_file, {"batch": step, "rates": {question.id: rates[question.id] for question in batch}})
    return finish(log, write_splits(config, questions, rates))


def write_splits(config: Config, questions: list[Question], rates: dict[str, float]) -> dict[str, Any]:
    """easy.jsonl, medium.jsonl and hard.jsonl in `config.out`, canonical rows with their pass rate."""
    from longtake.data.write import canonical

    def split(rate: float) -> str:
        return "easy" if rate >= config.easy_from else "medium" if rate > 0 else "hard"

    for name in SPLITS:
        rows = [canonical(q, config.out) | {"pass_rate": rates[q.id]} for q in questions if split(rates[q.id]) == name]
        write_jsonl(config.out / f"{name}.jsonl", rows)
    counts = Counter(split(rates[question.id]) for question in questions)
    histogram = Counter(f"{rates[question.id]:.2f}" for question in questions)
    mean = sum(rates[question.id] for question in questions) / len(questions)
    return {
        "questions": len(questions), "answers": config.answers, "pass_rate": mean,
        "pass_at_k": sum(rates[question.id] > 0 for question in questions) / len(questions),
        **{name: counts[name] for name in SPLITS}, "histogram": dict(sorted(histogram.items())),
    }  # fmt: skip
