"""A reward model from people's or a judge's pairs of answers: a scalar head and a LoRA (VLM-RLAIF, arXiv:2402.03746).

    people's pairs first, if given, then the others; for every step:
        pairs        → rows of [prompt | chosen | rejected], the prompt computed once   (train.comparing)
        both answers → the head's score of the last state of each                       (models.heads)
        both scores  → Bradley–Terry, centred; one backward                             (maths.reward, train.rows)
        one optimizer step
    pairs on films that were held out → scores.jsonl, accuracy, calibration, fondness of length   (train.ranking)

The answer's last token is its end token, or that of a suffix that stands behind every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.log import Log, begin, finish
from longtake.log.files import write_jsonl
from longtake.train.adapter_settings import Adapter
from longtake.train.context_settings import Context
from longtake.train.memory import Memory, PrefixGradient
from longtake.train.ranks_settings import Ranks
from longtake.train.settings import Dtype, Optim, Video

if TYPE_CHECKING:
    from longtake.train.comparing import Reading, Stage
    from longtake.train.ranking import Ranked
    from longtake.train.rows import Item
    from longtake.train.step import ScalarObjective

MAKES = ("summary.json", "scores.jsonl", "model/reward.json")


class Config(Settings):
    """Learn to score answers from pairs of a better and a worse one."""

    rows: Path = Field(description="pairs: `judge`'s pairs.jsonl, TRL's preference rows, or a known dataset format")
    model: str = Field(description="hub id or folder of a checkpoint, best after sft")
    human: Path | None = Field(None, description="people's pairs, learned first (default: none)")
    out: Path = Field(Path("out/reward"), description="run folder; the trained model is in its model/")
    fresh: bool = Field(False, description="move an older run in `out` aside and begin again")
    epochs: float = Field(1.0, gt=0, description="passes over the pairs of rows")
    human_epochs: float = Field(1.0, gt=0, description="passes over people's pairs")
    batch: int = Field(16, ge=1, description="pairs a step")
    held_out: float = Field(0.1, ge=0, lt=1, description="share of films whose pairs are only scored")
    margin: float = Field(
        0.0, ge=0, description="times the rows' margin: by how much the chosen answer should lead (Llama 2)"
    )
    centring: float = Field(0.01, ge=0, description="weight of what pulls scores to 0; 0 = only differences count")
    centring_way: Literal["trl", "vlm_rlaif"] = Field(
        "trl", description="trl: mean of (chosen + rejected)²; vlm_rlaif: |mean of (chosen + rejected)|"
    )
    suffix: tuple[str, ...] = Field(
        (), max_length=2, description="behind every answer: a user turn, then how the reply begins (default: nothing)"
    )
    checkpoint_every: int = Field(25, ge=1, description="steps between checkpoints, and looks at the held-out pairs")
    dtype: Dtype = Field("float32", description="of the weights; bfloat16 rounds most updates away at small rates")
    seed: int = Field(0, description="of data order, frame choice, the split and the head")
    video: Video = Field(Video(), description="which frames are looked at")
    context: Context = Field(Context(), description="how more film fits into the model")
    optim: Optim = Field(Optim(lr=1e-4), description="AdamW; its schedule spans both stages")
    adapter: Adapter = Field(Adapter(), description="a LoRA on the decoder, or all weights")
    prefix_gradient: PrefixGradient = Field(
        "exact", description="exact, none, or the probability of the backward through a prefix (unbiased: 1/p)"
    )
    memory: Memory = Field(Memory(), description="what is held at once")
    ranks: Ranks = Field(Ranks(), description="how ranks share the work, under torchrun")

    @model_validator(mode="after")
    def _used(self) -> Config:
        given = self.model_fields_set
        if self.human is None and "human_epochs" in given:
            raise ValueError("human_epochs has no effect without human: name people's pairs")
        if not self.centring and "centring_way" in given:
            raise ValueError("centring_way has no effect where centring is 0: leave it out")
        if not all(map(str.strip, self.suffix)):
            raise ValueError("suffix must hold texts that are not empty: a user turn, then how the reply begins")
        return self


def run(config: Config, log: Log) -> dict[str, Any]:
    """Trains; returns {"steps", "pairs", "model"} and what train.ranking.measured says of the held-out pairs."""
    from longtake.train import comparing, preference
    from longtake.train.ranking import measured
    from longtake.train.rows import backward_items
    from longtake.train.session import open_session

    reads = (config.rows, config.model, config.human or config.rows)
    if known := begin(log, "reward", config, config.out, fresh=config.fresh, reads=reads, makes=MAKES, mendable=True):
        return known
    found, tokens = comparing.read(files_of(config), config.video, log), config.memory.row_tokens
    session = open_session(config, log, scalar=True, dress=partial(comparing.dress, seed=config.seed))
    reading = comparing.Reading(session, comparing.suffix_ids(session.model, config.suffix), config.margin)
    stages = comparing.stages_of(
        reading, {name: (own, epochs_of(config, name)) for name, own in found.items()}, config.video, log,
        share=config.held_out, seed=config.seed, size=config.batch, row_tokens=tokens,
    )  # fmt: skip
    comparing.check_margins(stages, config.margin)
    steps = stages[-1].stop

    for step in range(session.progress.step, steps):
        stage = next(stage for stage in stages if step < stage.stop)
        items = reading.items(stage, stage.pairs.next(session), log)
        session.check(items[0].prompt, items[0].ids, log)
        with log.phase("update"):
            sums = backward_items(session, items, objective_of(config, reading, stage, items), tokens)
            norm = session.step(sums.tokens, config.optim, steps)
        taken = session.progress.taken + config.batch if step + 1 < stage.stop else 0
        session.progress = replace(session.progress, step=step + 1, taken=taken)
        numbers = {
            "loss": sums.loss / sums.tokens, **preference.told(sums), "grad_norm": norm,
            "lr": config.optim.rate(step, steps), "tokens": float(sum(len(ids) for item in items for ids in item.ids)),
        }  # fmt: skip
        if config.human is not None:
            numbers["stage"] = float(stages.index(stage))
        last = step + 1 == steps or (step + 1) % config.checkpoint_every == 0
        if last and config.held_out:
            with log.phase("held_out"):
                numbers["held_accuracy"] = measured(reading.rank(stages, log))["accuracy"]
        log.step(step + 1, steps, numbers)
        if last:
            session.checkpoint()
    with log.phase("held_out"):
        ranked = reading.rank(stages, log)
    folder = session.finish()
    log.first(lambda: written(config, folder, ranked, reading))
    counts = {"steps": steps, "pairs": sum(len(stage.pairs.learned) for stage in stages)}
    return finish(log, counts | measured(ranked) | {"model": str(folder)})


def written(config: Config, folder: Path, ranked: Sequence[Ranked], reading: Reading) -> None:
    """scores.jsonl, and what makes of the trained model a reward model."""
    from longtake.rewards.model import write

    write_jsonl(config.out / "scores.jsonl", [row_of(one, config.out) for one in ranked])
    write(folder, config.suffix, reading.suffix)


def files_of(config: Config) -> dict[str, Path]:
    """The files of pairs by their settings, in the order of their stages."""
    return ({} if config.human is None else {"human": config.human}) | {"rows": config.rows}


def epochs_of(config: Config, name: str) -> float:
    """Passes over the pairs of that file."""
    return config.human_epochs if name == "human" else config.epochs


def objective_of(config: Config, reading: Reading, stage: Stage, items: list[Item]) -> ScalarObjective:
    """The loss with its numbers bound. |mean| of a whole batch needs the sign of its sum before any row learns."""
    import torch

    from longtake.maths.reward import batch_sign, bradley_terry_of_tokens
    from longtake.models.adapters import NAME
    from longtake.train.step import ScalarObjective

    way, sign = config.centring_way, None
    if way == "vlm_rlaif":
        sign = batch_sign(torch.tensor([score for pair in reading.scores(stage, items) for score in pair]))
    loss = partial(bradley_terry_of_tokens, centring=config.centring, way=way, sign=sign)
    return ScalarObjective(NAME, loss, together=2)


def row_of(ranked: Ranked, folder: Path) -> dict[str, Any]:
    """A held-out pair as a preference row with what the reward model says of it."""
    from longtake.data.pairs import write_pair

    chosen, rejected = ranked.tokens
    scores = {"model_chosen": ranked.chosen, "model_rejected": ranked.rejected}
    return write_pair(ranked.pair, folder) | scores | {"tokens_chosen": chosen, "tokens_rejected": rejected}
