"""docs/study.md and its figures, written from bench/results/study.json: `python -m bench.study page`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench import readme, study_plot
from bench.study_cost import GRPO_STEPS, equal_steps
from bench.study_plot import Line, Mark
from bench.study_table import LETTERS
from longtake.cli.demo import FRAMES

PAGE = "docs/study.md"
FIGURE, BY_FRAMES, BY_PAIRS = "docs/study.svg", "docs/study_frames.svg", "docs/study_pairs.svg"
WAYS = ("sampled", "greedy")
LATER = "Not measured yet: `make study`."
TITLES = {
    "a": "equal compute", "b": "reasoning, by frames", "c": "the film's narrative", "d": "number of pairs",
    "e": "order and extra data", "f": "hardness; no SFT",
}  # fmt: skip
NAMES = {
    "start": "the start (after SFT)", "annotated": "the start (SFT on such chains)", "full": "SFT, more chains",
    "rejection": "SFT, own right answers", "grpo": "GRPO",
    "dpo": "DPO", "ppo": "PPO", "with": "with reasoning", "without": "answers alone", "narrative": "with narrative",
    "plain": "without narrative", "curriculum": "short chains first", "objects": "with extra rows", "base": "the base",
    "easy": "easy third", "medium": "middle third", "hard": "hard third", "all": "all questions",
    "no_sft": "without SFT",
}  # fmt: skip
OWN_NAMES = {
    ("e", "plain"): "as it comes",
    ("d", "all"): "all pairs",
    ("d", "64"): "64 pairs",
    ("d", "256"): "256 pairs",
}
MEASURES = {
    "sampled": "sampled", "greedy": "greedy", "sampled_slope": "sampled, per doubling",
    "greedy_slope": "greedy, per doubling", "accuracy_all": "pairs", "accuracy_verdicts": "single verdicts",
    "reward": "reward model",
}  # fmt: skip
COUNTS = ("steps", "pairs", "kept", "ties", "flipped", "held_out")
COLUMNS = {
    "a": ("sampled", "greedy", "length", "steps", "cost", "seconds", "beside_cost", "beside_seconds"),
    "b": (*(f"{way}_{n}" for way in WAYS for n in (*FRAMES, "slope")), "length", "cost", "seconds"),
    "c": (
        "accuracy_all", "accuracy_verdicts", "accuracy", "flip_rate", "pairs", "kept", "ties", "flipped", "cost",
        "seconds",
    ),
    "d": ("reward", "truth", "held_out", "sampled", "greedy", "pairs", "steps", "cost", "reward_cost", "seconds"),
    "e": ("sampled", "greedy", "length", "steps", "cost", "seconds"),
    "f": ("sampled", "greedy", "length", "format", "steps", "cost", "seconds"),
}  # fmt: skip
HEADS = {
    "length": "tokens an answer", "cost": "cost, M", "beside_cost": "before it: cost, M", "format": "formed",
    "beside_seconds": "before it: s", "seconds": "s", "reward_cost": "reward model: cost, M",
    "accuracy_all": "right, of all", "accuracy": "right, of kept", "accuracy_verdicts": "right, of verdicts",
    "flip_rate": "flipped, share", "reward": "reward model: as judged", "truth": "reward model: as is true",
    "held_out": "held out",
}  # fmt: skip
BY_SEED = {*WAYS, "accuracy_all", "accuracy_verdicts", "flip_rate", "reward", "truth"}  # what is told of every seed

Row = Mapping[str, Any]


def pages(measured: Mapping[str, Any], page: str) -> dict[str, str]:
    """Text of all files by their path in the repository; `page` is the page as it stands. Figures of what is there."""
    parts = {letter: section(letter, measured[letter]) if letter in measured else LATER for letter in LETTERS}
    parts["answers"] = answers(measured)
    parts["setting"] = setting(measured) if measured else LATER
    drawn = figures(measured)
    for path, letter in ((BY_FRAMES, "b"), (BY_PAIRS, "d")):
        if path in drawn:
            parts[letter] = f"{picture(path, drawn[path])}\n\n{parts[letter]}"
    return {PAGE: readme.filled(page, parts)} | drawn


def write(measured: Mapping[str, Any]) -> None:
    """Writes page and figures; a figure of which there are no numbers goes."""
    made = pages(measured, (readme.ROOT / PAGE).read_text(encoding="utf-8"))
    for name in (FIGURE, BY_FRAMES, BY_PAIRS):
        if name not in made:
            (readme.ROOT / name).unlink(missing_ok=True)
    for name, text in made.items():
        (readme.ROOT / name).write_text(text, encoding="utf-8")


def answers(measured: Mapping[str, Any]) -> str:
    """The first thing on the page: what was gained, row by row."""
    there = [letter for letter in LETTERS if letter in measured]
    if not there:
        return LATER
    told = []
    for letter in there:
        told += [
            f"- **({letter}) {TITLES[letter]}: {measured[letter]['verdict']}.**",
            *answered(letter, measured[letter]),
        ]
    if "a" in measured and all(one["verdict"] != "gain" for one in answering(measured["a"])):
        told += [
            "",
            "At equal compute nothing gains over SFT on more chains: **these films are too easy for SFT**. Where such "
            "chains can be had, RL and preferences have nothing left to teach here; what they are worth must be "
            "measured on a task that the chains do not solve.",
        ]
    return "\n".join([picture(FIGURE, figures(measured)[FIGURE]), "", *told])


def answered(letter: str, row: Row) -> list[str]:
    """The differences that answer a row's question, a line for every two arms."""
    found = [
        (f"{name(letter, one['arm'])} − {name(letter, one['against'])}", f"{MEASURES[one['measure']]} {between(one)}")
        for one in answering(row)
    ]
    return [f"  - {pair}: {'; '.join(own for of, own in found if of == pair)}" for pair in dict.fromkeys(dict(found))]


def answering(row: Row) -> list[Mapping[str, Any]]:
    return [one for one in row["differences"] if one["answers"]]


def name(letter: str, arm: str) -> str:
    return OWN_NAMES.get((letter, arm), NAMES.get(arm, arm))


def between(one: Mapping[str, Any]) -> str:
    """Example: "+3.1 [+1.0, +5.2] gain"; and whether the seeds do not all point where the verdict does."""
    low, high = map(readme.points, one["interval"])
    signs = {value > 0 for value, *_ in one["per_seed"].values()}
    apart = " (seeds disagree)" if one["verdict"] != "no gain" and len(signs) > 1 else ""
    return f"{readme.points(one['difference'])} [{low}, {high}] {one['verdict']}{apart}"


def section(letter: str, row: Row) -> str:
    """A row's arms and differences."""
    seeds = ", ".join(map(str, row["seeds"]))
    return "\n".join(
        [f"Seeds: {seeds}. {facts(letter, row)}".strip(), "", *table(letter, row), "", *compared(letter, row)]
    )


def table(letter: str, row: Row) -> list[str]:
    """A line for every arm: means, and in brackets the seeds where there are several."""
    keys = [key for key in COLUMNS[letter] if any(key in arm["mean"] for arm in row["arms"].values())]
    lines = ["| | " + " | ".join(head(key) for key in keys) + " |", "|---|" + "---:|" * len(keys)]
    for arm, numbers in row["arms"].items():
        lines.append("| " + " | ".join([name(letter, arm), *(cell(key, numbers) for key in keys)]) + " |")
    return lines


def head(key: str) -> str:
    way, _, rest = key.partition("_")
    if way in WAYS and rest:
        return f"{way}, per doubling" if rest == "slope" else f"{way}, {rest} frames"
    return HEADS.get(key, key)


def cell(key: str, numbers: Mapping[str, Any]) -> str:
    """Example: "84.1 (83.7 86.3 82.2)"; costs in millions of tokens, shares in per cent."""
    if key not in numbers["mean"]:
        return ""
    each = [one[key] for one in numbers["per_seed"].values() if key in one]
    mean = shown(key, numbers["mean"][key])
    return f"{mean} ({' '.join(shown(key, one) for one in each)})" if len(each) > 1 and key in BY_SEED else mean


def shown(key: str, value: float) -> str:
    if key.endswith("cost"):
        return f"{value / 1e6:.2f}"
    if key in COUNTS or key.endswith(("seconds", "length")):
        return f"{value:.0f}"
    return readme.points(value) if key.endswith("slope") else readme.share(value)


def compared(letter: str, row: Row) -> list[str]:
    """A line for every two arms that are compared, a column for every measure."""
    measures = list(dict.fromkeys(one["measure"] for one in row["differences"]))
    pairs = list(dict.fromkeys((one["arm"], one["against"]) for one in row["differences"]))
    found = {(one["arm"], one["against"], one["measure"]): between(one) for one in row["differences"]}
    lines = ["| difference in points [95 %] | " + " | ".join(MEASURES[key] for key in measures) + " |"]
    lines.append("|---|" + "---|" * len(measures))
    for arm, against in pairs:
        cells = [found.get((arm, against, key), "") for key in measures]
        lines.append("| " + " | ".join([f"{name(letter, arm)} − {name(letter, against)}", *cells]) + " |")
    return lines


def facts(letter: str, row: Row) -> str:
    """What is true of a row beside its arms, seed by seed."""
    each = list(row["facts"].values())
    if letter == "a":
        pairs = ", ".join(f"{one['pairs']:.0f} of the {one['pairs_from']}" for one in each)
        planned = ", ".join(f"{name('a', arm)} {count}" for arm, count in equal_steps().items())
        chains = ", ".join(f"{one['chains']} and {one['more']}" for one in each)
        counts = f"Chains for the start and for more SFT: {chains}. Pairs: {pairs}."
        return f"{counts} Steps that cost as much as {GRPO_STEPS} of GRPO: {planned}."
    if letter == "c":
        rights = ", ".join(f"{one['events_right']:.1%} ({one['films_right']:.1%})" for one in each)
        return f"Events that the narratives tell right (films told without a mistake): {rights}."
    if letter == "f":
        parts = [
            ", ".join(f"{one[part]['from']:g} to {one[part]['to']:g}" for one in each)
            for part in ("easy", "medium", "hard")
        ]
        return f"Pass rates: easy {parts[0]}; middle {parts[1]}; hard {parts[2]}."
    return ""


def figures(measured: Mapping[str, Any]) -> dict[str, str]:
    """SVG by path, of the rows that are there."""
    groups = [
        (f"({letter}) {TITLES[letter]}", [mark(letter, one) for one in answering(measured[letter])])
        for letter in LETTERS
        if letter in measured
    ]
    if not groups:
        return {}
    count = sum(len(own) for _, own in groups)
    told = f"{count} differences with their 95 % intervals, by the study's question; the numbers are in the tables"
    drawn = {FIGURE: study_plot.forest(groups, told)}
    if "b" in measured:
        curves = [
            by_frames(arm, way, measured["b"]["arms"][arm]["mean"]) for arm in ("with", "without") for way in WAYS
        ]
        drawn[BY_FRAMES] = study_plot.lines(
            curves, "frames a film", said(curves, "right answers in per cent by frames")
        )
    if "d" in measured:
        curves = by_pairs(measured["d"]["arms"])
        drawn[BY_PAIRS] = study_plot.lines(curves, "pairs to learn from", said(curves, "per cent right by pairs"))
    return drawn


def mark(letter: str, one: Mapping[str, Any]) -> Mark:
    label = f"{name(letter, one['arm'])} − {name(letter, one['against'])}"
    low, high = (100 * edge for edge in one["interval"])
    kind = one["measure"].removesuffix("_slope")
    return Mark(label, MEASURES[kind], 100 * one["difference"], low, high)


def by_frames(arm: str, way: str, mean: Mapping[str, float]) -> Line:
    values = tuple(100 * mean[f"{way}_{frames}"] for frames in FRAMES)
    return Line(f"{NAMES[arm]}, {way}", tuple(map(float, FRAMES)), values)


def by_pairs(arms: Mapping[str, Any]) -> list[Line]:
    own = sorted((arm["mean"] for arm in arms.values() if "pairs" in arm["mean"]), key=lambda mean: mean["pairs"])
    at = tuple(mean["pairs"] for mean in own)
    kinds = {"reward": "reward model, as judged", "sampled": "DPO, sampled", "greedy": "DPO, greedy"}
    return [Line(label, at, tuple(100 * mean[key] for mean in own)) for key, label in kinds.items()]


def said(curves: Sequence[Line], what: str) -> str:
    """What a figure says, for those who cannot see it."""
    each = "; ".join(f"{line.name} {', '.join(f'{value:.1f}' for value in line.values)}" for line in curves)
    return f"{what} ({', '.join(f'{place:.0f}' for place in curves[0].at)}): {each}"


def picture(path: str, drawn: str) -> str:
    title = drawn.partition("<title>")[2].partition("</title>")[0]
    return f"![{title}]({path.removeprefix('docs/')})"


def setting(measured: Mapping[str, Any]) -> str:
    """On what it was measured."""
    versions, seeds = measured["versions"], ", ".join(map(str, measured["seeds"]))
    packages = ", ".join(f"{package} {versions[package]}" for package in ("torch", "transformers"))
    asked = next(one["n"] for letter in LETTERS if letter in measured for one in measured[letter]["differences"])
    return (
        f"Seeds {seeds}; differences over {asked} questions in all where nothing else is said. "
        f"{measured['machine']['system']}, {readme.where(measured['machine'])}, Python {versions['python']}, "
        f"{packages}; {measured['date']}. `make study` measures this anew, `make study ROW=a SEED=0` a part of it."
    )
