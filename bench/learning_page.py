"""docs/learning.md and its figure, written from bench/results/learning.json: `python -m bench.learning`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from bench import learning_plot, readme
from bench.learning_plot import LINES, SMOOTH, title

PAGE, FIGURE = "docs/learning.md", "docs/learning.svg"
NAMES = {mode: name for mode, name, *_ in LINES}
CHEAP = ("none", "quarter", "alora")
WAYS = ("sampled", "greedy")
KINDS = {"lora": "LoRA", "alora": "aLoRA"}


def pages(measured: Mapping[str, Any], page: str) -> dict[str, str]:
    """Text of both files by their path in the repository; `page` is the page as it stands."""
    parts = {
        "figure": f"![{title(measured)}]({FIGURE.removeprefix('docs/')})",
        "reading": reading(measured),
        "differences": differences(measured),
        "runs": table(measured),
        "setting": setting(measured),
    }
    return {PAGE: readme.filled(page, parts), FIGURE: learning_plot.picture(measured)}


def write(measured: Mapping[str, Any]) -> None:
    """Writes page and figure."""
    for name, text in pages(measured, (readme.ROOT / PAGE).read_text(encoding="utf-8")).items():
        (readme.ROOT / name).write_text(text, encoding="utf-8")


def verdict(estimate: Mapping[str, Any], apart: float) -> str:
    """What a difference allows to say; `apart` is how far two exact runs are from each other."""
    low, high = estimate["interval"]
    if low <= 0 <= high:
        return "no difference seen"
    within = ", within what two exact runs differ by" if abs(estimate["difference"]) <= apart else ""
    return ("more right" if low > 0 else "fewer right") + within


def repeats(measured: Mapping[str, Any], way: str) -> list[float]:
    """Of every seed how far two exact runs with other draws are from each other in accuracy."""
    every = [one for one in measured["differences"] if one["mode"] == "repeat" and len(one["seeds"]) == 1]
    return [abs(one[way]["difference"]) for one in every]


def between(estimate: Mapping[str, Any]) -> str:
    """Example: "-1.2 [-3.0, +0.7]"."""
    low, high = map(readme.points, estimate["interval"])
    return f"{readme.points(estimate['difference'])} [{low}, {high}]"


def seeds_of(measured: Mapping[str, Any]) -> list[int]:
    return [start["seed"] for start in measured["starts"]]


def pooled(measured: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The comparisons over all seeds together."""
    return [one for one in measured["differences"] if one["seeds"] == seeds_of(measured)]


def reading(measured: Mapping[str, Any]) -> str:
    """The answer as far as it goes, and one sentence for every comparison, over all seeds."""
    apart = {way: max(repeats(measured, way)) for way in WAYS}
    worse, said = [], []
    for one in pooled(measured):
        if one["mode"] == "repeat":
            continue
        found = {way: verdict(one[way], apart[way]) for way in WAYS}
        told = "; ".join(f"{way} {between(one[way])}: {found[way]}" for way in WAYS)
        said.append(f"- **{NAMES[one['mode']]}** against {NAMES[one['against']]}: {told}.")
        if one["mode"] in CHEAP and one["against"] == "exact" and "fewer right" in found.values():
            worse.append(NAMES[one["mode"]])
    answer = f"Seen to learn worse than exact: {', '.join(worse)}."
    if not worse:
        answer = (
            f"No cheap mode ({', '.join(NAMES[mode] for mode in CHEAP)}) was seen to learn worse than exact: "
            "no loss is both sure on these questions and larger than what two exact runs differ by."
        )
    scale = "; ".join(f"{way} {' and '.join(map(readme.share, repeats(measured, way)))}" for way in WAYS)
    seeds = " and ".join(map(str, seeds_of(measured)))
    chance = f"Two exact runs that share start and setting but not draws are apart by {scale} points (seed {seeds})."
    return "\n".join([f"{answer} {chance} A smaller loss could hide here.", "", *said])


def differences(measured: Mapping[str, Any]) -> str:
    """A line for every comparison and seed."""
    rows = ["| | seed | sampled [95 %] | greedy [95 %] |", "|---|---|---:|---:|"]
    for one in measured["differences"]:
        cells = [f"{NAMES[one['mode']]} − {NAMES[one['against']]}", " and ".join(map(str, one["seeds"]))]
        rows.append("| " + " | ".join([*cells, *(between(one[way]) for way in WAYS)]) + " |")
    return "\n".join(rows)


def table(measured: Mapping[str, Any]) -> str:
    """One line a run, below the start of its seed."""
    rows = [
        f"| seed | mode | rate | reward, mean | last {SMOOTH} | sampled | greedy | tokens | rollout s | update s |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for start in measured["starts"]:
        rows.append(_row([str(start["seed"]), "the start (after SFT)", "", "", ""], start, ["", ""]))
        for run in measured["runs"]:
            if run["seed"] == start["seed"]:
                rewards = [f"{fmean(part):.3f}" for part in (run["curve"], run["curve"][-SMOOTH:])]
                front = [str(run["seed"]), NAMES[run["mode"]], f"{run['lr']:g}", *rewards]
                rows.append(_row(front, run, [f"{run['rollout_s']:.2f}", f"{run['update_s']:.2f}"]))
    return "\n".join(rows)


def _row(front: Sequence[str], judged: Mapping[str, Any], back: Sequence[str]) -> str:
    shares = [readme.share(judged[way]) for way in WAYS]
    return "| " + " | ".join([*front, *shares, f"{judged['length']:.0f}", *back]) + " |"


def setting(measured: Mapping[str, Any]) -> str:
    """What was measured on what, and how the adapters' rate was chosen."""
    tuned, versions, run = measured["tuned"], measured["versions"], measured["runs"][0]
    tried = "; ".join(
        f"{KINDS[kind]}: " + ", ".join(f"{one['lr']:g} → {one['reward']:.3f}" for one in own)
        for kind, own in tuned["tried"].items()
    )
    full = next(run["lr"] for run in measured["runs"] if run["mode"] == "exact")
    packages = ", ".join(f"{name} {versions[name]}" for name in ("torch", "transformers", "peft"))

    def norms(mode: str) -> str:
        return " and ".join(f"{run['first_norm']:.3f}" for run in measured["runs"] if run["mode"] == mode)

    said = [
        f"GRPO for {len(run['curve'])} steps from the demo's model after SFT, with the demo's settings;",
        f"{measured['starts'][0]['n']} held-out questions a seed at {measured['frames']} frames,",
        f"which are {measured['visual_tokens']} visual tokens here.",
        "Training reward is accuracy plus a tenth for the format, 1.1 at most; a point of a curve is the mean of",
        f"{SMOOTH} steps.",
        f"All weights are trained at the demo's rate of {full:g}, which was not tuned for this page.",
        f"Adapters have rank {measured['rank']} on every linear layer of the decoder; their rate was tuned",
        f"under seed {tuned['seed']} by training reward at the end of {tuned['steps']} steps (mean of the last",
        f"{SMOOTH}): {tried}. Each kind then had its best rate under every seed.",
        f"At step 1, with weights and answers the same, the gradient's norm is {norms('exact')} with what goes through",
        f"the prefix, {norms('none')} without.",
        "Seconds are medians of a step's wall time, with whatever else the machine was doing.",
        f"{measured['machine']['system']}, {readme.where(measured['machine'])}, Python {versions['python']},",
        f"{packages}; {measured['date']}. `python -m bench.learning out/demo-a out/demo-b` measures this anew.",
    ]
    return " ".join(said)
