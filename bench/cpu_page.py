"""README's part on speed, from bench/results/cpu.json: a table of modes, and what it was measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "cpu.json"
NAMES = {
    "trl": "TRL GRPOTrainer",
    "per_answer_3pass": "a row per answer, three passes",
    "per_answer": "a row per answer",
    "encode_once": "the same, film encoded once",
    "prefix_grouper": "PrefixGrouper, film encoded once",
    "exact": "**longtake**, exact",
    "exact_layers": "exact, layers recomputed",
    "no_prefix_gradient": "no gradient through the prefix",
    "alora": "aLoRA, prefix kept for the run",
}
GROUP = 8
OURS = ("exact", "exact_layers", "no_prefix_gradient", "alora")

Row = Mapping[str, Any]


def table(measured: Mapping[str, Any]) -> str:
    """Update and step seconds by prefix, peak memory; modes as rows."""
    rows: Sequence[Row] = measured["rows"]
    prefixes = sorted({row["prefix"] for row in rows if row["mode"] == "exact" and row["G"] == GROUP})
    shown = [prefix for prefix in prefixes if prefix in (512, 2048, 8192, 32768)]
    head = [f"update, {short(prefix)}" for prefix in shown] + [f"step, {short(2048)}", f"step, {short(8192)}"]
    lines = [f"| seconds | {' | '.join(head)} | MB at {short(8192)} |", "|---|" + "---:|" * (len(head) + 1)]
    for mode, name in NAMES.items():
        cells = [seconds(find(rows, mode, prefix), "update_s") for prefix in shown]
        cells += [seconds(find(rows, mode, prefix), "step_s") for prefix in (2048, 8192)]
        row = find(rows, mode, 8192)
        lines.append(f"| {name} | {' | '.join(cells)} | {'–' if row is None else round(row['peak_mb'])} |")
    return "\n".join([*lines, "", said(rows), "", note(measured)])


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """How many times as fast (peak memory: how many times as much), of the pairs that were measured."""
    pairs = {
        "update at 2k, exact against per_answer": ("per_answer", "exact", 2048, "update_s"),
        "update at 8k, exact against per_answer": ("per_answer", "exact", 8192, "update_s"),
        "update at 8k, exact against encode_once": ("encode_once", "exact", 8192, "update_s"),
        "update at 8k, exact against per_answer_3pass": ("per_answer_3pass", "exact", 8192, "update_s"),
        "update at 8k, alora against per_answer_3pass": ("per_answer_3pass", "alora", 8192, "update_s"),
        "step at 2k, exact on first touch against trl": ("trl", "exact", 2048, "first_s"),
        "step at 2k, exact with features cached against trl": ("trl", "exact", 2048, "step_s"),
        "step at 8k, exact against prefix_grouper": ("prefix_grouper", "exact", 8192, "step_s"),
    }
    found: dict[str, float] = {}
    for name, (slow, fast, prefix, number) in pairs.items():
        one, other = find(rows, slow, prefix), find(rows, fast, prefix)
        if one is not None and other is not None:
            found[name] = one[number] / other[number]
    few, many = find(rows, "exact", 8192, 2), find(rows, "exact", 8192, 16)
    grouped = find(rows, "prefix_grouper", 8192, 16)
    if few is not None and many is not None:
        found["memory at 8k, exact with 16 answers against 2"] = many["peak_mb"] / few["peak_mb"]
    if grouped is not None and many is not None:
        found["memory at 8k and 16 answers, prefix_grouper against exact"] = grouped["peak_mb"] / many["peak_mb"]
    return found


def said(rows: Sequence[Row]) -> str:
    """`ratios` in one sentence."""
    return "How many times: " + "; ".join(f"{name}: {figures(value)}" for name, value in ratios(rows).items()) + "."


def missed(rows: Sequence[Row]) -> list[float]:
    """By what share the cost model's prediction of a step of longtake's modes misses what was measured, rising."""
    ours = [row for row in rows if row["mode"] in OURS and row["predicted"] is not None]
    return sorted(abs(row["predicted"]["step_s"] / row["step_s"] - 1) for row in ours)


def find(rows: Sequence[Row], mode: str, prefix: int, group: int = GROUP) -> Row | None:
    """The row of a mode at that prefix and group size."""
    here = [row for row in rows if (row["mode"], row["prefix"], row["G"]) == (mode, prefix, group)]
    return here[0] if here else None


def seconds(row: Row | None, name: str) -> str:
    if row is None:
        return "–"
    return figures(row[name])


def figures(value: float) -> str:
    """Three of them, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def short(tokens: int) -> str:
    """Example: "8k"."""
    return str(tokens) if tokens < 1024 else f"{tokens // 1024}k"


def note(measured: Mapping[str, Any]) -> str:
    """What was measured on what."""
    rows, network, machine, versions = (measured[name] for name in ("rows", "network", "machine", "versions"))
    example = rows[0]
    packages = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "prefix-grouper") if versions.get(name)
    )
    told = [
        f"One question with {GROUP} answers of {example['answer']} tokens, a frame is",
        f"{example['prefix'] // example['frames']} tokens. A Qwen3-VL network of {network['layers']} layers and width",
        f"{network['width']}, float32, all trained but the vision tower (aLoRA: rank 16). Update: answers known to",
        "optimizer done, one prefix forward included in the exact modes; step: rollout and update, the film's features",
        "at hand. Medians of",
        f"{max(row['runs'] for row in rows)} runs taken in turn; one where it took over 20 s. Peak memory is above the",
        f"loaded network. {machine['system']}, {machine['processors']} processors, {packages}; {measured['date']}.",
        "What each mode does: [`bench/cpu.py`](bench/cpu.py), [`bench/cpu_peers.py`](bench/cpu_peers.py).",
        "`make bench` measures this anew.",
    ]
    return " ".join(told)
