"""A family on an engine, with its films, rows and models: what tests.support_stages tries its stages on."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from tests import support_nets, world
from tests.world import World

from longtake.engines.vllm import VllmEngine
from longtake.log import Log, read_json, read_jsonl
from longtake.models.adapters import add_adapter
from longtake.runtime.load import load_model
from longtake.train.adapter_settings import Adapter
from longtake.train.engine_settings import Engine
from longtake.train.settings import Video

LORA = Adapter(kind="lora", rank=4, alpha=8.0)


class NotRun(Exception):
    """Nobody tried, and why."""


@dataclass(slots=True, frozen=True)
class Made:
    """A run that ended. Example: made.counts["features"]["made"]."""

    out: Path
    result: dict[str, Any]

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        return read_json(self.out / "run.json").get("counts", {})

    @property
    def notes(self) -> str:
        return str(read_json(self.out / "run.json").get("notes", ""))


@dataclass
class Trial:
    """A family on an engine. Example: Trial.open("qwen3_vl", "local", None, folder).run("sft", FULL, None)."""

    kind: str
    engine_name: str
    python: Path | None
    folder: Path
    url: str = ""
    number: int = 0
    live: VllmEngine | None = None

    @classmethod
    def open(cls, kind: str, engine: str, python: Path | None, folder: Path) -> Trial:
        folder.mkdir(parents=True)
        return cls(kind, engine, python, folder)

    @cached_property
    def world(self) -> World:
        """Films and rows; a network without eyes gets the same questions without the films."""
        made = world.build(self.folder / "world")
        if not self.sees:
            for name in ("rl", "sft"):
                world.write(made.rows(name), [without_film(row) for row in read_jsonl(made.rows(name))])
        return made

    @property
    def sees(self) -> bool:
        return self.kind != "qwen3"

    @cached_property
    def model(self) -> str:
        support_nets.save(self.kind, self.folder / "model")
        return str(self.folder / "model")

    @cached_property
    def lora(self) -> str:
        """The model with a LoRA that does something."""
        model = load_model(self.model)
        add_adapter(model, "lora", 4, 8.0)
        random = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for x in model.adapter.weights().values():
                x.copy_(torch.randn(x.shape, generator=random) * 0.1)
        (self.folder / "lora").mkdir()
        model.save(self.folder / "lora")
        return str(self.folder / "lora")

    @property
    def engine(self) -> Engine:
        """Its settings. Raises NotRun."""
        if self.engine_name == "sglang":
            raise NotRun("its server cannot be installed beside CPU torch")
        if self.engine_name == "vllm":
            if self.python is None:
                raise NotRun("no environment with vLLM was named")
            return Engine(kind="vllm", python=self.python, context=2048, memory=1.0)
        return Engine(kind="remote", url=self.url) if self.engine_name == "remote" else Engine()

    def video(self, features: Path | None = None) -> Video:
        return Video(frames=(4,), max_pixels=8192, features=features) if self.sees else Video()

    def out(self) -> Path:
        self.number += 1
        return self.folder / f"run-{self.number}"

    def run(self, stage: Any, **given: Any) -> Made:
        """One run of a stage's module."""
        out, log = self.out(), Log(stream=io.StringIO())
        try:
            return Made(out, stage.run(stage.Config(out=out, **given), log))
        finally:
            log.close()


def reason(error: ValueError) -> str:
    """What settings say of each other, without pydantic's frame."""
    if isinstance(error, ValidationError):
        if any(one["type"] == "extra_forbidden" for one in error.errors()):
            raise error  # a fault of ours
        return "; ".join(str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
    return str(error)


def without_film(row: Mapping[str, Any]) -> dict[str, Any]:
    turns = [
        turn | {"content": [part for part in turn["content"] if part["type"] == "text"]}
        if isinstance(turn["content"], list)
        else turn
        for turn in row["messages"]
    ]
    return {key: value for key, value in row.items() if key != "video"} | {"messages": turns}
