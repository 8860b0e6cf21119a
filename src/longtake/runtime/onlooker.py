"""What stands for a model where an endpoint answers: it says how large frames are and remembers what was asked."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import sqrt
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from longtake.data.frames import picked
from longtake.errors import UserError
from longtake.records import FramePolicy, Pick, Prompt, Question, Receipt


def sent(policy: FramePolicy, pick: Pick | None) -> FramePolicy:
    """The policy as an endpoint's frames are chosen by. Raises UserError for a budget, which nobody could keep."""
    if policy.budget is not None:
        why, fix = "an endpoint does not say what frames become", "leave the row's budget out, or give it nframes"
        raise UserError(f"a budget of {policy.budget} visual tokens cannot be kept", why=why, fix=fix)
    return picked(policy, pick)


NOWHERE = torch.zeros((3, 0), dtype=torch.int64)  # an endpoint's positions are its own


@dataclass(slots=True)
class Onlooker:
    """As much of protocols.Model as Films calls. Example: Films(Onlooker(262144), tier, None, quarantine)."""

    most: int  # pixels of a frame
    asked: dict[str, str] = field(default_factory=dict)  # texts by question id
    tokenizer: Any = field(default_factory=lambda: SimpleNamespace(unk_token_id=None, unk_token=None))
    temporal_patch: int = 1
    stills: bool = False

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Frames at their own size, or smaller: at most `most` pixels."""
        scale = min(1.0, sqrt(min(self.most, max_pixels or self.most) / (width * height)))
        return max(1, int(width * scale)), max(1, int(height * scale))

    def shown(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """All of uint8 [F, H, W, 3]."""
        return frames_FHWC

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """The question without token ids; its text stays in `asked`."""
        if self.asked.setdefault(question.id, question.text) != question.text:
            raise UserError(f"question {question.id} is asked with two texts", fix="give every row an id of its own")
        seen = None if receipt is None else replace(receipt, tokens=0)
        return Prompt(question.id, (), (), NOWHERE, features, seen)
