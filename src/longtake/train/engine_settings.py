"""The config block that says what answers: the trainer's own process, or an engine in another. No torch here."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from longtake.config import Settings
from longtake.errors import UserError

OF_TRAINING = {"cap", "gate"}
OWN = {  # what each kind reads beside `kind`
    "local": set[str](),
    "vllm": {"python", "url", "context", "memory", "patience"} | OF_TRAINING,
    "sglang": {"url", "patience"} | OF_TRAINING,
    "remote": {"url", "key_file", "max_pixels", "workers", "retries", "timeout"},
}


class Engine(Settings):
    """What answers. Another process computes with other kernels: what that changes is measured and corrected."""

    kind: Literal["local", "vllm", "sglang", "remote"] = Field(
        "local",
        description="local: the model itself; vllm: a process beside it; sglang: a server of it; remote: any endpoint",
    )
    python: Path | None = Field(None, description="vllm: Python of the environment that has it (make vllm)")
    context: int = Field(32768, ge=1, description="tokens of the longest prompt with its answer")
    memory: float = Field(
        4.0, gt=0, description="GiB of keys and values on a CPU; on a GPU, below 1, the share of its memory"
    )
    patience: float = Field(600.0, gt=0, description="seconds that it may take to start or to answer")
    cap: float = Field(
        3.0,
        ge=0,
        description="answers likelier by more than this factor under the trainer are left out; 0 = uncorrected",
    )
    gate: float = Field(
        0.05, gt=0, description="nats by which a token's log-probabilities may differ before the first step"
    )
    url: str | None = Field(
        None,
        description="vllm: where vllm_listen.py waits; sglang: of its server; remote: of the endpoint, up to /v1",
    )
    key_file: Path | None = Field(None, description="remote: file that holds its key (default: none is sent)")
    max_pixels: int = Field(512 * 512, ge=1, description="remote: pixels of a frame that is sent")
    workers: int = Field(8, ge=1, description="remote: requests at once")
    retries: int = Field(5, ge=0, description="remote: tries beyond the first of a request that failed")
    timeout: float = Field(120.0, gt=0, description="remote: seconds of one try")

    @model_validator(mode="after")
    def _has_effect(self) -> Engine:
        if idle := sorted(self.model_fields_set - {"kind"} - OWN[self.kind]):
            raise ValueError(f"{', '.join(idle)} has no effect on engine {self.kind}: leave it out, or set kind")
        if self.kind == "vllm" and (self.python is None) == (self.url is None):
            raise ValueError(
                "engine vllm needs either python, the one of its environment, as .venv-vllm/bin/python, or url, where "
                "vllm_listen.py waits, as tcp://gpu-1:7000"
            )
        if self.kind == "vllm" and self.url is not None and not re.fullmatch(r"tcp://[^/:]+:\d{1,5}", self.url):
            raise ValueError(f"engine vllm's url is like tcp://gpu-1:7000, got {self.url!r}")
        if self.kind in ("sglang", "remote") and not (self.url or "").startswith(("http://", "https://")):
            example = "http://localhost:8000/v1" if self.kind == "remote" else "http://localhost:30000"
            raise ValueError(f"engine {self.kind} needs url, as {example}, got {self.url!r}")
        return self

    def found(self) -> None:
        """Raises UserError, before anything takes time, where there is no such Python, and under several ranks."""
        from longtake.parallel.ranks import here

        if self.kind == "remote" and here().size > 1:
            why = "an endpoint computes elsewhere: ranks have nothing to share"
            raise UserError(
                "an endpoint for several ranks", where="--engine.kind", why=why, fix="start without torchrun"
            )
        if self.python is not None and not self.python.is_file():
            fix = "`make vllm` makes .venv-vllm/bin/python"
            raise UserError("there is no Python of vLLM", where=str(self.python), fix=fix)

    def trains(self, adapter: str) -> None:
        """Raises ValueError where its answers cannot be learned from, or it cannot act with the adapter."""
        if self.kind == "remote":
            raise ValueError("an endpoint gives text without tokens and log-probabilities: nothing to learn from")
        if self.kind != "local" and adapter == "alora":
            raise ValueError(
                f"engine {self.kind} cannot switch an adapter on in mid-sequence: alora needs engine local"
            )

    def answers(self) -> None:
        """Raises ValueError for settings that matter to training alone."""
        if idle := sorted(self.model_fields_set & OF_TRAINING):
            raise ValueError(f"{', '.join(idle)} has no effect where nothing is learned: leave it out")
