"""The demo's summary from a folder of files that a demo leaves, with numbers small enough to count by hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.world import write

from longtake.cli.demo_summary import blind, encode_counts, gain, one_model, summary
from longtake.data.cache import FrameTier
from longtake.eval.summary import Outcome
from longtake.eval.summary import summary as evaluation
from longtake.log import write_json_atomic
from longtake.records import Features, FramePolicy
from longtake.runtime.features import FeatureStore
from longtake.sim import make, rows
from longtake.sim.observer import ceiling
from longtake.sim.render import pictures, write_film
from longtake.sim.scenes import KINDS

COUNT = 8
SEED = 0
RIGHT = {"base": 1, "sft": 4, "grpo": 6}  # of 8 questions at 64 frames, sampled; one fewer at 32, one more greedy
CHAINS = {"base": 5, "sft": 20, "grpo": 30}  # tokens
BLIND = {"no_video": 2, "shuffled": 3, "one_frame": 1}


def outcomes(name: str, right: int, frames: int, heat: float, control: str = "") -> list[Outcome]:
    """The first `right` of the questions are answered right."""
    return [
        Outcome(
            f"test-{n}", KINDS[n % 4], 3, n < right, n != 7, CHAINS[name] + (n < 4), "text", "A", frames, heat, control
        )
        for n in range(COUNT)
    ]


def evaluated(folder: Path, name: str) -> list[Outcome]:
    found: list[Outcome] = []
    settings = [(frames, RIGHT[name] - (frames == 32), "") for frames in (32, 64)]
    settings += [(64, right, control) for control, right in BLIND.items()] if name == "grpo" else []
    for frames, right, control in settings:
        for way, heat, more in (("sampled", 1.0, 0), ("greedy", 0.0, 1)):
            own = outcomes(name, right + more, frames, heat, control)
            lines = [asdict(outcome) | {"receipt": None} for outcome in own]
            write(folder / "outcomes" / f"{frames}-{way}-{control or 'none'}.jsonl", lines)
            found += own
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demo of eight test films, three models, no training."""
    demo = tmp_path_factory.mktemp("demo")
    told = make.scenes(SEED, "test", COUNT)
    asked = [rows.question_row(f"test-{n}", f"../films/test-{n}.mp4", story) for n, story in enumerate(told)]
    write(demo / "rows" / "test.jsonl", asked)
    for name in RIGHT:
        found = evaluated(demo / "eval" / name, name)
        write_json_atomic(demo / "eval" / name / "eval.json", evaluation(name, found))
    for name, reason in (("base", "all steps made"), ("sft", "reached 0.85")):
        write_json_atomic(demo / name / "summary.json", {"reason": reason})
    write_json_atomic(demo / "difficulty" / "summary.json", {"medium": 3})
    tier = FrameTier(demo / "tier")
    for number in (0, 1):
        film = make.film_path(demo, "test", number)
        write_film(pictures(told[number]), film)
        tier.fill({film: [FramePolicy(frames=4)]}, lambda *_: (32, 32), workers=0)
    for tower, keys in (("one", ("a", "b")), ("two", ("c",))):
        store = FeatureStore(demo / "features", tower, torch.float32)
        store.put({key: Features(torch.zeros(1, 2, 3)) for key in keys})
    return demo


def test_all_that_a_demo_tells(folder: Path) -> None:
    found = summary(folder, SEED, {"films": 1.234, "sft": 5.0})
    assert found["seed"] == SEED
    assert found["seconds"] == {"films": 1.2, "sft": 5.0}
    for name, right in RIGHT.items():
        part = found[name]
        assert (part["sampled"], part["greedy"], part["n"]) == (right / 8, (right + 1) / 8, 8)
        assert part["by_frames"] == {
            "32": {"sampled": (right - 1) / 8, "greedy": right / 8, "n": 8},
            "64": {"sampled": right / 8, "greedy": (right + 1) / 8, "n": 8},
        }
        assert (part["chain_length"], part["format"]) == (CHAINS[name] + 0.5, 7 / 8)
    assert found["grpo"]["by_kind"] == {"spatial": 1.0, "temporal": 1.0, "goal": 0.5, "plot": 0.5}
    chance = (2 * 1 / 3 + 2 * 1 / 4 + 2 * 1 / 4 + 2 * 1 / 3) / 8
    assert found["blind"] == {name: right / 8 for name, right in BLIND.items()} | {"chance": pytest.approx(chance)}
    assert (found["films"], found["max_decodes_per_film"]) == (2, 1)
    assert (found["frame_sets"], found["max_encodes_per_set"]) == (3, 1)
    assert found["stopped"] == {"base": "all steps made", "sft": "reached 0.85"}
    assert found["difficulty"] == {"medium": 3}
    assert found["ceiling"]["8"] == ceiling(make.scenes(SEED, "test", COUNT), 8)


def test_where_the_gain_comes_from(folder: Path) -> None:
    found = gain(folder)
    for way in ("sampled", "greedy"):
        assert found[way]["difference"] == pytest.approx(2 / 8)
        low, high = found[way]["interval"]
        assert low < 2 / 8 < high
    assert found["longer_chains"] + found["same_length"] == pytest.approx(2 / 8)


def test_only_settings_without_a_control_are_the_models() -> None:
    entry: dict[str, Any] = {"by_kind": {}, "chain_length": 1.0, "format": 1.0, "n": 8}
    settings = [
        entry | {"frames": frames, "temperature": heat, "control": control, "accuracy": accuracy}
        for frames, heat, control, accuracy in (
            (64, 1.0, "", 0.5), (64, 0.0, "", 0.6), (64, 1.0, "shuffled", 0.1), (64, 0.0, "shuffled", 0.2),
        )
    ]  # fmt: skip
    assert (one_model(settings)["sampled"], one_model(settings)["greedy"]) == (0.5, 0.6)
    assert blind(settings) == {"shuffled": 0.1}


def test_a_set_of_frames_that_was_encoded_twice_is_counted_twice(tmp_path: Path) -> None:
    made = Features(torch.zeros(1, 2, 3))
    FeatureStore(tmp_path, "tower", torch.float32).put({"a": made, "b": made})
    FeatureStore(tmp_path, "tower", torch.float32).put({"b": made})
    assert encode_counts(tmp_path) == {"a": 1, "b": 2}


def test_a_film_that_was_decoded_twice_is_seen(folder: Path, tmp_path: Path) -> None:
    film, tier = make.film_path(folder, "test", 0), FrameTier(tmp_path)
    for frames in (4, 7):
        tier.fill({film: [FramePolicy(frames=frames)]}, lambda *_: (32, 32), workers=0)
    assert list(FrameTier(tmp_path).decodes().values()) == [2]
