"""What does each way of learning buy, where truth is known? Rows (a) to (f), into bench/results/study.json.

    python -m bench.study run --seeds 0 1 2 [--rows a d]    what is missing, two seeds at a time; then the page
    python -m bench.study seed 0 [--rows a]                 one seed in this process, without the page
    python -m bench.study page                              docs/study.md and its figures from the numbers there are

out/study/<seed> is a `longtake demo --full` of that seed, out/study/<seed>/<row>/<arm> holds the runs of an arm and
<row>/result.json what the row came to. Killed, it goes on where it was. A seed has one thread, whoever starts it: two
seeds share two cores better than two threads, and a row that is run again alone comes to the same numbers.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bench import study_cost, study_page
from bench.demo import RESULTS
from bench.study_rows import ROWS, Bench
from bench.study_seeds import every_seed, tie
from bench.study_table import agreement, covers, gather
from longtake.cli import demo
from longtake.cli.demo_stages import Plan
from longtake.cli.environment import restart
from longtake.errors import UserError
from longtake.log import Log, read_json, write_json_atomic
from longtake.log.folder import DONE, AnotherRun, machine, versions

RESULT = RESULTS / "study.json"
SEEDS = (0, 1, 2)


@dataclass(frozen=True, slots=True)
class Study:
    """What is asked for. Example: Study(Path("out/study"), ("a", "b"), scale=1.0)."""

    out: Path
    rows: tuple[str, ...]
    scale: float

    def plan(self, seed: int) -> Plan:
        return Plan(self.out / str(seed), seed, self.scale, 1)


def one_seed(study: Study, seed: int, log: Log, say: Callable[[str], None]) -> list[str]:
    """The demo and the rows that were asked for; returns what failed, the other rows are there all the same."""
    plan, failed = study.plan(seed), []
    if not whole(plan):
        say("the demo and its feedback")
        demo.run(demo.Config(seed=seed, out=plan.out, scale=study.scale, full=True, workers=plan.workers), log)
    prompt = study_cost.prompt_tokens(plan.out)
    for letter in study.rows:
        folder = plan.out / letter
        bench = Bench(plan, folder, log, prompt, partial(tell_of, say, letter))
        try:
            found = ROWS[letter](bench)
        except UserError as error:
            log.ended(f"failed: {error.what}")
            where = f"\n  or: move {folder} aside" if isinstance(error, AnotherRun) else ""
            failed.append(f"seed {seed}, row {letter}: {error}{where}")
            say(f"({letter}) failed: {error.what}")
            continue
        keep(folder / "result.json", {"row": letter, "seed": seed, "scale": study.scale} | found.row())
        say(f"({letter}) is done")
    return failed


def tell_of(say: Callable[[str], None], letter: str, text: str) -> None:
    say(f"({letter}) {text}")


def whole(plan: Plan) -> bool:
    """Whether the demo is there with its feedback: then not even its report is made again."""
    needed = [plan.out / name for name in ("run.json", "summary.json", "eval/ppo/eval.json", "eval/dpo/eval.json")]
    if not all(file.exists() for file in needed):
        return False
    run = read_json(needed[0])
    same = (run["config"]["seed"], run["config"]["scale"]) == (plan.seed, plan.scale)
    return same and run["status"] == DONE and "ppo" in read_json(needed[1])


def keep(file: Path, found: dict[str, Any]) -> None:
    """Writes a row's result with where and when it was made; one that is there with the same numbers stays."""
    now = {"machine": machine(), "versions": versions(), "date": datetime.now(UTC).date().isoformat()}
    before = read_json(file) if file.exists() else {}
    if before.keys() == (found | now).keys() and all(before[name] == value for name, value in found.items()):
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(file, found | now)


def tell(found: Mapping[str, Any], log: Log) -> None:
    """Writes what was found and the page, unless numbers would be lost by it; says how it agrees with what is known."""
    if "scale" in found:
        log.say(f"a small study, of scale {found['scale']}: it ran, and tells nothing")
        return
    known = read_json(RESULT) if RESULT.exists() else {}
    for line in agreement(known, found):
        log.say(line)
    if not covers(found, known):
        log.say(f"{RESULT.name} has rows and seeds that are not here: it is left as it is")
        return
    write_json_atomic(RESULT, dict(found))
    study_page.write(found)
    log.say(f"{RESULT.name} and {study_page.PAGE} are written")


def run_seed(study: Study, seed: int) -> int:
    """Exit code of one seed in this process."""
    import torch

    torch.set_num_threads(1)
    study.out.mkdir(parents=True, exist_ok=True)
    spoken = Log()
    with (study.out / f"{seed}.log").open("a", encoding="utf-8") as stream:
        log = Log(stream=stream)
        try:
            failed = one_seed(study, seed, log, lambda text: spoken.say(f"seed {seed}: {text}"))
        except UserError as error:
            log.ended(f"failed: {error.what}")
            failed = [str(error)]
        except KeyboardInterrupt:
            log.ended("stopped: interrupted")
            failed = ["interrupted; the same command goes on"]
        finally:
            log.close()
    sys.stderr.write("".join(f"{text}\n" for text in failed))
    return 1 if failed else 0


def parsed(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.study", description=(__doc__ or "").partition("\n")[0])
    asked = parser.add_subparsers(dest="what", required=True)
    many, one = asked.add_parser("run", help="what is missing"), asked.add_parser("seed", help="one seed, here")
    asked.add_parser("page", help="docs/study.md anew")
    many.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    many.add_argument("--jobs", type=int, default=2, help="seeds at a time")
    one.add_argument("seed", type=int)
    one.add_argument("--tied", action="store_true", help="end with whoever holds this process's stdin")
    for each in (many, one):
        each.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
        each.add_argument("--out", type=Path, default=Path("out/study"), help="where everything goes")
        each.add_argument("--scale", type=float, default=1.0, help="share of films and steps: small to try it out")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> int:
    """Exit code."""
    chosen = parsed(words)
    if chosen.what == "page":
        study_page.write(read_json(RESULT) if RESULT.exists() else {})
        return 0
    restart(["-m", "bench.study", *words])
    study = Study(chosen.out, tuple(chosen.rows), chosen.scale)
    if chosen.what == "seed":
        if chosen.tied:
            tie()
        return run_seed(study, chosen.seed)
    passed = ["--out", str(chosen.out), "--scale", str(chosen.scale), "--rows", *chosen.rows]
    failed = every_seed(chosen.seeds, passed, chosen.jobs)
    log = Log()
    try:
        tell(gather(chosen.out), log)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
