"""Which questions are worth learning from: k answers to each, split by pass rate (LongVILA-R1, arXiv:2507.07966 §3.1).

Always right is easy, never right is hard, the rest is medium. Easy and hard feed `sft` where rows
hold a written answer, medium feeds `grpo`. The right answers themselves feed `sft` as well (rejection sampling).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, append_jsonl, begin, finish, read_jsonl
from longtake.log.files import write_jsonl
from longtake.train.context_settings import Context
from longtake.train.engine_settings import Engine
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.records import Question
    from longtake.train.rollout import Rollout

SPLITS, RIGHT = ("easy", "medium", "hard"), "right"


class Config(Settings):
    """Answer every question k times; write easy, medium, hard and right.jsonl with `pass_rate` in every row."""

    rows: Path = Field(description="questions with known answers")
    model: str = Field(description="hub id or folder of a checkpoint")
    out: Path = Field(Path("out/difficulty"), description="run folder; the four files are written there")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    answers: int = Field(10, ge=2, description="k, answers to each question")
    easy_from: float = Field(1.0, gt=0, le=1, description="a pass rate from here on is easy")
    keep_right: int = Field(4, ge=0, description="right answers of a question that right.jsonl keeps; 0 = no such file")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    batch: int = Field(32, ge=1, description="questions answered together")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    engine: Engine = Field(Engine(), description="what answers")

    @model_validator(mode="after")
    def _used(self) -> Config:
        self.engine.answers()
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Answers and splits; returns the number of rows in each split and the histogram of pass rates."""
    from longtake.data.rows import sift_questions
    from longtake.rewards.mix import Mix
    from longtake.runtime.films import Look
    from longtake.train.engines import engine_of, films_of
    from longtake.train.footage import decode, encode
    from longtake.train.keep import keep
    from longtake.train.keys import keyed
    from longtake.train.rollout import rollout
    from longtake.train.session import read_rows

    files = SPLITS + (RIGHT,) * (config.keep_right > 0)
    reads, makes = (config.rows, config.model), ("summary.json", *(f"{name}.jsonl" for name in files))
    if known := begin(log, "difficulty", config, config.out, fresh=config.fresh, reads=reads, makes=makes):
        return known
    reward, rows = Mix({"accuracy": 1.0}), read_rows(sift_questions, config.rows, config.video, log)
    reward.check(rows)
    films = films_of(config.engine, config.model, config.dtype, config.context, config.video, config.out, log)
    questions = decode(films, rows, config.video, log, answers=lambda _: config.max_tokens)
    rates_file = config.out / "rates.jsonl"
    lines = read_jsonl(rates_file) if rates_file.exists() else []
    log.cut_after(len(lines))  # a kill may fall between telling a batch and keeping it
    done = {name for line in lines for name in line["rates"]}

    starts = range(0, len(questions), config.batch)
    with engine_of(config.engine, config.model, films, config.out, log) as engine:
        for step, start in enumerate(starts, 1):
            batch = questions[start : start + config.batch]
            if done.issuperset(question.id for question in batch):
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
            log.step(step, len(starts), {"accuracy": seen.accuracy})
            lines.append({"batch": step, **tally(config, seen)})
            if log.leads:
                append_jsonl(rates_file, lines[-1])
    return finish(log, log.first(lambda: write_files(config, questions, lines)))


def write_files(config: Config, questions: list[Question], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """All rows for the next stages, from the lines of rates.jsonl; returns what they hold."""
    rates: dict[str, float] = {name: rate for line in lines for name, rate in line["rates"].items()}
    right: dict[str, list[str]] = {name: texts for line in lines for name, texts in line["right"].items()}
    return write_splits(config, questions, rates) | write_right(config, questions, rates, right)


def tally(config: Config, seen: Rollout) -> dict[str, Any]:
    """What is kept of a batch: {"rates": {id: pass rate}, "right": {id: [right answer, …]}}."""
    names = [look.question.id for look in seen.looks]
    rates = [sum(score.correct is True for score in scores) / config.answers for scores in seen.scores]
    right = zip(names, right_answers(seen, config.keep_right), strict=True)
    return {"rates": dict(zip(names, rates, strict=True)), "right": {name: texts for name, texts in right if texts}}


def right_answers(seen: Rollout, most: int) -> list[list[str]]:
    """[N] the first `most` different right answers to every question; one cut off at max_tokens is none to learn."""
    found = []
    for group, scores in zip(seen.groups, seen.scores, strict=True):
        told = [
            answer.text
            for answer, score in zip(group.answers, scores, strict=True)
            if score.correct and answer.finish == "stop" and answer.text.strip()
        ]
        found.append(list(dict.fromkeys(told))[:most])
    return found


def write_right(
    config: Config, questions: list[Question], rates: dict[str, float], right: dict[str, list[str]]
) -> dict[str, Any]:
    """right.jsonl in `config.out`: a row for every right answer; those of a question weigh 1 together."""
    from longtake.data.write import canonical

    if not config.keep_right:
        return {}
    rows = [
        canonical(q, config.out, answer) | {"weight": 1 / len(right[q.id]), "pass_rate": rates[q.id]}
        for q in questions
        for answer in right.get(q.id, ())
    ]
    write_jsonl(config.out / f"{RIGHT}.jsonl", rows)
    return {"right": {"questions": sum(q.id in right for q in questions), "answers": len(rows)}}


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
