"""A running SGLang server as an engine: token ids or embeddings in, token ids and log-probabilities back.

Its native door `/generate` takes `input_ids`, or `input_embeds` for prompts whose visual places are already filled, and
`/update_weights_from_disk` new weights. A decoder with M-RoPE is not served: with embeddings it would count positions
as in plain text. Written after SGLang's documentation (docs.sglang.io: sampling parameters, native APIs); it cannot be
installed beside CPU torch, so it was only tried against a stand-in.

P prompt tokens, E model width, N prompts, G draws of each.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import torch

from longtake.engines.vllm_weights import export
from longtake.errors import UserError
from longtake.models.network import Network
from longtake.protocols import Model
from longtake.records import Answer, Draw, Group, Prompt
from longtake.runtime.inputs import fill
from longtake.runtime.rows import FeaturesOf

AT_ONCE = 32  # requests that the server batches
SEEDS = 2**31


class SglangEngine:
    """Answers by `python -m sglang.launch_server` started with the model's decoder (`open` writes it).

    Example: SglangEngine.open(model, "http://localhost:30000", folder, films.features, "sft-400", 600.0).
    """

    def __init__(self, url: str, folder: Path, features: FeaturesOf, patience: float) -> None:
        self.url, self.folder, self.features, self.patience = url.rstrip("/"), folder, features, patience
        self.weights = ""
        self._shelves = itertools.count()

    @classmethod
    def open(
        cls, model: Model, url: str, folder: Path, features: FeaturesOf, weights: str, patience: float
    ) -> SglangEngine:
        """Gives the server the model's weights, which lie in a folder that it can read too. Raises UserError."""
        assert isinstance(model, Network)
        if model.rope_rows != 1:
            why = f"{model.family} tells time and place by positions, which SGLang counts itself"
            raise UserError("SGLang takes no films of this model", why=why, fix="--engine.kind vllm, or local")
        engine = cls(url, folder / "sglang", features, patience)
        engine.load(model, weights)
        return engine

    def load(self, model: Model, version: str) -> None:
        """It answers with the model's weights from now on; nothing to do if it has that version. Raises UserError."""
        assert isinstance(model, Network)
        if version == self.weights:
            return
        shelf = (self.folder / f"weights-{next(self._shelves)}").resolve()
        shutil.rmtree(shelf, ignore_errors=True)
        shelf.mkdir(parents=True)
        export(model, shelf, model.net.dtype, model.text.config.max_position_embeddings)
        reply = self._post("/update_weights_from_disk", {"model_path": str(shelf)})
        if not reply.get("success"):
            why = str(reply.get("message", reply))[:300]
            fix = f"start it with --model-path {shelf}, then run the same command again"
            raise UserError("SGLang does not take the weights", where=self.url, why=why, fix=fix)
        self._model, self.weights = model, version
        for old in self.folder.glob("weights-*"):
            if old.resolve() != shelf:
                shutil.rmtree(old)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; see protocols.Engine. Raises UserError."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            waiting = [
                [pool.submit(self._one, shown, draw, max_tokens) for draw in own]
                for shown, own in zip(map(self._shown, prompts), draws, strict=True)
            ]
            found = [tuple(one.result() for one in own) for own in waiting]
        return [Group(prompt, answers) for prompt, answers in zip(prompts, found, strict=True)]

    def _shown(self, prompt: Prompt) -> dict[str, Any]:
        """Its token ids, or [P, E] embeddings where features fill some of its places."""
        if prompt.features is None:
            return {"input_ids": list(prompt.ids)}
        visual_P = torch.zeros(len(prompt.ids), dtype=torch.bool)
        for start, stop in prompt.visual:
            visual_P[start:stop] = True
        embed_PE, _ = fill(self._model, torch.tensor(prompt.ids), visual_P, self.features([prompt.features]))
        return {"input_embeds": embed_PE.float().tolist()}

    def _one(self, shown: Mapping[str, Any], draw: Draw, max_tokens: int) -> Answer:
        params = {
            "temperature": draw.temperature, "top_p": 1.0, "top_k": -1, "sampling_seed": draw.seed % SEEDS,
            "max_new_tokens": max_tokens, "stop_token_ids": list(self._model.end_ids), "skip_special_tokens": False,
        }  # fmt: skip
        reply = self._post("/generate", {**shown, "sampling_params": params, "return_logprob": True})
        try:
            about = reply["meta_info"]
            tokens = [(int(token), float(logprob)) for logprob, token, *_ in about["output_token_logprobs"]]
            finish = "stop" if about["finish_reason"]["type"] == "stop" else "length"
        except (KeyError, TypeError, ValueError) as error:
            why = f"no tokens in {json.dumps(reply)[:200]}"
            raise UserError("this is not SGLang's reply", where=self.url, why=why) from error
        ids = [token for token, _ in tokens]
        if not ids or (finish == "stop") != (ids[-1] in self._model.end_ids):
            why = f"it ended by {finish} with token {ids[-1] if ids else 'none'}"
            raise UserError("SGLang's answer does not end as it says", where=self.url, why=why)
        text = self._model.tokenizer.decode(ids[:-1] if finish == "stop" else ids, skip_special_tokens=False)
        return Answer(tuple(ids), tuple(own for _, own in tokens), text, finish, draw.seed, self.weights)

    def _post(self, path: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """The server's reply. Raises UserError."""
        body = json.dumps(content).encode()
        request = Request(self.url + path, body, {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=self.patience) as reply:
                found = json.loads(reply.read())
        except HTTPError as error:
            why = f"{error.code}: {error.read().decode(errors='replace')[:200]}"
            raise UserError("SGLang refuses", where=self.url + path, why=why) from error
        except (URLError, TimeoutError, ConnectionError) as error:
            why, fix = str(getattr(error, "reason", error)), "start its server, or correct --engine.url"
            raise UserError("SGLang does not answer", where=self.url, why=why, fix=fix) from error
        except ValueError as error:
            raise UserError("this is not SGLang's reply", where=self.url + path, why=str(error)[:200]) from error
        if not isinstance(found, dict):
            raise UserError("this is not SGLang's reply", where=self.url + path, why=f"it is a {type(found).__name__}")
        return found
