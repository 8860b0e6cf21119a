"""Preferences without people: a judge compares a model's own answers, with the film's narrative before it.

VLM-RLAIF (arXiv 2402.03746 §3.2): sample answers, caption the film clip by clip, ask which answer is better. Both
orders are asked, and a pair is kept if both name the same answer. `--mode rubric` scores answers from 1 to 5 instead,
captions as evidence, as LLaVA-Hound does (arXiv 2404.01258).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError
from longtake.log import Log, begin, finish, write_json_atomic
from longtake.log.files import write_jsonl
from longtake.train.judge_settings import JUDGE, Context, Judge
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.records import Pair
    from longtake.train.asking import Ask, Ledger
    from longtake.train.cast import Cast
    from longtake.train.judging import Judged
    from longtake.train.narrative import Narrative

MAKES = ("summary.json", "pairs.jsonl", "judged.jsonl", "narratives.jsonl")
STRIPS = 48  # questions whose filmstrip is kept for looking at


class Config(Settings):
    """Sample answers, judge them in pairs, write the preferences to pairs.jsonl."""

    rows: Path = Field(description="questions; known answers tell how often the judge is right")
    model: str = Field(description="hub id or folder of the model whose answers are judged")
    out: Path = Field(Path("out/judge"), description="run folder; pairs.jsonl and judged.jsonl are written there")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    mode: Literal["pair", "rubric"] = Field("pair", description="which is better, in both orders; or scores 1 to 5")
    answers: int = Field(2, ge=2, description="sampled to each question")
    pairs: int | None = Field(
        None, ge=1, description="of a question, at most: neighbours, then those further apart (default: neighbours)"
    )
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(1024, ge=1, description="longest answer")
    batch: int = Field(32, ge=1, description="prompts answered together in this process")
    prompts: Path | None = Field(None, description="YAML file with other words: caption, clip, narrative, pair, score")
    human: Path | None = Field(None, description="preferences of people, written beside the judge's")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="what the judge is told about the film")
    judge: Judge = Field(Judge(), description="who judges")

    @model_validator(mode="after")
    def _used(self) -> Config:
        every = self.answers * (self.answers - 1) // 2
        if self.pairs is not None and self.pairs > every:
            raise ValueError(f"pairs is {self.pairs}, but {self.answers} answers make {every}")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Samples, captions, judges, writes; returns the counts. Raises UserError if too many requests failed."""
    from longtake.data.pairs import sift_pairs
    from longtake.data.rows import sift_questions
    from longtake.train.cast import Cast
    from longtake.train.judge_prompts import read_prompts
    from longtake.train.judging import judging, matches, schema, settle
    from longtake.train.narrative import captioning, narrative
    from longtake.train.session import read_rows

    if known := begin(log, "judge", config, config.out, fresh=config.fresh, reads=_reads(config), makes=MAKES):
        return known
    log.cut_after(0)  # what is on disk is told again
    prompts = read_prompts(config.prompts, told=config.context.kind == "narrative")
    rows = read_rows(sift_questions, config.rows, config.video, log)
    human = read_rows(sift_pairs, config.human, config.video, log) if config.human else []
    cast = Cast(config, rows, log, schema(config.mode) if config.judge.by_schema else None)

    answers = cast.ask("policy", sampling(config, cast), config.max_tokens)
    log.step(1, 3, {"answers": float(len(cast.looks) * config.answers)})
    strips = keep_strips(config, cast, answers) if log.leads else {}
    clips = {look.question.id: cast.clips(look.question) for look in cast.looks}
    wanted = captioning([clip for own in clips.values() for clip in own], prompts, config.seed)
    captions = cast.ask("captioner", wanted, config.context.max_tokens)
    log.step(2, 3, {"captions": float(len(wanted))})
    narratives = {name: narrative(own, captions) for name, own in clips.items()}
    pairs = [
        match
        for look, reply in ((look, answers[look.question.id]) for look in cast.looks)
        for match in matches(cast.judged(look), reply, _most(config), narratives[look.question.id])
    ]
    draw = config.judge.temperature or 0.0, config.seed
    asks = judging(config.mode, pairs, prompts, draw, cast.marks("judge"))
    cast.check_words(asks)
    verdicts = cast.ask("judge", asks, config.judge.max_tokens)
    judged = [settle(config.mode, match, verdicts) for match in pairs]

    written = log.first(lambda: write(config, cast, judged, human, narratives, strips))
    summary = summarise(config, cast, judged, len(human), answers, captions, verdicts) | {"written": written}
    log.step(3, 3, {name: float(summary[name]) for name in ("pairs", "kept", "flipped", "ties", "unparsable")})
    gave_up = cast.gave_up
    cast.close()
    return end(config, log, summary, gave_up)


def sampling(config: Config, cast: Cast) -> list[Ask]:
    """`answers` draws of every question."""
    from longtake.train.asking import Ask
    from longtake.train.rollout import draws

    heats = [config.temperature] * config.answers
    return [
        Ask(q.id, look, tuple(draws(q, heats, config.seed, "judge"))) for look in cast.looks for q in [look.question]
    ]


def keep_strips(config: Config, cast: Cast, answers: Ledger) -> dict[str, str]:
    """Filmstrips in thumbs/ of the first questions: their names by question."""
    from longtake.train.keep import strip

    films, found = cast.films, dict[str, str]()
    for look in cast.looks[:STRIPS]:
        receipt = answers[look.question.id].receipt
        if receipt is not None:
            found[look.question.id] = strip(config.out, receipt, films, look)
    return found


def write(
    config: Config,
    cast: Cast,
    judged: Sequence[Judged],
    human: Sequence[Pair],
    narratives: Mapping[str, Narrative | None],
    strips: Mapping[str, str],
) -> int:
    """pairs.jsonl, judged.jsonl and narratives.jsonl; returns how many pairs there are: each said once."""
    from longtake.data.pairs import distinct, write_pair
    from longtake.train.judged import judged_row, narrative_row, pair_of

    pairs = [pair_of(one) for one in judged if one.outcome == "kept"]
    pairs = distinct(pairs + [replace(pair, source=pair.source or "human") for pair in human])
    write_jsonl(config.out / "pairs.jsonl", [write_pair(pair, config.out) for pair in pairs])
    rows = [judged_row(one, strips.get(one.match.look.question.id)) for one in judged]
    write_jsonl(config.out / "judged.jsonl", rows)
    films = dict.fromkeys((look.question.video, narratives[look.question.id]) for look in cast.looks)
    told = [narrative_row(film, captions) for film, captions in films if film and captions]
    write_jsonl(config.out / "narratives.jsonl", told)
    return len(pairs)


def summarise(
    config: Config,
    cast: Cast,
    judged: Sequence[Judged],
    human: int,
    answers: Ledger,
    captions: Ledger,
    verdicts: Ledger,
) -> dict[str, Any]:
    """The counts of the run."""
    from longtake.train.asking import Spent
    from longtake.train.judged import by_kind, numbers, took

    orders = config.mode == "pair"
    asked = (cast.who("captioner"), captions), (cast.who("judge"), verdicts)
    local = sum((ledger.spent() for who, ledger in asked if who is not None), Spent())
    remote = sum((ledger.spent() for who, ledger in asked if who is None), Spent())
    found = numbers(judged, orders=orders)
    return {
        "context": config.context.kind,
        "mode": config.mode,
        "questions": len(cast.looks),
        "empty": sum(not said.text.strip() for look in cast.looks for said in answers[look.question.id].said),
        **found,
        "human": human,
        **took(local, remote, config.judge.price),
        "by_kind": by_kind(judged, orders=orders),
    }


def end(config: Config, log: Log, summary: dict[str, Any], gave_up: str) -> dict[str, Any]:
    """Everything is on disk: says how it went. Raises UserError if more requests failed than may."""
    failed, requests = summary["requests_failed"], summary["requests"]
    if gave_up or failed > config.judge.most_failed * requests:
        if log.leads:
            write_json_atomic(config.out / MAKES[0], {"ok": False, **summary})
        what = "the endpoint does not answer" if gave_up else f"{failed} of {requests} requests failed"
        why = gave_up or f"the last: {summary['last_error']}"
        fix = "run the same command again: what was judged is kept, only the rest is asked"
        raise UserError(what, where=str(config.judge.url), why=why, fix=fix)
    if not summary["kept"]:
        counts = ", ".join(f"{summary[name]} {name}" for name in ("flipped", "ties", "unparsable", "same", "failed"))
        slot = "" if summary["slot_a"] is None else f"; it named slot A in {summary['slot_a']:.0%} of its verdicts"
        why = f"the judge kept none of {summary['pairs']} pairs: {counts}{slot}"
        fix = "`longtake view` shows what it said; try another --judge.model, or --prompts in its words"
        summary = {"ok": summary["written"] > 0, "why": why, "fix": fix, **summary}
        log.note(why)
    return finish(log, summary)


def _most(config: Config) -> int:
    """Pairs of a question, at most."""
    return config.answers - 1 if config.pairs is None else config.pairs


def _reads(config: Config) -> list[str | Path]:
    """What may not change under the results."""
    judge = config.judge.model if config.judge.url is None else None
    captioner = config.context.captioner if config.context.captioner != JUDGE else None
    return [path for path in (config.rows, config.model, judge, captioner, config.prompts, config.human) if path]
