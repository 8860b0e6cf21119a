"""Films and rows of a demo on disk: the same seed gives the same bytes, whatever the number of workers or kills.

films/<split>-<n>.mp4      kinds in turn
rows/base.jsonl            clip captions and stories in words, in curriculum order, on films of split sft
rows/sft.jsonl             three chains a film
rows/rl.jsonl  gate.jsonl  test.jsonl      questions; every split has films of its own
rows/judge.jsonl           what the stand-in for a judge learns, on films of split sft and on stories in words
rows/judge_gate.jsonl      pairs to judge, one a film of split gate
rows/prompts.yaml          the words that judge is asked in
rows/annotated-<split>.jsonl     chains of an annotator who sees few frames, those that end right
rows/objects.jsonl         extra data: short questions on single events and objects, on films of split sft
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from pathlib import Path

from longtake.log.files import write_json_atomic, write_jsonl, writing
from longtake.records import FramePolicy
from longtake.sim import judging, objects, rows
from longtake.sim.render import pictures, write_film
from longtake.sim.scenes import KINDS, Scene, keyed, scene

SPLITS = ("sft", "rl", "gate", "test")
STORIES = len(SPLITS)  # key of the stories told in words: no film has them
CHAINS, CLIPS, JUDGED, OBJECTS, GATED, PAIRED = range(10, 16)  # keys of what is drawn for rows; JUDGED also of stories


def scenes(seed: int, split: str, count: int) -> list[Scene]:
    """The stories of a split."""
    return [scene(KINDS[i % len(KINDS)], keyed(seed, SPLITS.index(split), i)) for i in range(count)]


def film_path(folder: Path, split: str, number: int) -> Path:
    return folder / "films" / f"{split}-{number}.mp4"


def make_films(
    folder: Path, seed: int, counts: Mapping[str, int], workers: int, progress: Callable[[int, int], None]
) -> int:
    """Renders what is missing of all splits; returns how many films there are."""
    jobs = [(film_path(folder, split, n), seed, split, n) for split in SPLITS for n in range(counts[split])]
    missing = [job for job in jobs if not job[0].exists()]
    progress(len(jobs) - len(missing), len(jobs))
    with writing(folder / "films"), ProcessPoolExecutor(workers, get_context("spawn"), _ready) as pool:
        for done, _ in enumerate(pool.map(_film, missing, chunksize=16), len(jobs) - len(missing) + 1):
            progress(done, len(jobs))
    return len(jobs)


def _ready() -> None:
    """A process that renders: Ctrl-C is its parent's to handle, and if that is killed it must not wait for ever."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None, "a spawned process has one"
    parent.join()
    os._exit(1)


def _film(job: tuple[Path, int, str, int]) -> None:
    path, seed, split, number = job
    write_film(pictures(scene(KINDS[number % len(KINDS)], keyed(seed, SPLITS.index(split), number))), path)


def _told(seed: int, split: str, counts: Mapping[str, int]) -> list[tuple[str, Scene]]:
    """A split's films as rows name them, each with its story."""
    return [(f"../films/{split}-{n}.mp4", story) for n, story in enumerate(scenes(seed, split, counts[split]))]


def make_rows(folder: Path, seed: int, counts: Mapping[str, int], base_steps: int) -> None:
    """Writes the five row files."""
    with writing(folder / "rows"):
        (folder / "rows").mkdir(parents=True, exist_ok=True)
    for split in ("rl", "gate", "test"):
        asked = [rows.question_row(f"{split}-{n}", film, s) for n, (film, s) in enumerate(_told(seed, split, counts))]
        write_jsonl(folder / "rows" / f"{split}.jsonl", asked)
    films = _told(seed, "sft", counts)
    chains = [
        row for n, (film, s) in enumerate(films) for row in rows.sft_rows(f"sft-{n}", film, s, keyed(seed, CHAINS, n))
    ]
    write_jsonl(folder / "rows" / "sft.jsonl", chains)
    draw = keyed(seed, CLIPS)
    write_jsonl(folder / "rows" / "base.jsonl", rows.base_rows(films, seed, STORIES, base_steps, draw))


def make_judge_rows(folder: Path, seed: int, counts: Mapping[str, int], steps: int) -> None:
    """Writes judge.jsonl, judge_gate.jsonl and prompts.yaml."""
    gate = [
        judging.gate_row(f"gate-{n}", film, s, keyed(seed, GATED, n))
        for n, (film, s) in enumerate(_told(seed, "gate", counts))
    ]
    write_json_atomic(folder / "rows" / "prompts.yaml", judging.PROMPTS)  # JSON is YAML
    write_jsonl(folder / "rows" / "judge_gate.jsonl", gate)
    write_jsonl(folder / "rows" / "judge.jsonl", judging.judge_rows(_told(seed, "sft", counts), seed, JUDGED, steps))


def make_annotated_rows(folder: Path, seed: int, counts: Mapping[str, int], split: str, frames: int) -> Path:
    """Writes annotated-<split>.jsonl; the annotator sees `frames` a film."""
    policy, told = FramePolicy(frames=frames), _told(seed, split, counts)
    found = [rows.annotated_row(f"{split}-{n}", film, story, policy) for n, (film, story) in enumerate(told)]
    file = folder / "rows" / f"annotated-{split}.jsonl"
    write_jsonl(file, [row for row in found if row])
    return file


def make_object_rows(folder: Path, seed: int, counts: Mapping[str, int]) -> None:
    """Writes objects.jsonl."""
    asked = [
        row
        for n, (film, s) in enumerate(_told(seed, "sft", counts))
        for row in objects.object_rows(f"object-{n}", film, s, keyed(seed, OBJECTS, n))
    ]
    write_jsonl(folder / "rows" / "objects.jsonl", asked)


def make_pairs(folder: Path, seed: int, counts: Mapping[str, int]) -> Path:
    """Writes pairs.jsonl, a right and a wrong answer to every question of split rl: what a perfect judge would keep."""
    pairs = []
    for number, (film, story) in enumerate(_told(seed, "rl", counts)):
        right, wrong = (judging.written(story, ok, keyed(seed, PAIRED, number)) for ok in (True, False))
        row = rows.question_row(f"rl-{number}", film, story)
        prompt = row.pop("messages")
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in (right, wrong))
        pairs.append(row | {"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": "simulator"})
    write_jsonl(folder / "rows" / "pairs.jsonl", pairs)
    return folder / "rows" / "pairs.jsonl"
