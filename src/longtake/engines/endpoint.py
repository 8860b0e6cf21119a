"""An OpenAI-compatible endpoint as an engine: frames as JPEG, several requests at once, text alone in return.

N prompts, G draws of each, F frames, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from longtake.engines.remote import Remote
from longtake.errors import UserError
from longtake.records import Answer, Draw, Group, Prompt

SEEDS = 2**31  # what endpoints take


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Answers by a model behind a URL. They have no token ids and no log-probabilities: nothing to learn from.

    Example: Endpoint(Remote(url, "Qwen3-VL"), frames, texts, workers=8).generate(prompts, draws, 512).
    """

    remote: Remote
    frames: Callable[[str], np.ndarray]  # handle → uint8 [F, H, W, 3]
    text: Callable[[str], str]  # question id → what is asked
    workers: int

    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups. Raises UserError where a request fails after all its tries."""
        with ThreadPoolExecutor(self.workers) as pool:
            waiting = [
                [pool.submit(self._one, prompt, draw, max_tokens) for draw in own]
                for prompt, own in zip(prompts, draws, strict=True)
            ]
            try:
                found = [tuple(one.result() for one in own) for own in waiting]
            except BaseException:
                self.remote.stop.set()  # nobody waits for another try
                pool.shutdown(cancel_futures=True)
                raise
        return [Group(prompt, answers) for prompt, answers in zip(prompts, found, strict=True)]

    def _one(self, prompt: Prompt, draw: Draw, max_tokens: int) -> Answer:
        pictures, said = [], ""
        if prompt.features is not None and prompt.receipt is not None:
            pictures = [jpeg(frame) for frame in self.frames(prompt.features)]
            said = shown(prompt.receipt.seconds)
        heard = self.remote.chat(
            self.text(prompt.id), pictures, max_tokens, said=said, temperature=draw.temperature, seed=draw.seed % SEEDS
        )
        if heard.error:
            tries = f"{heard.calls} tries, the last: {heard.error}"
            fix = "run the same command again when it answers: what was answered is kept"
            raise UserError("the endpoint does not answer", where=self.remote.url, why=tries, fix=fix)
        finish = "length" if heard.finish == "length" else "stop"
        return Answer((), (), heard.text, finish, draw.seed, self.remote.model)


def shown(seconds: Sequence[float]) -> str:
    """What is said of the frames of a film, before them."""
    times = ", ".join(f"{second:.1f}" for second in seconds)
    return f"A video, shown by {len(seconds)} of its frames, at {times} seconds:"


def jpeg(frame_HWC: np.ndarray) -> bytes:
    """A uint8 RGB frame as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(frame_HWC).save(file, format="JPEG", quality=90)
    return file.getvalue()
