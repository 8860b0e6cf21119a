"""The whole chain on a laptop: films → stand-in base model → SFT → difficulty → GRPO → evaluation → report.

With `--full` also judge → reward model → PPO, and DPO, on AI feedback.

Everything is real but small: H.264 films of a simulated world, a Qwen3-VL network of half a million parameters, the
same recipes that a user runs. "base" makes a stand-in for a pretrained model and uses the simulator's labels for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from longtake.config import Settings
from longtake.log import Log, RunFolder, read_json, write_json_atomic
from longtake.log.folder import AnotherRun

FILMS = {"sft": 2000, "rl": 800, "gate": 200, "test": 600}
FRAMES = (8, 16, 32, 64)
NAMES = {
    "base": "stand-in base", "sft": "after SFT", "grpo": "after GRPO", "dpo": "after DPO", "ppo": "after PPO",
}  # fmt: skip
BASE_STEPS, SFT_STEPS, GRPO_STEPS = 800, 500, 160


class Config(Settings):
    """Runs the demo; run again after a kill, it goes on where it was."""

    seed: int = Field(0, ge=0, description="of films, model and training")
    out: Path = Field(Path("out/demo"), description="where everything goes; report.html is the page to look at")
    fresh: bool = Field(False, description="move an older demo in `out` aside and begin again")
    aside: bool = Field(False, description="move a demo of another seed or scale aside instead of refusing to start")
    scale: float = Field(
        1.0, gt=0, le=1, description="share of films and steps: small for a quick look, too small to learn"
    )
    full: bool = Field(
        False, description="add learning from AI feedback: a judge, a reward model, DPO and PPO (30 minutes in all)"
    )
    workers: int = Field(2, ge=1, description="processes that render and decode")


def run(config: Config, log: Log) -> dict[str, Any]:
    """Runs all stages; returns the summary that is also in summary.json."""
    from longtake import report
    from longtake.cli import demo_feedback, demo_stages
    from longtake.cli.demo_summary import summary as gather

    own: list[RunFolder] = []  # the first rank's
    log.first(lambda: own.append(_folder(config)))
    log.keep(config.out)
    plan = demo_stages.Plan(config.out, config.seed, config.scale, config.workers)
    stages = [*demo_stages.STAGES.values(), *(demo_feedback.STAGES.values() if config.full else ())]
    with log.progress("stages", len(stages)) as done:
        for stage in stages:
            for folder in own:
                log.open(folder)
            stage(plan, log)
            done.advance()

    def finished() -> dict[str, Any]:
        (folder,) = own
        log.open(folder)
        summary = gather(config.out, config.seed, _seconds(config.out, folder))
        write_json_atomic(config.out / "summary.json", summary)
        page = report.build(config.out)
        folder.set_status("done")
        log.say(told(summary, page))
        return summary

    return log.first(finished)


def _folder(config: Config) -> RunFolder:
    """The demo's own. Raises AnotherRun."""
    settings = config.model_dump(mode="json", exclude={"aside", "full"})
    try:
        return RunFolder.open(config.out, "demo", settings, fresh=config.fresh)
    except AnotherRun:
        if not config.aside:
            raise
        return RunFolder.open(config.out, "demo", settings, fresh=True)


def told(summary: dict[str, Any], page: Path) -> str:
    """The result in a few lines."""
    lines = [f"{'right answers at 64 frames':28}{'sampled':>9}{'greedy':>9}"]
    lines += [
        f"{label:28}{summary[n]['sampled']:9.1%}{summary[n]['greedy']:9.1%}"
        for n, label in NAMES.items()
        if n in summary
    ]
    if judge := summary.get("judge"):
        context = f"{judge['with_context']:.1%} with the film's narrative, {judge['without_context']:.1%} without"
        lines.append(f"the judge is right in {context}; the reward model in {summary['reward_model']['accuracy']:.1%}")
    lines.append(
        f"{'without the film':28}{summary['blind']['no_video']:9.1%}   chance {summary['blind']['chance']:.1%}"
    )
    minutes = sum(summary["seconds"].values()) / 60
    return "\n".join([*lines, f"{summary['grpo']['n']} held-out questions, {minutes:.1f} minutes; look at {page}"])


def _seconds(out: Path, folder: RunFolder) -> dict[str, float]:
    """Wall seconds of every stage, over all sittings: stages with a run folder of their own keep theirs there."""
    spent = folder.seconds
    for path in (*sorted(out.glob("*/run.json")), *sorted(out.glob("eval/*/run.json"))):
        name = f"eval_{path.parent.name}" if path.parent.parent.name == "eval" else path.parent.name
        spent[name] = sum(read_json(path)["seconds"].values())
    return spent
