"""The config block that says what answers: the trainer's own process, or an engine in another. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from longtake.config import Settings

OWN = {  # what each kind reads beside `kind`
    "local": set[str](),
    "vllm": {"python", "context", "memory", "patience", "cap", "gate"},
    "sglang": {"url", "patience", "cap", "gate"},
}


class Engine(Settings):
    """What answers. Another process computes with other kernels: what that changes is measured and corrected."""

    kind: Literal["local", "vllm", "sglang"] = Field(
        "local",
        description="local: the model itself, one prefill for rollout and training; others: a process beside it",
    )
    python: Path | None = Field(None, description="vllm: Python of the environment that has it (make .venv-vllm/ready)")
    url: str | None = Field(None, description="sglang: where its server answers, as http://localhost:30000")
    context: int = Field(32768, ge=1, description="tokens of the longest prompt with its answer")
    memory: float = Field(
        4.0, gt=0, description="GiB of keys and values on a CPU; on a GPU, below 1, the share of its memory"
    )
    patience: float = Field(600.0, gt=0, description="seconds that it may take to start")
    cap: float = Field(
        3.0,
        ge=0,
        description="answers likelier by more than this factor under the trainer are left out; 0 = uncorrected",
    )
    gate: float = Field(
        0.05, gt=0, description="nats by which a token's log-probabilities may differ before the first step"
    )

    @model_validator(mode="after")
    def _has_effect(self) -> Engine:
        if idle := sorted(self.model_fields_set - {"kind"} - OWN[self.kind]):
            raise ValueError(f"{', '.join(idle)} has no effect on engine {self.kind}: leave it out, or set kind")
        if self.kind == "vllm" and self.python is None:
            raise ValueError("engine vllm needs python: the one of its environment, as .venv-vllm/bin/python")
        if self.kind == "sglang" and self.url is None:
            raise ValueError("engine sglang needs url: start its server, then name it")
        return self
