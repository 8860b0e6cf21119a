"""The top of the page: what was run on what, and one honest sentence of result made from the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from longtake.report import words
from longtake.report.against import Headline
from longtake.report.charts import smooth
from longtake.report.compare import Change
from longtake.report.files import Difficulty, JudgeFile, PairsFile, RewardFile, Run, SummaryFile
from longtake.report.models import shown
from longtake.report.results import Results
from longtake.report.training import pass_rates

FELL = 0.02  # a change of less than this is not worth a word
CLEAR = 1.15  # chains count as longer from this ratio on
MOSTLY, PARTLY = 2 / 3, 1 / 3  # share of the sampled gain that greedy decoding shares


@dataclass(frozen=True, slots=True)
class Tile:
    """A key number. Example: Tile("sampled accuracy", "52 %", "86 %", "64 frames, n = 600")."""

    label: str
    before: str  # "" = only one value
    after: str
    note: str


@dataclass(frozen=True, slots=True)
class Part:
    """A stage on the ribbon of time."""

    name: str
    seconds: float
    share: float
    place: int


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the table of stages."""

    run: Run
    model: str
    rows: str
    seed: str
    seconds: str
    machine: str


@dataclass(frozen=True, slots=True)
class Head:
    title: str
    lead: str
    status: str  # "" if every stage is done
    tiles: tuple[Tile, ...]
    parts: tuple[Part, ...]
    total: str
    facts: tuple[Fact, ...]
    setting: str  # model, seed, machine, day in one line


def head(runs: Sequence[Run], found: Results | None, summary: SummaryFile | None) -> Head:
    """Everything the head of the page says."""
    facts = tuple(_fact(run) for run in runs)
    spent = _spent(runs, summary)
    total = sum(spent.values())
    stages = list(dict.fromkeys(run.file.stage for run in runs if run.name or len(runs) == 1))
    return Head(
        title=" → ".join(stages) if len(stages) < 7 else f"{len(runs)} runs",
        lead=lead(runs, found),
        status=_status(runs),
        tiles=_tiles(found) if found else (),
        parts=tuple(
            Part(label.replace("_", " "), value, value / total, i) for i, (label, value) in enumerate(spent.items())
        )
        if total > 0
        else (),
        total=words.seconds(total) if total > 0 else "",
        facts=facts,
        setting=" · ".join(part for part in _setting(runs, facts, summary) if part),
    )


def lead(runs: Sequence[Run], found: Results | None) -> str:
    """The sentence of result: from an evaluation if there is one, else from the last stage itself."""
    if found:
        return _several(found) if found.rivals else _tested(found.main.headline, found)
    for run in reversed(runs):
        if isinstance(run.summary, Difficulty) and (bars := pass_rates(run.summary)):
            never, always = bars[0].share, bars[-1].share
            asked = words.plural(sum(bar.n for bar in bars), "question")
            times = words.plural(len(bars) - 1, "time")
            between = words.percent(max(0.0, 1 - always - never))
            return (
                f"Of {asked} answered {times} each, {words.percent(always)} were always right, {words.percent(never)} "
                f"never, and {between} in between."
            )
        if told := _heard(run):
            return told
        table = {line.name: line.points for line in run.curves}
        gate = table.get("accuracy") if run.file.stage == "sft" else None
        if gate:
            return (
                f"{run.label}: held-out greedy accuracy is {words.percent(gate[-1][1])} after step {gate[-1][0]:.0f}."
            )
        for name in ("accuracy", "reward", "loss"):
            if len(table.get(name, ())) > 1:
                line = smooth(table[name], max(1, len(table[name]) // 10))
                say = words.percent if name == "accuracy" else words.number
                steps = words.plural(len(line), "step")
                told = f"{name} in training went from {say(line[0][1])} to {say(line[-1][1])} over {steps}"
                return f"{run.label}: {told}. No evaluation was run, so this is no result yet."
    return "No step has been written yet."


def _heard(run: Run) -> str:
    """The sentence of a stage that makes or learns preferences; "" where it has no result yet."""
    found = run.summary
    if isinstance(found, JudgeFile) and found.pairs:
        text = f"Of {words.plural(found.pairs, 'pair')} of answers judged, {words.count(found.kept)} were kept"
        if found.flip_rate is not None:
            text += f"; {words.percent(found.flip_rate)} flipped with the order"
        if found.accuracy is not None:
            text += f"; of {words.count(found.accuracy_n)} where the truth is known {words.percent(found.accuracy)}"
            text += " were judged rightly"
        return f"{text}."
    if isinstance(found, RewardFile | PairsFile) and found.accuracy is not None and found.n:
        what = "The reward model" if isinstance(found, RewardFile) else f"{run.label}: the model"
        pairs = words.plural(found.n, "held-out pair")
        return f"{what} puts the better answer first in {words.percent(found.accuracy)} of {pairs}."
    return ""


def _tested(line: Headline, found: Results) -> str:
    rows = [row for row in (line.sampled, line.greedy) if row]
    asked = f"{shown(line.frames)}, {words.plural(line.n, 'question')}"
    told = []
    for i, row in enumerate(rows):
        name = f"{row.label} accuracy" if i == 0 else row.label
        value = f"{words.percent(row.before.value)} to " if row.before else ""
        verb = ("went from " if i == 0 else "from ") if row.before else "is "
        told.append(f"{name} {verb}{value}{words.percent(row.after.value)}")
    text = ", ".join(told)
    was, now = line.length
    if found.before and was and now:
        text += f"; chains {_moved(was, now)} {was:.0f} to {now:.0f} tokens"
    elif now:
        text += f", with chains of {now:.0f} tokens"
    return f"{text[:1].upper()}{text[1:]} ({asked})."


def _several(found: Results) -> str:
    """The sentence of several models trained from one."""
    models, line = (found.main, *found.rivals), found.main.headline
    told = []
    for how in ("sampled", "greedy"):
        rows = [(one.label, one.headline.sampled if how == "sampled" else one.headline.greedy) for one in models]
        known = [(label, row) for label, row in rows if row]
        values = words.listed([f"{words.percent(row.after.value)} with {label}" for label, row in known])
        if known and (first := known[0][1].before):
            values = f"went from {words.percent(first.value)} to {values}"
        if known:
            told.append(f"{how} accuracy {values}")
    asked = f"{shown(line.frames)}, {words.plural(line.n, 'question')}"
    text = "; ".join(told)
    return f"{text[:1].upper()}{text[1:]} ({asked})."


def _moved(was: float, now: float) -> str:
    return "grew from" if now > CLEAR * was else "shrank from" if was > CLEAR * now else "stayed near: from"


def source(found: Results) -> str:
    """Where the gain comes from, in a sentence; "" unless both ways of answering were tested before and after."""
    line, gain = found.main.headline, found.main.gain
    sampled, greedy = _delta(line.sampled), _delta(line.greedy)
    if sampled is None or greedy is None or line.sampled is None:
        return ""
    sure = line.sampled.delta
    if sure and sure.low <= 0 <= sure.high:
        return "The difference is within chance: no clear change."
    if sampled <= 0:
        return "The model got worse when sampled."
    shared = greedy / sampled
    both = f"{words.points(greedy)} of {words.points(sampled)} points"
    if greedy < -FELL:
        text = "The gain is sharpening, paid for by a fall in greedy accuracy"
    elif shared >= MOSTLY:
        text = f"Greedy decoding shares {both}: mostly new skill"
    elif shared >= PARTLY:
        text = f"Greedy decoding shares {both}: part new skill, part sharpening"
    else:
        text = f"Greedy decoding shares only {both}: mostly sharpening, little new skill"
    if gain and gain.longer > FELL:
        lengths = "longer chains" if (line.length[1] or 0) > (line.length[0] or 0) else "shorter chains"
        points = words.points(gain.longer)
        text += f". {points} points come from writing {lengths}, which were right more often before"
    return f"{text}."


def _delta(row: Change | None) -> float | None:
    return row.after.value - row.before.value if row and row.before else None


def _tiles(found: Results) -> tuple[Tile, ...]:
    """Of one model sampled, greedy and length; of several the first of these."""
    line = found.main.headline
    rows = [(f"{row.label} accuracy", row) for row in (line.sampled, line.greedy) if row]
    if found.rivals:
        first = [(one.label, one.headline.sampled or one.headline.greedy) for one in (found.main, *found.rivals)]
        rows = [(f"{row.label} accuracy, {label}", row) for label, row in first if row]
    tiles = []
    for label, row in rows:
        note = f"95{words.THIN}%: {words.percent(row.after.low)} to {words.percent(row.after.high)}"
        if row.delta:
            low, high = words.points(row.delta.low), words.points(row.delta.high)
            note = f"{words.points(row.delta.value)} points ({low} to {high})"
        before = words.percent(row.before.value) if row.before else ""
        tiles.append(Tile(label, before, words.percent(row.after.value), note))
    was, now = line.length
    if now and not found.rivals:
        right = f"format right: {words.percent(line.format[1])}" if line.format[1] is not None else "tokens"
        tiles.append(Tile("chain length", f"{was:.0f}" if was else "", f"{now:.0f}", right))
    blind = next((row for row in found.blind if row.label.startswith("no film")), None)
    if blind:
        chance = f"chance: {words.percent(found.chance)}" if found.chance is not None else "chance not known"
        tiles.append(Tile("without the film", "", words.percent(blind.estimate.value), chance))
    return tuple(tiles)


def _spent(runs: Sequence[Run], summary: SummaryFile | None) -> dict[str, float]:
    """Seconds by stage: as the summary says, else as the stages' phases add up to."""
    spent = summary.seconds if summary and summary.seconds else None
    spent = spent or {run.label: sum(run.file.seconds.values()) for run in runs if run.name or len(runs) == 1}
    return {name: value for name, value in spent.items() if value > 0}


def _status(runs: Sequence[Run]) -> str:
    """Runs that have not ended well. A folder of runs is still "running" while it writes its last file, this page."""
    told = [run for run in runs if run.name or len(runs) == 1 or run.file.status != "running"]
    unfinished = [
        f"{run.name or run.label} is {run.file.status or 'of unknown status'}"
        for run in told
        if run.file.status != "done"
    ]
    return f"{'; '.join(unfinished)}." if unfinished else ""


def _fact(run: Run) -> Fact:
    config, machine = run.file.config, run.file.machine
    gpus = machine.get("gpus") or []
    box = [str(machine.get("system", ""))]
    if "processors" in machine:
        box.append(words.plural(int(machine["processors"]), "processor"))
    if "memory_gib" in machine:
        box.append(f"{machine['memory_gib']} GiB")
    if "gpus" in machine:
        box.append(words.listed([str(gpu) for gpu in gpus]) or "no GPU")
    return Fact(
        run,
        str((run.eval.model if run.eval else "") or config.get("model") or ""),
        str(config.get("rows") or ""),
        str(config.get("seed", "")),
        words.seconds(sum(run.file.seconds.values())) if run.file.seconds else "",
        ", ".join(part for part in box if part),
    )


def _setting(runs: Sequence[Run], facts: Sequence[Fact], summary: SummaryFile | None) -> list[str]:
    seeds = sorted({fact.seed for fact in facts} - {""})
    seed = str(summary.seed) if summary and summary.seed is not None else seeds[0] if len(seeds) == 1 else ""
    machines = list(dict.fromkeys(fact.machine for fact in facts if fact.machine))
    versions = runs[-1].file.versions
    named = [f"{name} {versions[name]}" for name in ("longtake", "torch", "transformers") if versions.get(name)]
    model = runs[0].file.config.get("model") if len(runs) == 1 else ""
    return [
        str(model or ""),
        f"seed {seed}" if seed else "",
        runs[0].file.started[:10],
        *machines[:1],
        ", ".join(named),
    ]
