"""Accuracy by kind, hops and number of frames, sampled and greedy, with blind controls; or baselines without a model.

A setting is (frames, control): one prefill a question serves the sampled and the greedy answer.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log, append_jsonl, begin, finish, read_jsonl
from longtake.log.files import write_jsonl
from longtake.train.context_settings import Context
from longtake.train.engine_settings import Engine
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.eval.summary import Outcome
    from longtake.protocols import Engine as Answers
    from longtake.records import FramePolicy, Question
    from longtake.runtime.films import Films, Look


class Config(Settings):
    """Answer questions and count; `--blind` needs no model."""

    rows: Path = Field(description="questions with known answers, in any format of the docs")
    model: str | None = Field(None, description="hub id or folder of a checkpoint")
    blind: bool = Field(False, description="no model: majority letter, longest option, surface model")
    out: Path = Field(Path("out/eval"), description="run folder: eval.json, outcomes/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    temperature: float = Field(1.0, gt=0, description="of the sampled answer; the greedy one always comes with it")
    controls: tuple[Literal["no_video", "shuffled", "one_frame"], ...] = Field(
        (), description="blind controls, at the largest number of frames"
    )
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    batch: int = Field(100, ge=1, description="questions answered together")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling and of the surface model's folds")
    video: Video = Field(Video(), description="every number in frames is evaluated")
    context: Context = Field(Context(), description="how more film fits into the model")
    engine: Engine = Field(Engine(), description="what answers")

    @model_validator(mode="after")
    def _used(self) -> Config:
        self.engine.answers()
        if self.blind and (idle := self.model_fields_set - {"rows", "blind", "seed"}):
            raise ValueError(f"--blind looks at no film and asks no model: leave out {', '.join(sorted(idle))}")
        if len(set(self.controls)) < len(self.controls):
            raise ValueError("controls: each at most once")
        if not self.blind and self.model is None:
            raise ValueError("model is missing: name a hub id or folder, or use --blind")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns what eval.json holds, or the blind baselines."""
    if config.blind:
        from longtake.eval import blind
        from longtake.eval.blind_table import table

        found = blind.report(config.rows, config.seed)
        log.say(table(found))
        return found
    return evaluate(config, log)


def evaluate(config: Config, log: Log) -> dict[str, Any]:
    """Every setting in turn; a setting that is on disk is not asked again."""
    from longtake.data.rows import sift_questions
    from longtake.eval.summary import summary
    from longtake.eval.table import table
    from longtake.rewards.mix import Mix
    from longtake.train.engines import engine_of, films_of
    from longtake.train.footage import decode
    from longtake.train.session import read_rows

    reads = (config.rows, str(config.model))
    if known := begin(log, "eval", config, config.out, fresh=config.fresh, reads=reads, makes=["eval.json"]):
        return known
    rows = read_rows(sift_questions, config.rows, config.video, log)
    Mix({"accuracy": 1.0}).check(rows)
    name = str(config.model)
    films = films_of(config.engine, name, config.dtype, config.context, config.video, config.out, log)
    policies = config.video.policies()
    settings = [(policy, "") for policy in policies] + [(policies[-1], control) for control in config.controls]
    questions = decode(
        films,
        rows,
        config.video,
        log,
        lambda q: [look.seen()[1] for look in looks(config, [q], settings)],
        lambda q: config.max_tokens,
    )
    if len(policies) > 1 and (fixed := [q.id for q in questions if q.policy and (q.policy.frames or q.policy.fps)]):
        why = f"row {fixed[0]} says how many frames it wants, so every number of frames would be the same question"
        raise UserError("the rows fix their own frames", where=str(config.rows), why=why, fix="one --video.frames")
    outcomes: list[Outcome] = []
    log.cut_after(0)  # settings that are on disk are told again
    with engine_of(config.engine, name, films, config.out, log) as engine:
        for step, (policy, control) in enumerate(settings, 1):
            frames = policy.frames or 0
            stems = [f"{frames}-{way}-{control or 'none'}" for way in ("sampled", "greedy")]
            paths = [config.out / "outcomes" / f"{stem}.jsonl" for stem in stems]
            found = log.first(partial(_known, paths))
            if len(found) != 2 * len(questions):  # not asked yet, or a file was cut short
                found = _setting(config, engine, films, questions, policy, control, log, paths)
            outcomes += found
            sampled = [o.correct for o in found if o.temperature]
            log.step(step, len(settings), {"frames": float(frames), "accuracy": sum(sampled) / len(sampled)})
    result = summary(name, outcomes)
    if chances := [1 / len(question.options) for question in questions if question.options]:
        result["chance"] = sum(chances) / len(chances)
    log.say(table(result))
    return finish(log, result, "eval.json")


def looks(config: Config, questions: list[Question], settings: list[tuple[FramePolicy, Any]]) -> list[Look]:
    """Every question in every setting; a question without a film is in no control: it is blind as it is."""
    from longtake.runtime.films import Look

    return [
        Look(question, config.video.merged(question.policy, policy), control)
        for policy, control in settings
        for question in questions
        if question.video is not None or not control
    ]


def _known(paths: list[Path]) -> list[Outcome]:
    """What is on disk of a setting."""
    return [_read(row) for path in paths if path.exists() for row in read_jsonl(path)]


def _setting(
    config: Config,
    engine: Answers,
    films: Films,
    questions: list[Question],
    policy: FramePolicy,
    control: Any,
    log: Log,
    paths: list[Path],
) -> list[Outcome]:
    """Asks every question once sampled and once greedily; writes both files of outcomes."""
    from longtake.eval.summary import Outcome
    from longtake.rewards.extract import result
    from longtake.rewards.mix import Mix
    from longtake.train.footage import encode
    from longtake.train.rollout import rollout

    asked = looks(config, questions, [(policy, control)])
    encode(films, asked, log)
    heats = (config.temperature, 0.0)
    parts = [path.with_suffix(".part.jsonl") for path in paths]
    done = log.first(lambda: _cut(parts, config.batch))
    for start in range(done, len(asked), config.batch):
        with log.phase("answer"):
            batch = asked[start : start + config.batch]
            key = (config.seed, "eval", policy, control)
            seen = rollout(engine, films, batch, heats, Mix({"format": 1.0}), config.max_tokens, *key)
        for look, group, scores in zip(seen.looks, seen.groups, seen.scores, strict=True):
            question, receipt = look.question, group.prompt.receipt
            for place, (answer, score) in enumerate(zip(group.answers, scores, strict=True)):
                outcome = Outcome(
                    question.id,
                    question.kind,
                    question.hops,
                    score.correct is True,
                    score.formed,
                    len(answer.ids) or answer.told,
                    answer.text,
                    result(answer.text, question.options),
                    policy.frames or 0,
                    heats[place],
                    control,
                )
                if log.leads:
                    append_jsonl(parts[place], asdict(outcome) | {"receipt": receipt and asdict(receipt)})
        log.show("questions", start + len(batch), len(asked), f"{policy.frames or 'own'} frames {control}")
    return log.first(lambda: _whole(parts, paths))


def _cut(parts: list[Path], batch: int) -> int:
    """How many questions are answered; files are cut to whole batches, which are made again together: their numbers
    depend on it.
    """
    parts[0].parent.mkdir(exist_ok=True)
    rows = [read_jsonl(part) if part.exists() else [] for part in parts]
    done = min(map(len, rows)) // batch * batch
    for part, own in zip(parts, rows, strict=True):
        write_jsonl(part, own[:done])
    return done


def _whole(parts: list[Path], paths: list[Path]) -> list[Outcome]:
    """Both files under their names, and what is in them."""
    for part, path in zip(parts, paths, strict=True):
        part.replace(path)
    return _known(paths)


def _read(row: dict[str, Any]) -> Outcome:
    from longtake.eval.summary import Outcome

    return Outcome(**{key: value for key, value in row.items() if key != "receipt"})
