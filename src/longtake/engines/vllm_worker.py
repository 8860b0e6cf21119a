"""Runs under the Python that has vLLM and does there what engines.vllm_link asks; imports nothing of longtake.

Messages are lines of JSON, from stdin and to what stdout was at the start; whatever vLLM prints goes to stderr, which
is a file. Tensors come as safetensors files. The end of stdin ends the process, whatever it is doing.

P prompt tokens, N visual tokens, E numbers of a visual token.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Any

# what torchrun says to a rank, which this process is not, whoever started it
RANKS = ("RANK", "LOCAL_RANK", "GROUP_", "ROLE_", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_")
BEAT = 1.0  # seconds between signs of life while requests are computed


class Pipe:
    """Lines of JSON with whoever started this process. Takes stdin and stdout away from everybody else."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        self._in = os.fdopen(os.dup(0), "r", encoding="utf-8")
        os.dup2(2, 1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        self._heard: Queue[dict[str, Any]] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        for line in self._in:
            self._heard.put(json.loads(line))
        os._exit(0)

    def say(self, op: str, **content: Any) -> None:
        self._out.write(json.dumps({"op": op, **content}) + "\n")
        self._out.flush()

    def hear(self, wait: bool) -> dict[str, Any] | None:
        """The next message; None if there is none yet and nobody is to wait."""
        try:
            return self._heard.get(block=wait)
        except Empty:
            return None


class Worker:
    """An LLM and what is being asked of it."""

    def __init__(self, pipe: Pipe, model: str, options: dict[str, Any]) -> None:
        from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

        self.pipe = pipe
        self.llm: Any = LLM(model, **options)
        self.engine = self.llm.llm_engine
        self._films: dict[str, Any] = {}  # handle → [N, E]
        self._open: dict[str, tuple[int, int]] = {}  # request → (number of the prompt, which of its answers)
        self._found: dict[int, list[Any]] = {}  # number of the prompt → its answers so far
        self._told = 0.0
        once = SamplingParams(max_tokens=2, detokenize=False)  # what it cannot compute it says only when asked
        self.llm.generate([{"prompt_token_ids": [0, 0]}], once, use_tqdm=False)

    def run(self) -> None:
        """Answers until stdin ends."""
        while True:
            message = self.pipe.hear(wait=not self._open)
            if message is not None:
                self._take(message)
            elif self._open:
                for done in self.engine.step():
                    if done.finished and done.request_id in self._open:
                        self._finish(done)
                if time.monotonic() > self._told + BEAT:
                    self._told = time.monotonic()
                    self.pipe.say("beat")

    def _take(self, message: dict[str, Any]) -> None:
        op, number = message["op"], message.get("number", -1)
        try:
            getattr(self, f"_{op}")(message)
        except Exception as error:  # what vLLM refuses, in its own words
            self._forgo([name for name, (own, _) in self._open.items() if own == number])
            self.pipe.say("refused", number=number, **_said(error))

    def _features(self, message: dict[str, Any]) -> None:
        """Visual tokens of a film, until they are forgotten."""
        from safetensors.torch import load_file

        file = Path(message["file"])
        self._films[message["handle"]] = load_file(file)["features"]
        file.unlink()

    def _held(self, message: dict[str, Any]) -> None:
        """Writes back the visual tokens that it holds of the prompt's film."""
        from safetensors.torch import save_file

        save_file({"features": self._films[message["film"]["handle"]].contiguous()}, message["file"])
        self.pipe.say("held", number=message["number"])

    def _forget(self, message: dict[str, Any]) -> None:
        self._films.pop(message["handle"], None)

    def _ask(self, message: dict[str, Any]) -> None:
        """A prompt's answers, one request each: what they share is computed once by vLLM's prefix cache."""
        from vllm import SamplingParams

        number, prompt = message["number"], self._prompt(message)
        self._found[number] = [None] * len(message["draws"])
        for place, (temperature, seed) in enumerate(message["draws"]):
            params = SamplingParams(
                temperature=temperature,
                top_p=1.0,
                top_k=0,
                seed=seed,
                max_tokens=message["max_tokens"],
                stop_token_ids=message["stop"],
                ignore_eos=True,  # stop_token_ids alone say when
                logprobs=0,
                detokenize=False,
            )
            self._add(f"{number}.{place}", (number, place), prompt, params)

    def _score(self, message: dict[str, Any]) -> None:
        """Log-probabilities of the last `tail` tokens of the prompt."""
        from vllm import SamplingParams

        number = message["number"]
        self._found[number] = [message["tail"]]
        params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0, detokenize=False)
        self._add(f"{number}.score", (number, -1), self._prompt(message), params)

    def _drop(self, message: dict[str, Any]) -> None:
        """Nobody waits for what is being answered."""
        self._forgo(list(self._open))
        self._films.clear()

    def _forgo(self, names: list[str]) -> None:
        self.engine.abort_request(names)
        for name in names:
            number, _ = self._open.pop(name)
            self._found.pop(number, None)

    def _add(self, name: str, place: tuple[int, int], prompt: Any, params: Any) -> None:
        self.engine.add_request(name, prompt, params)
        self._open[name] = place

    def _prompt(self, message: dict[str, Any]) -> Any:
        """What the engine reads, made once for all answers."""
        ids, film = message["ids"], message["film"]
        if film is None:
            data: dict[str, Any] = {"prompt_token_ids": ids}
        elif film["kind"] == "embeds":
            data = _embedded(ids, film["visual"], self._films[film["handle"]])
        else:
            data = _shown(message["sent"], film, self._films[film["handle"]])
        return self.engine.renderer.render_cmpl([data])[0]

    def _finish(self, done: Any) -> None:
        number, place = self._open.pop(done.request_id)
        found, out = self._found[number], done.outputs[0]
        if out.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"an answer ended by {out.finish_reason!r}")
        if place < 0:
            tail = found[0]
            ids, logprobs = done.prompt_token_ids[-tail:], done.prompt_logprobs[-tail:]
            found[0] = [one[token].logprob for token, one in zip(ids, logprobs, strict=True)]
        else:
            logprobs = [one[token].logprob for token, one in zip(out.token_ids, out.logprobs, strict=True)]
            found[place] = {"ids": list(out.token_ids), "logprobs": logprobs, "finish": out.finish_reason}
            if None in found:
                return
        self.pipe.say("found", number=number, seen=list(done.prompt_token_ids or ()), found=self._found.pop(number))

    def _load(self, message: dict[str, Any]) -> None:
        """Other weights of the same shapes; nothing that was computed with the old ones stays."""
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": message["model"]})
        self.engine.reset_prefix_cache()
        self.engine.reset_encoder_cache()
        self.engine.reset_mm_cache()
        self.pipe.say("loaded")

    def _positions(self, message: dict[str, Any]) -> None:
        """[3, P] as the model's own rule places the prompt."""
        prompt = self._prompt(message)
        features = _specs(prompt) if prompt["type"] == "multimodal" else []
        ids = prompt["prompt_token_ids"]
        rows = self.llm.apply_model(lambda model: _rows(model, ids, features))[0]
        self.pipe.say("positions", number=message["number"], rows=rows)


def _embedded(ids: list[int], visual: list[list[int]], film_NE: Any) -> dict[str, Any]:
    """A prompt whose visual places are given as embeddings, all others as tokens."""
    embed_PE = film_NE.new_zeros(len(ids), film_NE.shape[1])
    is_token = [True] * len(ids)
    at = 0
    for start, stop in visual:
        embed_PE[start:stop] = film_NE[at : at + stop - start]
        is_token[start:stop] = [False] * (stop - start)
        at += stop - start
    return {"prompt_embeds": embed_PE, "prompt_token_ids": ids, "prompt_is_token_ids": is_token}


def _shown(sent: list[int], film: dict[str, Any], film_NE: Any) -> dict[str, Any]:
    """A prompt with one mark in place of the film or picture, and that film's or picture's visual tokens."""
    import torch

    kind = film["kind"]
    data = {f"{kind}_embeds": film_NE, f"{kind}_grid_thw": torch.tensor([film["grid"]])}
    if film["timestamps"]:
        data["timestamps"] = [film["timestamps"]]
    if film["seconds"] is not None:
        data["second_per_grid_ts"] = torch.tensor([film["seconds"]], dtype=torch.float64)
    return {
        "prompt_token_ids": sent,
        "multi_modal_data": {kind: data},
        "multi_modal_uuids": {kind: [_name(film)]},
    }


def _name(film: dict[str, Any]) -> str:
    """One name for all that a film's visual tokens and their places depend on, which vLLM keeps things by."""
    told = [film[key] for key in ("kind", "handle", "grid", "timestamps", "seconds")]
    return hashlib.blake2b(json.dumps(told).encode(), digest_size=16).hexdigest()


def _specs(prompt: Any) -> list[Any]:
    """What the model's rule for positions reads of films and pictures."""
    from vllm.multimodal.inputs import MultiModalFeatureSpec  # type: ignore[import-not-found]

    return [
        MultiModalFeatureSpec(data=item, modality=kind, identifier=name, mm_position=place, mm_hash=name)
        for kind, items in prompt["mm_kwargs"].items()
        for item, name, place in zip(items, prompt["mm_hashes"][kind], prompt["mm_placeholders"][kind], strict=True)
    ]


def _rows(model: Any, ids: list[int], features: list[Any]) -> list[list[int]]:
    if not hasattr(model, "get_mrope_input_positions"):
        return [list(range(len(ids)))] * 3
    return model.get_mrope_input_positions(ids, features)[0].tolist()


def _said(error: BaseException) -> dict[str, str]:
    """An error as its kind and first line; of pydantic's, which announce it, the second that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    telling = [line for line in lines if line.startswith(("Value error, ", "Assertion failed, "))]
    return {"kind": type(error).__name__, "why": (telling or lines)[0][:300]}


def main() -> None:
    """`python vllm_worker.py MODEL OPTIONS`, options of vllm.LLM as JSON."""
    pipe = Pipe()
    model, options = sys.argv[1], json.loads(sys.argv[2])
    for name in [name for name in os.environ if name.startswith(RANKS)]:
        del os.environ[name]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process: one thing to watch, one to end
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["HF_HUB_OFFLINE"] = "1"  # the model is a folder
    try:
        import torch
        import vllm

        if not torch.cuda.is_available():
            options["enforce_eager"] = True
            options["enable_chunked_prefill"] = (
                False  # a seeded draw of a cut prompt asks a CPU generator for an offset
            )
            options["max_num_batched_tokens"] = max(8192, options["max_model_len"])
            torch._dynamo.config.disable = True  # else a compiler is needed, and the first answer waits for it
        worker = Worker(pipe, model, options)
    except Exception as error:
        pipe.say("failed", **_said(error))
        raise
    pipe.say("ready", vllm=vllm.__version__, device="cuda" if torch.cuda.is_available() else "cpu")
    try:
        worker.run()
    except Exception as error:
        pipe.say("broken", **_said(error))
        raise


if __name__ == "__main__":
    main()
