"""summary.json of a demo: the stages' files, gathered.

All but `seconds` is the same however often the demo was killed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open

from longtake.cli.demo import FRAMES
from longtake.data.cache import FrameTier
from longtake.data.rows import read_questions
from longtake.eval.summary import Outcome, paired
from longtake.log import read_json, read_jsonl
from longtake.report import compare
from longtake.report.files import Outcome as Answered
from longtake.sim import make
from longtake.sim.observer import ceiling

MODELS = ("base", "sft", "grpo")
FEEDBACK = ("dpo", "ppo")  # of `demo --full`


def summary(folder: Path, seed: int, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Accuracies are shares of all test questions.

    `by_kind`, `chain_length` and `format` are of sampled answers at 64 frames.
    """
    models = MODELS + tuple(name for name in FEEDBACK if (folder / "eval" / name / "eval.json").exists())
    results = {name: read_json(folder / "eval" / name / "eval.json")["settings"] for name in models}
    test = read_questions(folder / "rows" / "test.jsonl")
    decodes = FrameTier(folder / "tier").decodes()
    encodes = encode_counts(folder / "features")
    return {
        "seed": seed,
        "seconds": {stage: round(value, 1) for stage, value in seconds.items()},
        **{name: one_model(settings) for name, settings in results.items()},
        "blind": blind(results["grpo"]) | {"chance": sum(1 / len(question.options) for question in test) / len(test)},
        "ceiling": {str(n): ceiling(make.scenes(seed, "test", len(test)), n) for n in FRAMES},
        "films": len(decodes),
        "max_decodes_per_film": max(decodes.values()),
        "frame_sets": len(encodes),
        "max_encodes_per_set": max(encodes.values()),
        "stopped": {name: read_json(folder / name / "summary.json").get("reason", "") for name in ("base", "sft")},
        "difficulty": read_json(folder / "difficulty" / "summary.json"),
        "gain": gain(folder),
        **(feedback(folder) if models != MODELS else {}),
    }


def one_model(settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The numbers of one model's eval.json."""
    seen = {(entry["frames"], bool(entry["temperature"])): entry for entry in settings if not entry["control"]}
    most = max(frames for frames, _ in seen)
    best = seen[most, True]
    return {
        "sampled": best["accuracy"],
        "greedy": seen[most, False]["accuracy"],
        "by_kind": {kind: entry["accuracy"] for kind, entry in best["by_kind"].items()},
        "by_frames": {
            str(frames): {"sampled": entry["accuracy"], "greedy": seen[frames, False]["accuracy"], "n": entry["n"]}
            for (frames, sampled), entry in sorted(seen.items())
            if sampled
        },
        "chain_length": best["chain_length"],
        "format": best["format"],
        "n": best["n"],
    }


def feedback(folder: Path) -> dict[str, Any]:
    """What `demo --full` adds: how often the judge and the reward model are right.

    `with_context`, `without_context`: share of pairs with one right answer that the judge puts in the right order in
    both orders of asking, a pair that it did not keep counting half.
    """
    judge, plain = (read_json(folder / name / "summary.json") for name in ("judge", "judge_plain"))
    reward = read_json(folder / "reward" / "summary.json")
    return {
        "judge": {
            "with_context": judge["accuracy_all"], "without_context": plain["accuracy_all"],
            "flip_rate": judge["flip_rate"], "flip_rate_without": plain["flip_rate"],
            "kept": judge["kept"], "right_of_kept": judge["accuracy"], "pairs": judge["pairs"],
        },
        "reward_model": {name: reward[name] for name in ("accuracy", "n", "length_correlation")},
    }  # fmt: skip


def blind(settings: list[dict[str, Any]]) -> dict[str, float]:
    """Sampled accuracy under each control."""
    return {entry["control"]: entry["accuracy"] for entry in settings if entry["control"] and entry["temperature"]}


def gain(folder: Path) -> dict[str, Any]:
    """SFT to GRPO at 64 frames: sampled and greedy differences with 95 % intervals.

    Also the part of the sampled gain that comes from writing other chain lengths (report.compare.gain).
    """
    found: dict[str, Any] = {}
    for way in ("sampled", "greedy"):
        files = [folder / "eval" / name / "outcomes" / f"64-{way}-none.jsonl" for name in ("sft", "grpo")]
        before, after = (read_jsonl(file) for file in files)
        pair = paired(*([outcome(row) for row in rows] for rows in (before, after)))
        found[way] = {"difference": pair["difference"], "interval": pair["interval"]}
        if way == "sampled":
            split = compare.gain(*([answered(row) for row in rows] for rows in (before, after)))
            found["longer_chains"] = split.longer if split else 0.0
            found["same_length"] = split.same if split else found["sampled"]["difference"]
    return found


def outcome(row: dict[str, Any]) -> Outcome:
    return Outcome(**{key: value for key, value in row.items() if key != "receipt"})


def answered(row: dict[str, Any]) -> Answered:
    return Answered(row["id"], row["correct"], row["kind"], row["hops"], row["tokens"], row["text"])


def encode_counts(folder: Path) -> dict[str, int]:
    """How many packs hold each set of frames, over all towers that ever encoded into `folder`."""
    counts: dict[str, int] = {}
    for pack in sorted(folder.glob("*/*.safetensors")):
        with safe_open(pack, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 — it is no dict
                counts[key] = counts.get(key, 0) + 1
    return counts
