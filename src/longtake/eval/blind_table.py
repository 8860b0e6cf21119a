"""The blind report as text for a terminal or a README."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NAMED = 6  # malformed rows named; the JSON names all
GUESSERS = {
    "chance": "chance",
    "majority": "most frequent letter",
    "longest": "longest option",
    "surface": "surface model",
}
WIDTH = max(map(len, GUESSERS.values()))


def table(report: Mapping[str, Any]) -> str:
    """What `blind.report` found, in about 20 lines of plain text; accuracies in per cent with 95 % intervals."""
    lines = [_heading(report), ""]
    columns = [("all", report["all"]), ("without malformed", report["clean"] if report["malformed"] else None)]
    columns.append(("options by position", report["by_position"]))
    shown = [(name, numbers) for name, numbers in columns if numbers]
    names = [f"{name} (n {numbers['n']})" for name, numbers in shown]
    lines.append(_line("% right without a film", names))
    lines += [_line(title, [_cell(numbers[name]) for _, numbers in shown]) for name, title in GUESSERS.items()]
    if report["by_kind"]:
        lines += ["", _line("by kind", list(GUESSERS.values()))]
        for kind, numbers in report["by_kind"].items():
            lines.append(_line(f"{kind} (n {numbers['n']})", [_cell(numbers[name]) for name in GUESSERS]))
    return "\n".join([*lines, "", *_notes(report)])


def _heading(report: Mapping[str, Any]) -> str:
    parts = [f"{report['rows']} questions", f"{report['all']['n']} multiple choice"]
    parts += [f"{count} left out: {reason}" for reason, count in report["excluded"].items()]
    return f"{report['path']}: {', '.join(parts)}"


def _notes(report: Mapping[str, Any]) -> list[str]:
    numbers = report["all"]
    best = max((name for name in GUESSERS if numbers[name]), key=lambda name: _accuracy(numbers[name]))
    notes = [
        f"Read scores on this file against {_accuracy(numbers[best]):.1%} ({GUESSERS[best]}), not against "
        f"{numbers['chance']:.1%} (chance)."
    ]
    total = sum(report["letters"].values())
    notes.append(
        "Right letters: " + ", ".join(f"{key} {count / total:.1%}" for key, count in report["letters"].items())
    )
    if numbers["surface"] is None:
        notes.append("Too few rows for a surface model.")
    if report["out_of_order"]:
        notes.append(
            f"{report['out_of_order']} rows list options out of the order of their letters; the last column is what a "
            "tool gets that goes by position."
        )
    if report["same_option_twice"]:
        notes.append(f"{report['same_option_twice']} rows have two options with the same text.")
    bad = report["malformed"]
    if bad:
        notes.append(f"{len(bad)} malformed rows:")
        notes += [
            f"  row {row['row']}" + (f" (id {row['id']})" if row["id"] else "") + f": {row['reason']}"
            for row in bad[:NAMED]
        ]
        notes += [f"  and {len(bad) - NAMED} more: see --json"] if len(bad) > NAMED else []
    return notes


def _accuracy(number: Any) -> float:
    return float(number["accuracy"]) if isinstance(number, Mapping) else float(number)


def _cell(number: Any) -> str:
    if number is None:
        return "-"
    value = f"{100 * _accuracy(number):.1f}"
    if not isinstance(number, Mapping):
        return value
    low, high = number["interval"]
    return f"{value} [{100 * low:.1f}, {100 * high:.1f}]"


def _line(title: str, cells: list[str]) -> str:
    return f"{title:<{WIDTH + 10}}" + "".join(f"{cell:>28}" for cell in cells)
