"""The stages as tests.support tries them: each a real run of a recipe, on a few films and a family's tiny network."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tests import support_nets, world
from tests.endpoint import endpoint, says
from tests.plain.engine import PlainEngine
from tests.recipes.judges import fair
from tests.world import World

from longtake.engines import local
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl
from longtake.models.adapters import add_adapter
from longtake.recipes import difficulty, dpo, grpo, judge, ppo, reward, sft
from longtake.runtime.load import load_model
from longtake.train import judge_settings
from longtake.train.adapter_settings import Adapter
from longtake.train.engine_settings import Engine
from longtake.train.judge_settings import Judge
from longtake.train.settings import Optim, Video

FULL, LORA = Adapter(kind="full"), Adapter(kind="lora", rank=4, alpha=8.0)
TOKENS = 6


class NotRun(Exception):
    """Nobody tried, and why."""


@dataclass(slots=True, frozen=True)
class Made:
    """A run that ended. Example: made.counts["features"]["made"]."""

    out: Path
    result: dict[str, Any]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return read_json(self.out / "run.json").get("counts", {})

    @property
    def notes(self) -> str:
        return str(read_json(self.out / "run.json").get("notes", ""))


@dataclass
class Trial:
    """A family on an engine. Example: Trial.open("qwen3_vl", "local", None, folder).run("sft", FULL, None)."""

    kind: str
    engine_name: str
    python: Path | None
    folder: Path
    url: str = ""
    number: int = 0

    @classmethod
    def open(cls, kind: str, engine: str, python: Path | None, folder: Path) -> Trial:
        folder.mkdir(parents=True)
        return cls(kind, engine, python, folder)

    @cached_property
    def world(self) -> World:
        """Films and rows; a network without eyes gets the same questions without the films."""
        made = world.build(self.folder / "world")
        if not self.sees:
            for name in ("rl", "sft"):
                world.write(made.rows(name), [without_film(row) for row in read_jsonl(made.rows(name))])
        return made

    @property
    def sees(self) -> bool:
        return self.kind != "qwen3"

    @cached_property
    def model(self) -> str:
        support_nets.save(self.kind, self.folder / "model")
        return str(self.folder / "model")

    @cached_property
    def lora(self) -> str:
        """The model with a LoRA that does something."""
        model = load_model(self.model)
        add_adapter(model, "lora", 4, 8.0)
        random = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for x in model.adapter.weights().values():
                x.copy_(torch.randn(x.shape, generator=random) * 0.1)
        (self.folder / "lora").mkdir()
        model.save(self.folder / "lora")
        return str(self.folder / "lora")

    @property
    def engine(self) -> Engine:
        """Its settings. Raises NotRun."""
        if self.engine_name == "sglang":
            raise NotRun("no engine sglang: its server cannot be installed beside CPU torch")
        if self.engine_name == "vllm":
            if self.python is None:
                raise NotRun("no environment with vLLM was named")
            return Engine(kind="vllm", python=self.python, context=2048, memory=1.0)
        return Engine(kind="remote", url=self.url) if self.engine_name == "remote" else Engine()

    @cached_property
    def scorer(self) -> str:
        """A reward model on the model."""
        pairs = STAGES["reward"].given(self)
        return str(self.run(reward, model=self.model, video=self.video(), adapter=LORA, **pairs).result["model"])

    def video(self, features: Path | None = None) -> Video:
        return Video(frames=(4,), max_pixels=4096, features=features) if self.sees else Video()

    def out(self) -> Path:
        self.number += 1
        return self.folder / f"run-{self.number}"

    def run(self, stage: Any, **given: Any) -> Made:
        """One run of a stage's module."""
        out, log = self.out(), Log(stream=io.StringIO())
        try:
            return Made(out, stage.run(stage.Config(out=out, **given), log))
        finally:
            log.close()


def reason(error: ValueError) -> str:
    """What settings say of each other, without pydantic's frame."""
    if isinstance(error, ValidationError):
        if any(one["type"] == "extra_forbidden" for one in error.errors()):
            raise error  # a fault of ours
        return "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
    return str(error)


def without_film(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = [
        turn | {"content": [part for part in turn["content"] if part["type"] == "text"]}
        if isinstance(turn["content"], list)
        else turn
        for turn in row["messages"]
    ]
    return {key: value for key, value in row.items() if key != "video"} | {"messages": turns}


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage is tried. Example: Stage(sft, _sft, _result)."""

    module: Any
    given: Callable[[Trial], dict[str, Any]]
    told: Callable[[Made], Any]  # what must be the same when it is run again
    trains: bool

    def __call__(self, trial: Trial, aspect: str) -> None:
        """Raises UserError or ValueError for what is refused, NotRun for what was not tried."""
        with _endpoint(trial):
            if "engine" in self.module.Config.model_fields:
                engine = {"engine": trial.engine}
            elif trial.engine_name == "local":
                engine = {}
            else:
                raise UserError(f"{self.module.__name__.rpartition('.')[2]} has no setting for the engine")
            if trial.engine_name == "remote" and "engine" in engine and aspect != "features":
                assert self.told(self.make(trial, **engine))
                raise NotRun("it answers; prefixes and adapters are the endpoint's own business")
            {"features": self._features, "shared_prefix": self._shared, "lora": self._lora}[aspect](trial, engine)

    def make(self, trial: Trial, **changed: Any) -> Made:
        given = {"model": trial.model, "video": trial.video()} | ({"adapter": FULL} if self.trains else {})
        return trial.run(self.module, **given | self.given(trial) | changed)

    def _features(self, trial: Trial, engine: dict[str, Any]) -> None:
        """Features of the first run serve the second, which comes out the same."""
        if not trial.sees:
            raise UserError("this model reads text only")
        kept = trial.folder / f"features-{trial.number}"
        first, second = (self.make(trial, video=trial.video(kept), **engine) for _ in range(2))
        assert first.counts["features"]["made"] > 0
        assert second.counts["features"]["made"] == second.counts["features"]["remade"] == 0
        assert self.told(first) == self.told(second)

    def _shared(self, trial: Trial, engine: dict[str, Any]) -> None:
        """Training checks itself; answers are those of an engine that keeps nothing, or of the local one."""
        made = self.make(trial, **engine)
        if self.trains:
            assert "self-check: log-probabilities agree" in made.notes
        elif trial.engine_name == "local":
            with _plain():
                assert self.told(self.make(trial)) == self.told(made)
        else:
            assert _greedy(self.told(made)) == _greedy(self.told(self.make(trial)))

    def _lora(self, trial: Trial, engine: dict[str, Any]) -> None:
        made = self.make(trial, **engine, **({"adapter": LORA} if self.trains else {"model": trial.lora}))
        if self.trains:
            assert load_model(made.result["model"]).adapter is not None
        else:
            assert self.told(made)


def _greedy(told: Any) -> Any:
    """What does not depend on how an engine draws."""
    return [text for heat, text in told if not heat]


@contextmanager
def _plain() -> Iterator[None]:
    """Engines made meanwhile keep no keys and values."""
    kept, local.LocalEngine = local.LocalEngine, PlainEngine  # type: ignore[assignment,misc]
    try:
        yield
    finally:
        local.LocalEngine = kept  # type: ignore[misc]


@contextmanager
def _endpoint(trial: Trial) -> Iterator[None]:
    """An endpoint that judges, and says A to everything else."""

    def answer(request: Any, number: int) -> Any:
        return fair(request) if "Answer B:" in str(request) else says("<answer>A</answer>")

    with endpoint(answer) as there:
        trial.url = there.url
        yield


def _words(made: Made) -> Any:
    rows = [row for file in sorted((made.out / "outcomes").iterdir()) for row in read_jsonl(file)]
    return [(row["temperature"], row["text"]) for row in rows]


def _rates(made: Made) -> Any:
    return [(1.0, row) for name in difficulty.SPLITS for row in read_jsonl(made.out / f"{name}.jsonl")]


def _judged(made: Made) -> Any:
    return [(1.0, row) for row in read_jsonl(made.out / "pairs.jsonl")]


def _result(made: Made) -> Any:
    return {name: value for name, value in made.result.items() if name != "model"}


LEARNS = {"checkpoint_every": 2, "optim": Optim(lr=1e-3, warmup=0)}
STEPS = LEARNS | {"steps": 2}


def _asked(trial: Trial) -> dict[str, Any]:
    return {"rows": trial.world.rows("rl"), "max_tokens": TOKENS}


def _judging(trial: Trial) -> dict[str, Any]:
    asked = Judge(url=trial.url, model="judge-1", workers=4, retries=1, timeout=5.0)
    return _asked(trial) | {"judge": asked, "context": judge_settings.Context(kind="none")}


def _pairs(trial: Trial) -> dict[str, Any]:
    rows = []
    for number, row in enumerate(read_jsonl(trial.world.rows("rl"))):
        sides = {
            name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "so A"), ("rejected", "B"))
        }
        rows.append({"id": f"p{number}", "question_id": row["id"], "prompt": row["messages"][:1]} | sides)
    return {"rows": world.write(trial.world.rows("pairs"), rows), "batch": 2} | LEARNS


def _ppo(trial: Trial) -> dict[str, Any]:
    given = {"reward_model": trial.scorer, "adapter": LORA, "questions": 2, "group_size": 2, "minibatches": 1}
    return _asked(trial) | STEPS | given


def _grpo(trial: Trial) -> dict[str, Any]:
    code = trial.folder / "my.py"
    code.write_text("def score(text, row):\n    return sum(map(ord, text)) % 17 / 16\n")
    return _asked(trial) | STEPS | {"questions": 3, "group_size": 4, "reward": (f"{code}:score",)}


def _sft(trial: Trial) -> dict[str, Any]:
    return {"rows": trial.world.rows("sft"), "batch": 2} | STEPS


STAGES = {
    "eval": Stage(evaluation, _asked, _words, trains=False),
    "difficulty": Stage(difficulty, lambda trial: _asked(trial) | {"answers": 2}, _rates, trains=False),
    "judge": Stage(judge, _judging, _judged, trains=False),
    "sft": Stage(sft, _sft, _result, trains=True),
    "dpo": Stage(dpo, _pairs, _result, trains=True),
    "reward": Stage(reward, _pairs, _result, trains=True),
    "ppo": Stage(ppo, _ppo, _result, trains=True),
    "grpo": Stage(grpo, _grpo, _result, trains=True),
}
