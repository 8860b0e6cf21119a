"""vLLM as an engine: a process of its own, in an environment of its own, that reads the same features as we do.

A film goes to it once, as the features that our tower made, and a prompt as token ids: it sees no pixels and no text.
docs/vllm.md says what that rests on. P prompt tokens, N questions, G answers each, R tokens of an answer.
"""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from longtake.engines.vllm_link import Job, Link
from longtake.engines.vllm_reach import worker_at
from longtake.engines.vllm_weights import export
from longtake.errors import UserError
from longtake.models.network import Network
from longtake.protocols import Model
from longtake.records import Answer, Draw, Group, Prompt
from longtake.runtime.load import DTYPES
from longtake.runtime.rows import FeaturesOf

COLDEST, HOTTEST = 0.01, 2.0  # temperatures that vLLM takes as they are; and 0
GIB = 2**30


@dataclass(frozen=True, slots=True)
class Place:
    """Where vLLM runs, and what it may take. Example: Place(Path(".venv-vllm/bin/python"), Path("out/run"))."""

    worker: Path | str  # Python of vLLM's environment, or where vllm_listen.py waits, as "tcp://gpu-1:7000"
    folder: Path  # of the run: its subfolder vllm/ holds engine.log, and files on their way
    dtype: str = "auto"  # one of DTYPES that it computes in; auto = as the model does
    context: int = 32768  # tokens of the longest prompt with its answer
    memory: float = 4.0  # GiB of keys and values; on a GPU, below 1, the share of its memory that is taken in all
    patience: float = 600.0  # seconds that it may take to start, or be silent


def options(place: Place, model: Network) -> dict[str, Any]:
    """What vllm.LLM is given."""
    dtype = str(model.net.dtype).removeprefix("torch.") if place.dtype == "auto" else place.dtype
    taken: dict[str, Any] = {
        "dtype": "float32" if dtype == "float64" else dtype,  # vLLM has no float64
        "max_model_len": place.context,
        "logprobs_mode": "processed_logprobs",  # of the distribution that was sampled from
        "generation_config": "vllm",  # none of the checkpoint's penalties and limits
        "distributed_executor_backend": "uni",
        "disable_log_stats": True,
        "seed": 0,
    }
    if place.memory < 1:
        taken["gpu_memory_utilization"] = place.memory
    else:
        taken["kv_cache_memory_bytes"] = int(place.memory * GIB)
    if model.rope_rows == 1:
        return taken | {"enable_prompt_embeds": True}
    size = {"count": 1, "width": 64, "height": 64}  # of what vLLM tries its processor with at the start
    limits = {"video": size | {"num_frames": 2}, "image": size}
    return taken | {"enable_mm_embeds": True, "limit_mm_per_prompt": limits, "skip_mm_profiling": True}


class VllmEngine:
    """vLLM answering with a model's weights; see `open`. It ends with `close`, with its block, or with this Python.

    Example: with VllmEngine.open(model, Place(python, folder), films.features, "sft-400") as engine: …
    """

    def __init__(self, model: Network, link: Link) -> None:
        """Without weights as yet: `load` gives the first, and starts it."""
        self.link = link
        self.weights = ""  # version written on every answer
        self.strange = 0  # jobs of which it read other tokens than ours
        self.moved = 0  # jobs with temporal patches that it places one position off
        self._model = model
        self._shelves = itertools.count()

    @classmethod
    def open(
        cls,
        model: Model,
        place: Place,
        features: FeaturesOf,
        weights: str,
        say: Callable[[str], None] = lambda text: None,
    ) -> VllmEngine:
        """Starts it with the model's weights, whose version is `weights`; `features` gives those of handles.

        Raises UserError.
        """
        assert isinstance(model, Network)
        begin, folder = worker_at(place.worker), place.folder.absolute() / "vllm"
        link = Link(begin, str(place.worker), options(place, model), folder, features, place.patience, say)
        engine = cls(model, link)
        try:
            engine.load(model, weights)
        except BaseException:
            engine.close()
            raise
        return engine

    def __enter__(self) -> VllmEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it and takes away what it read; its log stays."""
        self.link.close()
        self.weights = ""

    def load(self, model: Model, version: str) -> None:
        """It answers with the model's weights from now on; nothing to do if it has that version. Raises UserError."""
        assert isinstance(model, Network)
        if version == self.weights:
            return
        before, shelf = self.link.shelf, self.link.folder / f"weights-{next(self._shelves)}"
        shutil.rmtree(shelf, ignore_errors=True)
        shelf.mkdir(parents=True)
        export(model, shelf, DTYPES[self.link.options["dtype"]], self.link.options["max_model_len"])
        self.link.load(shelf)
        self._model, self.weights = model, version
        if before is not None:
            shutil.rmtree(before)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; an answer depends on its own draw's seed alone, up to how vLLM rounds in batches.

        If it dies it is started again, once, for the prompts that are not answered yet. Raises UserError.
        """
        heats = {draw.temperature for own in draws for draw in own}
        if odd := [heat for heat in heats if heat and not COLDEST <= heat <= HOTTEST]:
            fix = f"one between {COLDEST} and {HOTTEST}, or 0 for the likeliest"
            raise UserError(f"vLLM does not sample at temperature {odd[0]:g}", fix=fix)
        same = {"max_tokens": max_tokens, "stop": list(self._model.end_ids)}
        jobs = [
            self._job("ask", prompt, (), max_tokens, same | {"draws": [[d.temperature, d.seed] for d in own]})
            for prompt, own in zip(prompts, draws, strict=True)
        ]
        replies = self._exchange(jobs)
        return [
            Group(prompt, tuple(self._answer(draw, one) for draw, one in zip(own, reply["found"], strict=True)))
            for prompt, own, reply in zip(prompts, draws, replies, strict=True)
        ]

    @torch.no_grad()
    def score(self, prompts: Sequence[Prompt], answers: Sequence[Sequence[Sequence[int]]]) -> list[list[list[float]]]:
        """[N][G][R] log-probabilities, at temperature 1, of the tokens of given answers. Raises UserError."""
        jobs = [
            self._job("score", prompt, ids, len(ids) + 1, {"tail": len(ids)})
            for prompt, own in zip(prompts, answers, strict=True)
            for ids in own
        ]
        found = iter(self._exchange(jobs))
        return [[next(found)["found"][0] for _ in own] for own in answers]

    @property
    def places(self) -> bool:
        """Whether its own model has a rule for positions (M-RoPE); else they are 0, 1, 2, …"""
        return self._model.rope_rows != 1

    def held(self, prompt: Prompt) -> Tensor:
        """The features [N, E] of the prompt's film, DeepStack levels side by side, as they reached it."""
        file = self.link.folder / "features-held.safetensors"
        self._exchange([self._job("held", prompt, (), 1, {"file": str(file)})])
        found = load_file(file)["features"]
        file.unlink()
        return found

    @torch.no_grad()
    def positions(self, prompt: Prompt) -> Tensor:
        """int64 [3, P] that it gives the prompt's tokens: by its model's own rule for M-RoPE, else 0, 1, 2, …"""
        return torch.tensor(self._exchange([self._job("positions", prompt, (), 1, {})])[0]["rows"])

    def _job(self, op: str, prompt: Prompt, tail: Sequence[int], more: int, content: dict[str, Any]) -> Job:
        """Raises UserError if prompt and `more` tokens are too long."""
        most = self.link.options["max_model_len"]
        if len(prompt.ids) + more > most:
            why = f"its {len(prompt.ids)} tokens and {more} of an answer are more than {most}"
            fix = "raise --engine.context, or show fewer frames"
            raise UserError(f"question {prompt.id} is too long for vLLM", why=why, fix=fix)
        sent = self._model.sent(prompt) if prompt.features is not None else None
        return Job(op, prompt, sent, tuple(tail), content)

    def _exchange(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The replies; counts, and says the first time, where it read what is not quite ours."""
        replies = self.link.exchange(jobs)
        for job, reply in zip(jobs, replies, strict=True):
            strange = "seen" in reply and reply["seen"] != [*job.prompt.ids, *job.tail]
            moved = job.sent is not None and job.sent.moved > 0
            if strange and not self.strange:
                self.link.say(f"vLLM reads other tokens than ours of question {job.prompt.id}; more are counted")
            if moved and not self.moved:
                self.link.say(f"vLLM places frames of question {job.prompt.id} one position off; more are counted")
            self.strange += strange
            self.moved += moved
        return replies

    def _answer(self, draw: Draw, found: dict[str, Any]) -> Answer:
        ids, ended = found["ids"], found["finish"] == "stop"
        if not all(map(math.isfinite, found["logprobs"])):
            why, fix = "its weights are damaged, or too large for their dtype", "try --dtype float32"
            raise UserError("vLLM computes no finite numbers", why=why, fix=fix)
        text = self._model.tokenizer.decode(ids[:-1] if ended else ids, skip_special_tokens=False)
        return Answer(tuple(ids), tuple(found["logprobs"]), text, found["finish"], draw.seed, self.weights)
