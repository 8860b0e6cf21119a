"""Finished demos into one file, bench/results/demo.json: what README's tables and picture are made from.

python -m bench.demo out/bench/11 out/bench/12 out/bench/13
python -m bench.demo --ahead 3        how long three demos took, going by the file there is
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from longtake.errors import UserError
from longtake.log import Log, read_json, write_json_atomic

RESULTS = Path(__file__).parent / "results"
RESULT = RESULTS / "demo.json"


def gather(folders: Sequence[Path]) -> dict[str, Any]:
    """{"machine", "versions", "date", "runs": [summary, …]} of whole demos, by seed; no path, no commit.

    Raises UserError for a folder that holds no finished demo of full size, a seed that comes twice, and demos of
    several machines or versions.
    """
    if not folders:
        raise UserError("no demo named", fix="python -m bench.demo out/demo")
    found = [(folder, read_json(folder / "run.json"), read_json(folder / "summary.json")) for folder in folders]
    _, first, _ = found[0]
    seeds: dict[int, Path] = {}
    for folder, run, summary in found:
        flaw = _flaw(run) or _other(first, run)
        if flaw:
            raise UserError(
                "this demo cannot be reported", where=str(folder), why=flaw, fix="run it again, or leave it out"
            )
        if summary["seed"] in seeds:
            raise UserError(f"seed {summary['seed']} comes twice", where=f"{seeds[summary['seed']]} and {folder}")
        seeds[summary["seed"]] = folder
    return {
        "machine": first["machine"],
        "versions": first["versions"],
        "date": max(run["started"] for _, run, _ in found)[:10],
        "runs": [summary for _, _, summary in sorted(found, key=lambda one: one[2]["seed"])],
    }


def _flaw(run: Mapping[str, Any]) -> str:
    if run["stage"] != "demo":
        return f"it is a run of {run['stage']}"
    if run["status"] != "done":
        return f"it is {run['status']}"
    scale = run["config"]["scale"]
    return "" if scale == 1 else f"its scale is {scale}: too small to learn"


def _other(first: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """What differs from the first demo, "" if it ran on the same."""
    for name in ("machine", "versions"):
        for key, value in first[name].items():
            if run[name].get(key) != value:
                return f"{key} is {run[name].get(key)}, of the first demo {value}"
    return ""


def minutes(run: Mapping[str, Any]) -> float:
    """Wall minutes of a demo, all stages."""
    return float(sum(run["seconds"].values())) / 60


def counted(count: int) -> str:
    return f"{count} demo" if count == 1 else f"{count} demos"


def ahead(count: int) -> str:
    """What to expect of `count` demos, one after another."""
    if not RESULT.exists():
        return f"{counted(count)}, one after another"
    known = read_json(RESULT)
    each = max(minutes(run) for run in known["runs"])
    where = f"{known['machine']['processors']} processors"
    return (
        f"{counted(count)}, one after another: about {round(count * each)} minutes on {where}, going by {known['date']}"
    )


def main(words: Sequence[str]) -> int:
    """Exit code."""
    log = Log()
    if list(words[:1]) == ["--ahead"]:
        log.say(ahead(int(words[1])))
        return 0
    try:
        found = gather([Path(word) for word in words])
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    write_json_atomic(RESULT, found)
    log.say(f"{counted(len(found['runs']))} in {RESULT.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
