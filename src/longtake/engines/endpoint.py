"""An OpenAI-compatible endpoint as an engine: frames as JPEG, several requests at once, text alone in return.

N prompts, G draws of each, F frames, H height, W width.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import numpy as np
from PIL import Image

from longtake.engines.remote import Remote
from longtake.errors import UserError
from longtake.log.files import append_jsonl, read_jsonl
from longtake.records import Answer, Draw, Group, Prompt

SEEDS = 2**31  # what endpoints take


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Answers by a model behind a URL. They have no token ids and no log-probabilities: nothing to learn from.

    Every answer is kept in `file` at once: what was answered is not asked again, whenever the run ends.
    Example: Endpoint(Remote(url, name), frames, texts, 8, folder / "answers.jsonl").generate(prompts, draws, 512).
    """

    remote: Remote
    frames: Callable[[str], np.ndarray]  # handle → uint8 [F, H, W, 3]
    text: Callable[[str], str]  # question id → what is asked
    workers: int
    file: Path
    kept: dict[str, Answer] = field(default_factory=dict)  # by what was asked
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        for row in read_jsonl(self.file) if self.file.exists() else []:
            self.kept[row["key"]] = Answer(
                (), (), row["text"], row["finish"], row["seed"], row["model"], told=row["told"]
            )

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
        key = f"{prompt.id} {prompt.features} {draw.temperature} {draw.seed} {max_tokens}"
        if key in self.kept:
            return self.kept[key]
        pictures, said = [], ""
        if prompt.features is not None and prompt.receipt is not None:
            pictures = [jpeg(frame) for frame in self.frames(prompt.features)]
            said = shown(prompt.receipt.seconds)
        heard = self.remote.chat(
            self.text(prompt.id), pictures, max_tokens,
            said=said, temperature=draw.temperature, seed=draw.seed % SEEDS, empty=True,
        )  # fmt: skip
        if heard.error:
            what, why = (
                f"the endpoint does not answer question {prompt.id}",
                f"{heard.calls} tries, the last: {heard.error}",
            )
            fix = "run the same command again when it answers; what was answered is kept"
            raise UserError(what, where=self.remote.url, why=why, fix=fix)
        finish = "length" if heard.finish == "length" else "stop"
        answer = Answer((), (), heard.text, finish, draw.seed, self.remote.model, told=heard.tokens_out)
        row = {"key": key, "text": answer.text, "finish": finish, "seed": draw.seed, "model": self.remote.model}
        with self.lock:
            self.kept[key] = answer
            append_jsonl(self.file, row | {"told": answer.told})
        return answer


def shown(seconds: Sequence[float]) -> str:
    """What is said of the frames of a film, before them."""
    times = ", ".join(f"{second:.1f}" for second in seconds)
    return f"A video, shown by {len(seconds)} of its frames, at {times} seconds:"


def jpeg(frame_HWC: np.ndarray) -> bytes:
    """A uint8 RGB frame as a JPEG file."""
    file = io.BytesIO()
    Image.fromarray(frame_HWC).save(file, format="JPEG", quality=90)
    return file.getvalue()
