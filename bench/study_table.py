"""Results of single seeds into one table: means of arms, differences over all seeds with their verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from bench.study_stats import mean_of, pooled, verdict
from longtake.errors import UserError
from longtake.log import read_json
from longtake.maths.stats import Estimate

DIGITS = 6
LETTERS = "abcdef"
# the differences that answer a row's question; the others stand beside them
ANSWERS: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "a": lambda one: one["against"] == "full",
    "b": lambda one: one["measure"].endswith("slope"),
    "c": lambda one: True,
    "d": lambda one: one["arm"] == "all" or one["against"] == "start",
    "e": lambda one: True,
    "f": lambda one: one["against"] == "all" or one["arm"] == "no_sft",
}


def gather(out: Path) -> dict[str, Any]:
    """{"a": …, …, "f": …, "machine", "versions", "date", "seeds"} of all results in <out>/<seed>/<row>/.

    A row has the seeds that it was run with. Raises UserError if there is none, and for results of several machines,
    versions or scales.
    """
    found = [read_json(out / str(seed) / letter / "result.json") for letter, seed in present(out)]
    if not found:
        raise UserError("no row of the study is here", where=str(out), fix="make study")
    for name in ("machine", "versions", "scale"):
        if differing := [one for one in found if one[name] != found[0][name]]:
            where = f"row {differing[0]['row']} of seed {differing[0]['seed']}"
            why = f"{differing[0][name]}, not {found[0][name]}"
            raise UserError(
                f"results of several kinds of {name}", where=where, why=why, fix="move the older ones aside"
            )
    rows = {letter: row(letter, list(own)) for letter, own in groupby(found, lambda one: one["row"])}
    about = {name: found[0][name] for name in ("machine", "versions")} | {"date": max(one["date"] for one in found)}
    seeds = sorted({one["seed"] for one in found})
    scale = {} if found[0]["scale"] == 1 else {"scale": found[0]["scale"]}
    return rounded(rows | about | {"seeds": seeds} | scale)


def present(out: Path) -> list[tuple[str, int]]:
    """(row, seed) of every result, rows first."""
    files = [file.parent for letter in LETTERS for file in out.glob(f"*/{letter}/result.json")]
    return sorted((file.name, int(file.parent.name)) for file in files if file.parent.name.isdigit())


def row(letter: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row over its seeds: {"seeds", "arms", "differences", "verdict", "facts"}.

    An arm or difference that a seed lacks (of 256 pairs where there were fewer) is of the seeds that have it.
    """
    names = dict.fromkeys(name for one in results for name in one["arms"])
    arms = {name: arm({one["seed"]: one["arms"][name] for one in results if name in one["arms"]}) for name in names}
    found = list(differences(letter, results))
    said = {one["verdict"] for one in found if one["answers"]}
    return {
        "seeds": [one["seed"] for one in results],
        "arms": arms,
        "differences": found,
        "verdict": "mixed" if {"gain", "loss"} <= said else next(iter(said - {"no gain"}), "no gain"),
        "facts": {str(one["seed"]): one["facts"] for one in results},
    }


def arm(by_seed: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """{"mean": {measure: …}, "per_seed": {seed: {measure: …}}}."""
    per_seed = {str(seed): dict(numbers) for seed, numbers in by_seed.items()}
    return {"mean": mean_of(list(by_seed.values())), "per_seed": per_seed}


def differences(letter: str, results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every comparison over the seeds that made it, each a block."""
    keys = dict.fromkeys(
        (one["arm"], one["against"], one["measure"]) for result in results for one in result["differences"]
    )
    for key in keys:
        own = {
            result["seed"]: Estimate(one["value"], one["low"], one["high"], one["n"])
            for result in results
            for one in result["differences"]
            if (one["arm"], one["against"], one["measure"]) == key
        }
        whole = pooled(list(own.values()))
        named = dict(zip(("arm", "against", "measure"), key, strict=True))
        yield {
            **named, "difference": whole.value, "interval": [whole.low, whole.high], "n": whole.n,
            "verdict": verdict(whole.low, whole.high), "answers": ANSWERS[letter](named),
            "per_seed": {str(seed): [one.value, one.low, one.high] for seed, one in own.items()},
        }  # fmt: skip


def covers(new: Mapping[str, Any], old: Mapping[str, Any]) -> bool:
    """Whether all rows and seeds of `old` are in `new`."""
    seeds = {letter: set(new[letter]["seeds"]) if letter in new else set() for letter in LETTERS}
    return all(set(old[letter]["seeds"]) <= seeds[letter] for letter in LETTERS if letter in old)


def agreement(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """For every row and seed that both have: whether accuracies and the like are the same. Seconds are left out."""
    for letter in LETTERS:
        if letter not in old or letter not in new:
            continue
        for seed in new[letter]["seeds"]:
            pairs = list(_shared(old[letter], new[letter], str(seed)))
            if not pairs:
                continue
            apart = max(abs(a - b) for a, b in pairs)
            said = f"all {len(pairs)} numbers as they were" if not apart else f"numbers differ by up to {apart:.4g}"
            yield f"row {letter}, seed {seed}: {said}"


def _shared(old: Mapping[str, Any], new: Mapping[str, Any], seed: str) -> Iterator[tuple[float, float]]:
    for name, own in new["arms"].items():
        before = old["arms"].get(name, {"per_seed": {}})["per_seed"].get(seed, {})
        for measure, value in own["per_seed"].get(seed, {}).items():
            if measure in before and not measure.endswith("seconds"):
                yield before[measure], value


def rounded(value: Any) -> Any:
    """Floats to DIGITS digits behind the point, all the way down."""
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, Mapping):
        return {key: rounded(own) for key, own in value.items()}
    return [rounded(own) for own in value] if isinstance(value, list) else value
