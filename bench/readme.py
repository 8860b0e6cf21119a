"""The numbers in README.md and docs/, written from bench/results/*.json and from the code: `python -m bench.readme`.

Between `<!-- NAME: … -->` and `<!-- /NAME -->` nothing is typed by hand; tests/test_readme.py holds the pages to it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from bench import blind, cpu_page, cpu_picture, demo, shapes
from bench.picture import picture, title
from longtake.log import read_json

ROOT = Path(__file__).parents[1]
PICTURE = "docs/accuracy.svg"
SPEED = "docs/speed.svg"

Runs = Sequence[Mapping[str, Any]]


def pages(measured: Mapping[str, Any], guessed: Mapping[str, Any], timed: Mapping[str, Any]) -> dict[str, str]:
    """Text of every written file by its path in the repository: of demos, of blind scores, of steps on this computer.

    Raises ValueError for a page that lacks a marker.
    """
    runs: Runs = measured["runs"]
    parts = {
        "README.md": {
            "picture": f"![{title(runs)}]({PICTURE})",
            "commands": commands(measured),
            "runs": table(measured),
            "gain": gain(runs),
            "blind": blind_table(guessed),
            "speed": f"![{cpu_picture.title(timed['rows'])}]({SPEED})\n\n{cpu_page.table(timed)}",
        },
        "docs/shapes.md": {"fields": shapes.fields(), "row": shapes.row()},
    }
    made = {name: filled((ROOT / name).read_text(encoding="utf-8"), part) for name, part in parts.items()}
    return made | {PICTURE: picture(runs, chance(runs)), SPEED: cpu_picture.picture(timed["rows"])}


def filled(page: str, parts: Mapping[str, str]) -> str:
    """The page with every part between its markers."""
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if len(pattern.findall(page)) != 1:
            raise ValueError(f"the page needs one `<!-- {name}: … -->` with its `<!-- /{name} -->`")
        page = pattern.sub(lambda found, text=text: f"{found[1]}\n{text}\n\n{found[2]}", page)  # type: ignore[misc]
    return page


def chance(runs: Runs) -> float:
    return mean(run["blind"]["chance"] for run in runs)


def mean(values: Any) -> float:
    return fmean(values)


def commands(measured: Mapping[str, Any]) -> str:
    taken = sorted(round(demo.minutes(run)) for run in measured["runs"])
    span = f"{taken[0]} to {taken[-1]}" if taken[0] < taken[-1] else f"about {taken[0]}"
    return "\n".join(
        [
            "```sh",
            f"make demo    # {span} minutes on {where(measured['machine'])}; look at out/demo/report.html",
            "make test    # a quarter of an hour on the same; prints what failed",
            "```",
        ]
    )


def where(machine: Mapping[str, Any]) -> str:
    """Example: "2 processors without GPU"."""
    gpus = ", ".join(machine["gpus"])
    return f"{machine['processors']} processors " + (f"and {gpus}" if gpus else "without GPU")


def table(measured: Mapping[str, Any]) -> str:
    """One line a seed, and what was measured on what."""
    runs: Runs = measured["runs"]
    rows = [
        "| seed | minutes | SFT: sampled | greedy | GRPO: sampled | greedy | sampled gain [95 %] | no video |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for run in runs:
        low, high = run["gain"]["sampled"]["interval"]
        rise = f"{points(run['gain']['sampled']['difference'])} [{points(low)}, {points(high)}]"
        cells = [str(run["seed"]), f"{demo.minutes(run):.1f}"]
        cells += [share(run[model][way]) for model in ("sft", "grpo") for way in ("sampled", "greedy")]
        rows.append("| " + " | ".join([*cells, rise, share(run["blind"]["no_video"])]) + " |")
    versions = measured["versions"]
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "av"))
    decodes, encodes = (max(run[key] for run in runs) for key in ("max_decodes_per_film", "max_encodes_per_set"))
    note = [
        f"Held-out accuracy in per cent at {most(runs)} frames a film, {runs[0]['grpo']['n']} questions a seed;",
        f"guessing gets {share(chance(runs))}, gains are in points.",
        "Minutes are wall time, with whatever else the machine was doing.",
        f"Each of {sum(run['films'] for run in runs):,} films was decoded {times(decodes)},",
        f"each of {sum(run['frame_sets'] for run in runs):,} sets of frames encoded {times(encodes)}.",
        f"{measured['machine']['system']}, {where(measured['machine'])}, Python {versions['python']}, {packages};",
        f"{measured['date']}. `make bench-demo` measures this anew.",
    ]
    return "\n".join([*rows, "", " ".join(note)])


def most(runs: Runs) -> int:
    return max(map(int, runs[0]["grpo"]["by_frames"]))


def times(count: int) -> str:
    return "once" if count == 1 else f"up to {count} times"


def share(value: float) -> str:
    return f"{100 * value:.1f}"


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def gain(runs: Runs) -> str:
    """Where GRPO's gain comes from, in words and by kind."""
    sampled, greedy = (mean(run["gain"][way]["difference"] for run in runs) for way in ("sampled", "greedy"))
    longer, same = (mean(run["gain"][key] for run in runs) for key in ("longer_chains", "same_length"))
    before, after = (mean(run[model]["chain_length"] for run in runs) for model in ("sft", "grpo"))
    said = [
        f"From SFT to GRPO sampled accuracy moves by {points(sampled)} points (mean of the seeds above):",
        f"{points(longer)} from writing chains of other lengths (mean {before:.0f} → {after:.0f} tokens),",
        f"{points(same)} from being right more often at the same length.",
        f"Greedy accuracy moves by {points(greedy)} points.",
    ]
    if abs(greedy) < sampled / 3:
        said.append(
            "So most of the gain is sharpening: GRPO makes the careful chain, which was already the likeliest answer, "
            "the usual one. It teaches little that SFT had not taught."
        )
    rows = ["", "| sampled | " + " | ".join(runs[0]["grpo"]["by_kind"]) + " |"]
    rows.append("|---|" + "---:|" * len(runs[0]["grpo"]["by_kind"]))
    for model, name in (("sft", "after SFT"), ("grpo", "after GRPO")):
        cells = [share(mean(run[model]["by_kind"][kind] for run in runs)) for kind in runs[0]["grpo"]["by_kind"]]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    controls = ", ".join(
        f"{name} {share(mean(run['blind'][key] for run in runs))}"
        for key, name in (("no_video", "no video"), ("one_frame", "one frame"), ("shuffled", "frames shuffled"))
    )
    return "\n".join([" ".join(said), *rows, "", f"Blind controls of the GRPO model, sampled: {controls}."])


def blind_table(guessed: Mapping[str, Any]) -> str:
    """What each file gives away without a film."""
    rows = [
        "| annotation file | questions | chance | most frequent letter | longest option | surface model [95 %] |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    notes = []
    for report in guessed["files"]:
        scores = report["all"]
        low, high = scores["surface"]["interval"]
        cells = [f"`{report['path']}`", str(scores["n"]), share(scores["chance"])]
        cells += [share(scores[name]["accuracy"]) for name in ("majority", "longest")]
        cells.append(f"{share(scores['surface']['accuracy'])} [{share(low)}, {share(high)}]")
        rows.append("| " + " | ".join(cells) + " |")
        if report["malformed"]:
            notes.append(f"{report['malformed']} rows of `{report['path']}` are malformed")
        if report["out_of_order"]:
            by_position = share(report["by_position"]["surface"]["accuracy"])
            notes.append(
                f"{report['out_of_order']} list their options out of the order of their letters "
                f"(taken by position, the surface model gets {by_position})"
            )
    told = f"Per cent right, {guessed['date']}" + (f"; {', '.join(notes)}." if notes else ".")
    return "\n".join([*rows, "", told])


def main() -> int:
    """Writes every page; exit code."""
    for name, text in pages(read_json(demo.RESULT), read_json(blind.RESULT), read_json(cpu_page.RESULT)).items():
        (ROOT / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
