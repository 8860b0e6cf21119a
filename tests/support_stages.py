"""The stages as tests.support tries them: each a real run of a recipe, on a few films and a family's tiny network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import world
from tests.endpoint import endpoint, says
from tests.plain.engine import PlainEngine
from tests.recipes.judges import fair
from tests.support_trial import LORA, Made, NotRun, Trial

from longtake.engines import local
from longtake.engines.vllm import Place, VllmEngine
from longtake.errors import UserError
from longtake.eval import command as evaluation
from longtake.log import read_jsonl
from longtake.recipes import difficulty, dpo, grpo, judge, ppo, reward, sft
from longtake.runtime.load import load_model
from longtake.train import engines, judge_settings
from longtake.train.adapter_settings import Adapter
from longtake.train.engine_settings import Engine
from longtake.train.judge_settings import Judge
from longtake.train.settings import Optim

FULL = Adapter(kind="full")
TOKENS = 6


@dataclass(frozen=True, slots=True)
class Stage:
    """How a stage is tried. Example: Stage(sft, _sft, _result)."""

    module: Any
    given: Callable[[Trial], dict[str, Any]]
    told: Callable[[Made], Any]  # what must be the same when it is run again
    trains: bool

    def __call__(self, trial: Trial, aspect: str) -> None:
        """Raises UserError or ValueError for what is refused, NotRun for what was not tried."""
        with _endpoint(trial), _one_process(trial):
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
            if not (words := _greedy(self.told(made))):
                raise NotRun("it samples; greedy words are compared by eval")
            assert words == _greedy(self.told(self.make(trial)))

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
def _one_process(trial: Trial) -> Iterator[None]:
    """vLLM is started once for all runs of a trial: each gives it its own weights and features."""

    @contextmanager
    def vllm_of(
        settings: Engine, films: Any, weights: str, folder: Path, log: Any, features: Any
    ) -> Iterator[VllmEngine]:
        trial.number += 1
        version = f"{trial.number}: {weights}"
        if trial.live is None:
            place = Place(trial.python or Path(), trial.folder, context=settings.context, memory=settings.memory)
            trial.live = VllmEngine.open(films.model, place, features, version)
        trial.live.link.features = features
        trial.live.load(films.model, version)
        yield trial.live

    kept, engines.vllm_of = engines.vllm_of, vllm_of
    try:
        yield
    finally:
        engines.vllm_of = kept


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
    asked = Judge(url=trial.url, model="judge-1", workers=4, retries=1, timeout=60.0)
    return _asked(trial) | {"judge": asked, "context": judge_settings.Context(kind="none")}


def _pairs(trial: Trial) -> dict[str, Any]:
    rows = []
    for number, row in enumerate(read_jsonl(trial.world.rows("rl"))):
        sides = {
            name: [{"role": "assistant", "content": text}] for name, text in (("chosen", "so A"), ("rejected", "B"))
        }
        kind = {} if trial.sees else {"data_type": "text"}
        rows.append({"id": f"p{number}", "question_id": row["id"], "prompt": row["messages"][:1]} | sides | kind)
    return {"rows": world.write(trial.world.rows("pairs"), rows), "batch": 2} | LEARNS


def _scorer(trial: Trial) -> str:
    """A reward model on the model, made once."""
    folder = trial.folder / "scorer"
    if not folder.exists():
        made = trial.run(reward, model=trial.model, video=trial.video(), adapter=LORA, **_pairs(trial))
        made.out.rename(folder)
    return str(folder / "model")


def _ppo(trial: Trial) -> dict[str, Any]:
    given = {"reward_model": _scorer(trial), "adapter": LORA, "questions": 2, "group_size": 2, "minibatches": 1}
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
