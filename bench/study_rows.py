"""The rows of the study, (a) to (f): which arms, on what, and which of them are compared.

An arm is a folder of runs: learn/ (what it trained) and eval/. Everything can be killed and goes on where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench import study_arms as arms
from bench import study_cost as cost
from bench import study_measure as measure
from bench import study_sets as sets
from bench.study_measure import Found, Numbers
from longtake.cli import demo_feedback, demo_stages
from longtake.cli.demo import FRAMES
from longtake.cli.demo_stages import Plan
from longtake.data.pairs import sift_pairs
from longtake.eval import command as evaluation
from longtake.log import Log, read_json, read_jsonl
from longtake.recipes import difficulty as sorting
from longtake.recipes import dpo, grpo, ppo, reward, sft
from longtake.recipes import judge as judging

PAIR_STEPS = 60  # of row (d), whatever the number of pairs
DATA_STEPS = 300  # of row (e)
HARDNESS_STEPS = 60  # of row (f)
HELD_OUT = 0.25  # share of films whose pairs test the reward models of row (d)
START = "annotated"  # row (a)'s own; the start of the others is the demo's SFT model
BESIDE = "beside_"  # what was spent before an arm on what it learns from


How = tuple[Callable[[Any, Log], Any], Callable[..., Any]]  # a recipe, and its config but for `out`


@dataclass(frozen=True, slots=True)
class Bench:
    """One seed's demo and one row's folder in it. Example: Bench(plan, Path("out/study/0/a"), log, prompt=147.5)."""

    plan: Plan
    folder: Path
    log: Log
    prompt: float  # mean prompt tokens at 64 frames
    say: Callable[[str], None]

    def at(self, arm: str) -> Path:
        """Where the arm's evaluation lies: of those that the demo has trained in the demo."""
        demos = {"start": "sft", "with": "sft", "base": "base"}
        return self.plan.out / "eval" / demos[arm] if arm in demos else self.folder / arm / "eval"

    def places(self, *names: str) -> dict[str, Path]:
        return {name: self.at(name) for name in names}

    def learn(self, arm: str, how: How, *frames: int) -> Numbers:
        """Trains into <arm>/learn, evaluates; what it came to and took."""
        run, config = how
        out = self.folder / arm / "learn"
        run(config(out=out), self.log)
        evaluation.run(arms.examined(self.plan, out / "model", self.at(arm), *frames), self.log)
        numbers = measure.accuracy(self.at(arm)) | {"steps": read_json(out / "summary.json")["steps"]}
        numbers |= measure.took(cost.counted(out, self.prompt), out)
        told = f"{numbers['sampled']:.1%} sampled, {numbers['greedy']:.1%} greedy, {numbers['seconds']:.0f} s"
        self.say(f"{arm}: {told}")
        return numbers


def equal_compute(b: Bench) -> Found:
    """(a) From SFT on chains of an annotator who sees few frames, at the cost of GRPO."""
    plan, log = b.plan, b.log
    steps = {name: plan.steps(count) for name, count in cost.STEPS.items()}
    learned, more = sets.annotated(plan, "sft"), sets.annotated(plan, "rl")
    first = partial(arms.from_base, plan, learned, steps=plan.steps(cost.START_STEPS))
    found = Found({START: b.learn(START, (sft.run, first))})
    start = b.folder / START / "learn" / "model"
    difficulty, judge, score = (b.folder / name for name in ("difficulty", "judge", "reward"))
    sorting.run(demo_stages.sorting(plan, start, difficulty), log)
    judging.run(demo_feedback.comparing(plan, start, judge), log)
    pairs, batch, held_out = demo_feedback.pairs(plan, judge, log)
    epochs = demo_feedback.EPOCHS
    reward.run(arms.scoring(plan, pairs, start, score, epochs=epochs, batch=batch, held_out=held_out), log)
    trains: Mapping[str, How] = {
        "full": (sft.run, partial(arms.more_sft, plan, more, start)),
        "rejection": (sft.run, partial(arms.more_sft, plan, difficulty / "right.jsonl", start)),
        "grpo": (grpo.run, partial(arms.reinforced, plan, plan.rows("rl"), start)),
        "dpo": (dpo.run, partial(arms.preferring, plan, pairs, start)),
        "ppo": (ppo.run, partial(arms.rewarded, plan, score / "model", start)),
    }
    for name, (run, config) in trains.items():
        found.arms[name] = b.learn(name, (run, partial(config, steps=steps[name])))
    sampled, verdicts = cost.sorting(difficulty, b.prompt, found.arms[START]["length"]), cost.judging(judge)
    scores = cost.counted(score, b.prompt)
    found.arms["rejection"] |= measure.took(sampled, difficulty, before=BESIDE)
    found.arms["dpo"] |= measure.took(verdicts, judge, before=BESIDE)
    found.arms["ppo"] |= measure.took(verdicts + scores, judge, score, before=BESIDE)
    compared = [(name, START) for name in trains] + [(name, "full") for name in trains if name != "full"]
    found.differences += measure.differences(b.places(START, *trains), compared)
    told, _ = sift_pairs(pairs)
    found.facts = {"pairs": len(told), "pairs_from": told[0].source, "prompt": b.prompt}
    found.facts |= {"chains": len(read_jsonl(learned)), "more": len(read_jsonl(more))}
    return found


def reasoning(b: Bench) -> Found:
    """(b) With and without chains, by frames."""
    known = b.plan.out / "sft"
    steps = read_json(known / "summary.json")["steps"]
    rows = sets.answers_alone(b.plan, b.folder)
    without = b.learn("without", (sft.run, partial(arms.from_base, b.plan, rows, steps=steps)), *FRAMES)
    own = measure.accuracy(b.at("with")) | {"steps": steps} | measure.took(cost.counted(known, b.prompt), known)
    found = Found({"with": own, "without": without})
    for name in found.arms:
        found.arms[name] |= measure.by_frames(b.at(name))
    places = b.places("with", "without")
    found.differences += measure.slopes("with", "without", places)
    found.differences += measure.differences(places, [("with", "without")])
    return found


def narratives(b: Bench) -> Found:
    """(c) The demo's judge with and without the film's narrative."""
    folders = {"narrative": b.plan.out / "judge", "plain": b.plan.out / "judge_plain"}
    found = Found()
    names = ("accuracy_all", "accuracy_verdicts", "accuracy", "flip_rate", "slot_a", "pairs", "kept", "ties", "flipped")
    for name, folder in folders.items():
        summary = read_json(folder / "summary.json")
        found.arms[name] = {key: summary[key] for key in (*names, "accuracy_all_n") if summary[key] is not None}
        found.arms[name] |= measure.took(cost.judging(folder), folder)
    found.differences += measure.judges("narrative", "plain", folders)
    found.facts = sets.captions_right(b.plan)
    return found


def pairs_needed(b: Bench) -> Found:
    """(d) Reward models and DPO from 64, 256 and all pairs, in as many steps."""
    plan, log, steps = b.plan, b.log, b.plan.steps(PAIR_STEPS)
    source, batch, held_out = demo_feedback.pairs(plan, plan.out / "judge", log)
    held_out, start = max(held_out, HELD_OUT), arms.tuned(plan)
    folders = {"all": b.folder / "all" / "reward"}
    about = round((1 - held_out) * len(sift_pairs(source)[0]))  # are learned from; the split decides
    scoring = partial(arms.scoring, plan, start=start, batch=batch, held_out=held_out)
    first = scoring(rows=source, out=folders["all"], epochs=arms.epochs(steps, batch, about))
    made = reward.run(first, log)["steps"]
    sizes = sets.fewer_pairs(source, folders["all"] / "scores.jsonl", b.folder, plan.seed)
    found = Found({"start": measure.accuracy(b.at("start"))})
    for name, (to_score, to_prefer, count) in sizes.items():
        if name != "all":
            folders[name] = b.folder / name / "reward"
            own = arms.epochs(made, batch, count)
            reward.run(scoring(rows=to_score, out=folders[name], epochs=own), log)
        found.arms[name] = b.learn(name, (dpo.run, partial(arms.preferring, plan, to_prefer, start, steps=steps)))
        found.arms[name] |= measure.ranked(folders[name]) | {"pairs": count}
        found.arms[name] |= measure.took(cost.counted(folders[name], b.prompt), folders[name], before="reward_")
    fewest, *more = sizes
    found.differences += [measure.scored(name, fewest, folders) for name in more]
    compared = [(name, "start") for name in sizes] + [(name, fewest) for name in more]
    found.differences += measure.differences(b.places("start", *sizes), compared)
    return found


def data(b: Bench) -> Found:
    """(e) SFT from the base model: as it comes, short chains first, with extra rows."""
    chains, mixed = sets.chains(b.plan, b.folder), sets.chains_and_objects(b.plan, b.folder)
    plain = partial(arms.from_base, b.plan, chains, steps=b.plan.steps(DATA_STEPS))
    more = cost.BATCH * 3 // 2  # as many chains a step as the others
    configs: Mapping[str, Callable[..., Any]] = {
        "plain": plain,
        "curriculum": partial(plain, curriculum="length"),
        "objects": partial(arms.from_base, b.plan, mixed, steps=b.plan.steps(DATA_STEPS), batch=more),
    }
    found = Found({name: b.learn(name, (sft.run, config)) for name, config in configs.items()})
    compared = [(name, "plain") for name in configs if name != "plain"]
    found.differences += measure.differences(b.places(*configs), compared)
    return found


def hardness(b: Bench) -> Found:
    """(f) GRPO on the easiest, middle and hardest third of the questions and on all; and from the base model."""
    plan, steps = b.plan, b.plan.steps(HARDNESS_STEPS)
    every = plan.rows("rl")
    parts = {"all": every, **sets.thirds(plan, b.folder)}
    found = Found({"start": measure.accuracy(b.at("start")), "base": measure.accuracy(b.at("base"))})
    for name, rows in parts.items():
        config = partial(arms.reinforced, plan, rows, arms.tuned(plan), steps=steps)
        found.arms[name] = b.learn(name, (grpo.run, config))
    bare = partial(arms.reinforced, plan, every, arms.base(plan), steps=steps)
    found.arms["no_sft"] = b.learn("no_sft", (grpo.run, bare))
    compared = [(name, "start") for name in parts] + [(name, "all") for name in sets.THIRDS]
    compared += [("medium", "easy"), ("medium", "hard"), ("no_sft", "base")]
    found.differences += measure.differences(b.places("start", "base", "no_sft", *parts), compared)
    for name in sets.THIRDS:
        rates = [row["pass_rate"] for row in read_jsonl(parts[name])]
        found.facts[name] = {"questions": len(rates), "from": min(rates), "to": max(rates)}
    return found


ROWS: Mapping[str, Callable[[Bench], Found]] = {
    "a": equal_compute, "b": reasoning, "c": narratives, "d": pairs_needed, "e": data, "f": hardness,
}  # fmt: skip
