"""Row files that the study's arms learn from, beside those of the demo: written from the same films.

They lie in a row's folder, <demo>/<row>/<name>.jsonl, from where films are at ../films.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from longtake.cli.demo_stages import Plan
from longtake.data.pairs import sift_pairs
from longtake.errors import UserError
from longtake.log import read_jsonl
from longtake.log.files import write_jsonl, writing
from longtake.sim import judging, make, rows
from longtake.sim.scenes import KINDS, Scene, keyed

STYLED = 31  # key of what is drawn here; sim.make has its own
NOTED = 16  # frames of 64
THIRDS = ("hard", "medium", "easy")
SIZES = (64, 256)  # pairs to learn from, beside all there are


def written(folder: Path, name: str, found: Sequence[dict[str, Any]]) -> Path:
    """folder/name.jsonl."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_jsonl(folder / f"{name}.jsonl", found)
    return folder / f"{name}.jsonl"


def films(plan: Plan, split: str) -> list[tuple[str, str, Scene]]:
    """(id, path, story) of a split's films."""
    stories = make.scenes(plan.seed, split, plan.films()[split])
    return [(f"{split}-{n}", f"../films/{split}-{n}.mp4", story) for n, story in enumerate(stories)]


def annotated(plan: Plan, split: str) -> Path:
    """Chains of an annotator who sees NOTED frames a film, those that end right."""
    return make.make_annotated_rows(plan.out, plan.seed, plan.films(), split, NOTED)


def answers_alone(plan: Plan, folder: Path) -> Path:
    """The SFT films with answers that hold no step of reasoning."""
    every = films(plan, "sft")
    return written(folder, "answers", [rows.question_row(n, f, s, answer=rows.chain(s, "guess")) for n, f, s in every])


def one_chain(plan: Plan) -> list[dict[str, Any]]:
    """The SFT films with one chain each, in a style drawn by its share: so that rows differ in length."""
    found = []
    for number, (name, film, story) in enumerate(films(plan, "sft")):
        draw = keyed(plan.seed, STYLED, number)
        style = str(draw.choice(list(rows.STYLES), p=list(rows.STYLES.values())))
        found.append(rows.question_row(name, film, story, answer=rows.chain(story, style, draw, rows.SLIPS)))
    return found


def chains(plan: Plan, folder: Path) -> Path:
    """See one_chain."""
    return written(folder, "chains", one_chain(plan))


def chains_and_objects(plan: Plan, folder: Path) -> Path:
    """The same rows, and half as many on single events and objects, from sim.make.make_object_rows.

    A film has two there, on an event and on an object. Of every 16 films, all kinds among them, four give the first
    and four the second.
    """
    make.make_object_rows(plan.out, plan.seed, plan.films())
    extra = read_jsonl(plan.rows("objects"))
    picked = [row for place, row in enumerate(extra) if place // 2 // len(KINDS) % 4 == place % 2 * 2]
    return written(folder, "mixed", one_chain(plan) + picked)


def thirds(plan: Plan, folder: Path) -> dict[str, Path]:
    """RL's questions in three equal parts by `difficulty`'s pass rate; ties as they come in the file of questions."""
    sorted_by = [row for name in THIRDS for row in read_jsonl(plan.out / "difficulty" / f"{name}.jsonl")]
    sorted_by.sort(key=lambda row: (row["pass_rate"], int(row["id"].rpartition("-")[2])))
    size = len(sorted_by) // 3
    parts = [sorted_by[:size], sorted_by[size : len(sorted_by) - size], sorted_by[len(sorted_by) - size :]]
    return {name: written(folder, name, part) for name, part in zip(THIRDS, parts, strict=True)}


def fewer_pairs(source: Path, scores: Path, folder: Path, seed: int) -> dict[str, tuple[Path, Path, int]]:
    """By name ("64", …, "all"): pairs for a reward model, held-out ones among them; for DPO; how many are learned.

    source: all pairs, of which repeated ones are left out; scores: scores.jsonl of a reward model that learned from
    them, which tells what was held out. A smaller set is part of every larger one. Raises UserError where there are too
    few to compare.
    """
    usable, held = {pair.id for pair in sift_pairs(source)[0]}, {row["id"] for row in read_jsonl(scores)}
    every = [row for row in read_jsonl(source) if row["id"] in usable]
    kept = [row for row in every if row["id"] in held]
    learned = [row for row in every if row["id"] not in held]
    Random(seed).shuffle(learned)
    counts = {str(size): size for size in SIZES if size < len(learned)} | {"all": len(learned)}
    if not kept or not learned:
        why = f"{len(learned)} to learn from and {len(kept)} held out"
        raise UserError("too few pairs to compare", where=str(source), why=why)
    return {
        name: (
            written(folder, f"reward-{name}", kept + learned[:count]),
            written(folder, f"dpo-{name}", learned[:count]),
            count,
        )
        for name, count in counts.items()
    }


def captions_right(plan: Plan) -> dict[str, float]:
    """How good the narratives are alone: share of events that they tell right, and of films told without a mistake.

    Events from second 1 on; the second that a caption names decides which event it means.
    """
    truth = {Path(film).name: judging.narrative(story).split() for _, film, story in films(plan, "rl")}
    right, whole = [], []
    for row in read_jsonl(plan.out / "judge" / "narratives.jsonl"):
        words = " ".join(clip["caption"] for clip in row["clips"]).split()
        told = dict(pairwise(words))
        wanted = truth[Path(row["film"]).name]
        hits = [told.get(second) == event for second, event in zip(wanted[2::2], wanted[3::2], strict=True)]
        right += hits
        whole.append(all(hits))
    return {"events_right": sum(right) / len(right), "films_right": sum(whole) / len(whole)}
