"""eval.json as a table to read."""

from __future__ import annotations

from typing import Any


def table(found: dict[str, Any]) -> str:
    """A line for every setting: accuracy with 95 % intervals; format and length of the sampled answers."""
    lines = [f"{found['rows']} questions, {found['model']}", ""]
    lines.append(f"{'frames':<22}{'sampled':>24}{'greedy':>24}{'format':>9}{'tokens':>8}{'n':>7}")
    pairs: dict[tuple[int, str], dict[bool, dict[str, Any]]] = {}
    for entry in found["settings"]:
        pairs.setdefault((entry["frames"], entry["control"]), {})[entry["temperature"] > 0] = entry
    for (frames, control), entry in sorted(pairs.items(), key=lambda item: (item[0][1] != "", item[0])):
        label = f"{frames or 'as the rows say'}{f' {control}' if control else ''}"
        sampled, greedy = entry[True], entry[False]
        tail = f"{sampled['format']:9.1%}{sampled['chain_length']:8.1f}{sampled['n']:7}"
        lines.append(f"{label:<22}{share(sampled):>24}{share(greedy):>24}{tail}")
    if "chance" in found:
        lines.append(f"{'chance':<22}{found['chance']:>24.1%}")
    return "\n".join(lines)


def share(entry: dict[str, Any]) -> str:
    low, high = entry["interval"]
    return f"{entry['accuracy']:.1%} [{low:.1%}, {high:.1%}]"
