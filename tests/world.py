"""A handful of real films of the simulated world, their rows, and a tiny network that looks at them."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longtake.data.cache import FrameTier
from longtake.log import Log, read_jsonl
from longtake.log.files import write_jsonl
from longtake.models.qwen3_vl import Qwen3VL
from longtake.records import FramePolicy
from longtake.runtime.load import load_model
from longtake.sim import rows, tiny
from longtake.sim.make import scenes
from longtake.sim.render import pictures, write_film
from longtake.sim.scenes import Scene, keyed
from longtake.train.settings import Video

SEED = 3
FILMS = 8  # two of each kind
WIDTH = 24
FRAMES = (4, 8)  # what the tier holds of every film, beside one frame


@dataclass(frozen=True, slots=True)
class World:
    """Everything under one folder. Example: World(folder).rows("rl")."""

    folder: Path

    @property
    def model(self) -> str:
        """Folder of the untrained network."""
        return str(self.folder / "model")

    def film(self, number: int) -> Path:
        return self.folder / "films" / f"{number}.mp4"

    def rows(self, name: str) -> Path:
        """sft: three chains a film; rl: questions, each with its answer; base: clips and stories by `batch`."""
        return self.folder / "rows" / f"{name}.jsonl"

    def video(self, *frames: int, **more: Any) -> Video:
        """Films are decoded already; features go to the run's own folder, so that runs do not help each other."""
        return Video(frames=frames or FRAMES, max_pixels=tiny.PIXELS, tier=self.folder / "tier", **more)


def stories() -> list[Scene]:
    return scenes(SEED, "rl", FILMS)


def build(folder: Path) -> World:
    """Renders, writes rows, saves the network and decodes, all in this process."""
    world = World(folder)
    told = stories()
    for number, story in enumerate(told):
        write_film(pictures(story), world.film(number))
    films = [(f"../films/{number}.mp4", story) for number, story in enumerate(told)]
    asked = [rows.question_row(f"q{n}", film, story) for n, (film, story) in enumerate(films)]
    chains = [row for n, (film, s) in enumerate(films) for row in rows.sft_rows(f"q{n}", film, s, keyed(SEED, n))]
    write_jsonl(world.rows("rl"), asked)
    write_jsonl(world.rows("sft"), chains)
    write_jsonl(world.rows("base"), base(films))
    words = tiny.tokenizer()
    Qwen3VL(tiny.network(words, SEED, width=WIDTH, layers=2), words, tiny.PROCESSOR).save(folder / "model")
    policies = [FramePolicy(frames=n, max_pixels=tiny.PIXELS) for n in (*FRAMES, 1)]
    policies += [FramePolicy(fps=rate, start=0.0, end=2.0, max_pixels=tiny.PIXELS) for rate in (4.0,)]
    fit = load_model(folder / "model").fit
    FrameTier(folder / "tier").fill({world.film(n): policies for n in range(FILMS)}, fit, workers=0)
    return world


def base(films: list[tuple[str, Scene]]) -> list[rows.Row]:
    """Four batches of two clips and a story each."""
    made = []
    for batch in range(4):
        for film, story in films[2 * batch : 2 * batch + 2]:
            made.append(rows.caption_row(f"clip-{film[9:-4]}", film, story, 0, 2, 4.0) | {"batch": batch})
        made.append(rows.story_row(f"story-{batch}", films[batch][1]) | {"batch": batch, "weight": rows.STORY_WEIGHT})
    return made


def silent() -> Log:
    return Log(stream=io.StringIO())


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl without what a clock wrote, and without what a cache had left after a kill."""
    return [without(row, "seconds", "features_hit") for row in read_jsonl(folder / "metrics.jsonl")]


def summary(folder: Path) -> dict[str, Any]:
    """summary.json without the path of the model, which is the run's own."""
    return without(json.loads((folder / "summary.json").read_text()), "model")


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def weights(folder: Path | str) -> bytes:
    """The saved network, bit for bit."""
    return (Path(folder) / "model.safetensors").read_bytes()


def write(path: Path, written: Iterable[Mapping[str, Any]]) -> Path:
    write_jsonl(path, list(written))
    return path
