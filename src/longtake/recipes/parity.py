"""Do engine and trainer see and compute the same? Tokens, positions, features, log-probabilities, on real prompts."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log
from longtake.train.context_settings import Context
from longtake.train.engine_settings import Engine
from longtake.train.settings import Dtype, Video

if TYPE_CHECKING:
    from longtake.train.parity import Parity


class Config(Settings):
    """Compare an engine with the trainer on a run's own rows, before the run (`grpo` looks at its first answers so)."""

    rows: Path = Field(description="questions, as the run will ask them")
    model: str = Field(description="hub id or folder of a checkpoint")
    engine: Engine = Field(description="which engine; its gate is the bound")
    out: Path = Field(Path("out/parity"), description="folder for decoded frames and the engine's log")
    prompts: int = Field(8, ge=1, description="questions that are asked, the first ones of the file")
    answers: int = Field(4, ge=1, description="to each question")
    temperature: float = Field(1.0, gt=0, description="of sampling")
    max_tokens: int = Field(64, ge=1, description="longest answer")
    dtype: Dtype = Field("auto", description="of the weights; auto = as saved")
    seed: int = Field(0, description="of sampling and frame choice")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")

    @model_validator(mode="after")
    def _other(self) -> Config:
        self.engine.trains("lora")
        if self.engine.kind == "local":
            raise ValueError("engine local is the trainer's own model: name another kind")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Returns what train.parity.Parity holds, with "ok": whether all of it is as it should be."""
    from longtake.data.rows import sift_questions
    from longtake.engines.local import LocalEngine
    from longtake.runtime.films import Look
    from longtake.runtime.load import weights_version
    from longtake.train.engines import films_of, vllm_of
    from longtake.train.footage import decode, encode
    from longtake.train.keys import keyed
    from longtake.train.parity import measure
    from longtake.train.rollout import draws
    from longtake.train.session import read_rows

    config.out.mkdir(parents=True, exist_ok=True)
    rows = read_rows(sift_questions, config.rows, config.video, log)[: config.prompts]
    films = films_of(config.engine, config.model, config.dtype, config.context, config.video, config.out, log)
    questions = decode(films, rows, config.video, log, answers=lambda _: config.max_tokens)
    looks = [Look(q, config.video.policy(q, keyed(config.seed, "frames", q.id))) for q in questions]
    encode(films, looks, log)
    asked = [draws(look.question, (config.temperature,) * config.answers, config.seed, "parity") for look in looks]
    weights = weights_version(films.model)
    with vllm_of(config.engine, films, weights, config.out, log, films.features) as engine, log.phase("compare"):
        local = LocalEngine(films.model, films.features, weights)
        found = measure(engine, local, [films.prompt(look) for look in looks], asked, config.max_tokens)
    why = wrong(found, config.engine.gate)
    if not why:
        return asdict(found) | {"ok": True}
    fix = "--dtype float32 on both sides; else do not learn from it" if found.ids_equal else "use --engine.kind local"
    return asdict(found) | {"ok": False, "why": why, "fix": fix}


def wrong(found: Parity, gate: float) -> str:
    """What keeps a run from learning from this engine; "" if nothing does."""
    if not found.ids_equal:
        return "it reads other tokens than the trainer"
    if not found.logprob_max_abs <= gate:
        far = f"{found.logprob_max_abs:.2g} nats, {found.logprob_mean_abs:.2g} on average"
        return f"log-probabilities differ by up to {far}; the gate is {gate:g}"
    return "it places tokens elsewhere than the trainer" if found.positions_equal is False else ""
