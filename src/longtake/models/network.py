"""What all families share: transformers' network as the shared-prefix machinery meets it, its tokenizer and its files.

T packed tokens, P prompt tokens, E model width, V vocabulary.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.models import adapter_files, adapters, context_file, heads
from longtake.models.decoder import Decoder
from longtake.models.quiet import quiet
from longtake.models.reduce import Reduction
from longtake.records import Features, Prompt, Question, Receipt


@dataclass(frozen=True, slots=True)
class Sent:
    """How a prompt with features goes to an engine that is not ours: as a film or picture that the engine places
    itself, or as embeddings at the visual places. Example: Sent("video", (1, 5, 9), (8, 4, 4), seconds=0.5).
    """

    kind: Literal["embeds", "video", "image"]
    ids: tuple[int, ...]  # of a film or picture one visual token alone; of embeddings all
    grid: tuple[int, int, int] = (0, 0, 0)  # patches along (time, height, width) of a film or picture
    timestamps: tuple[float, ...] = ()  # seconds of each temporal patch, where the text tells them
    seconds: float | None = None  # from one temporal patch to the next, where positions tell them
    moved: int = 0  # temporal patches that the engine places one position off, for no number of seconds says better


class Network(Decoder, ABC):
    """A family's network with its tokenizer and the constants of its processor (see protocols.Model).

    A family says how films become features (`fit`, `seen`, `read`, `tower`), what a prompt looks like (`prompt`), and
    how its folder is read (`load`) and written (`files`). Example: Qwen3VL.load(base, folder, torch.float32).
    """

    family: ClassVar[str]  # model_type in config.json
    words: ClassVar[str] = ""  # where in its folder the tokenizer lies
    temporal_patch = 1  # frames that become one temporal position
    stills = False  # whether a picture is encoded otherwise than a film of one frame

    def __init__(self, net: Any, text: Any, tokenizer: Any, pixels: Any, *, rope_rows: int) -> None:
        """`text`: the decoder inside `net`; `rope_rows`: see Decoder. Raises UserError for parts that do not fit."""
        if not isinstance(net.lm_head, nn.Linear):
            raise ValueError(f"lm_head must be a plain nn.Linear, got {type(net.lm_head).__name__}")
        if len(tokenizer) > net.lm_head.out_features:
            why = f"the tokenizer has {len(tokenizer)} tokens, the network {net.lm_head.out_features}"
            raise UserError("tokenizer and network do not belong together", why=why)
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template", fix="use an instruct checkpoint, or set one")
        check_template(tokenizer)
        super().__init__(text, net.lm_head, rope_rows=rope_rows)
        self.net, self.tokenizer, self.pixels = net, tokenizer, pixels
        self.adapter: adapters.Adapter | None = None
        self.heads: dict[str, heads.ScalarHead] = {}
        self.context = context_file.Kept()
        self.reduction: Reduction | None = None  # how visual tokens of a frame are made fewer
        self.end_ids = end_ids(tokenizer, net.generation_config.eos_token_id)

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """Whether the folder with this config.json is one of the family's."""
        return config.get("model_type") == cls.family

    @classmethod
    @abstractmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Network:
        """Weights of `base` on the CPU; tokenizer and processor of `folder` where it has them. Raises UserError."""

    @property
    @abstractmethod
    def tower(self) -> nn.Module:
        """The vision tower: all that features depend on, with `pixels`."""

    @abstractmethod
    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized; None = a picture. Raises UserError."""

    def encode(self, films: Sequence[np.ndarray]) -> list[Features]:
        """Vision tower over films of uint8 [F, H, W, 3]; differentiable in grad mode; each gives the same as alone.

        A picture is a film of one frame, or [H, W, 3] for a family with `stills`.
        """
        return [self.read(seen, film.shape) for film, seen in zip(films, self.seen(films), strict=True)]

    @abstractmethod
    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """What the tower makes of films, pictures, or whole temporal patches of a film: rows [., …] of each, in order.

        Rows behind one another, from whatever parts of a film, are those of the whole; they are of one shape.
        """

    @abstractmethod
    def read(self, seen: Tensor, shape: tuple[int, ...]) -> Features:
        """What the language model reads of a film or picture of that shape; `seen`: all its rows, no pixels."""

    def shown(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """What of decoded frames (not of a picture) the tower sees, for people to look at."""
        return frames_FHWC

    @abstractmethod
    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header. Text only when receipt is None.

        A picture's receipt makes it one, not a film of one frame. Raises UserError if the question's own text holds a
        visual token.
        """

    @abstractmethod
    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P] by the family's reference rule; `grids`: patches along (time, height, width) of what is seen.

        Raises ValueError if they do not match `ids`.
        """

    @abstractmethod
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """The processor's JSON files by name, as transformers reads them."""

    def set_reduction(self, spec: str) -> None:
        """Makes the visual tokens of a frame fewer, as `spec` says. Raises UserError where the family cannot."""
        why = f"the visual tokens of {self.family} stay as its tower makes them"
        raise UserError("this model's frames cannot be reduced", where="--context.reduce", why=why, fix="leave it out")

    def sent(self, prompt: Prompt) -> Sent:
        """A prompt with features as an engine in another process takes it; see engines.vllm."""
        return Sent("embeds", prompt.ids)

    @cached_property
    def header(self) -> tuple[int, ...]:
        """The assistant header that ends every prompt."""
        message = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        without, whole = (
            self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=add)
            for add in (False, True)
        )
        return tuple(self.tokenizer(whole.removeprefix(without), add_special_tokens=False)["input_ids"])

    def save(self, folder: Path) -> None:
        """Writes what `load_model` and transformers' AutoModel, AutoTokenizer and AutoProcessor read."""
        with quiet():
            if self.adapter is None:
                self.net.save_pretrained(folder)
            else:
                adapter_files.save(self.adapter, folder)
            heads.save(self.heads, folder)
        inside = folder.glob(f"*/{adapter_files.CONFIG}")  # other adapters have folders there
        for own in (folder, *(file.parent for file in inside)):
            context_file.save(self.context, own)
        self.tokenizer.save_pretrained(folder / self.words)
        for name, content in self.files().items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def runs(mask_P: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each run of True."""
    edge = np.flatnonzero(np.diff(mask_P.astype(np.int8), prepend=0, append=0))
    return tuple(zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True))


def end_ids(tokenizer: Any, generation: int | list[int] | None) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's and the generation config's, in that order, each once."""
    more = [] if generation is None else [generation] if isinstance(generation, int) else generation
    ids = dict.fromkeys([tokenizer.eos_token_id, *more])
    ids.pop(None, None)
    if not ids:
        raise UserError("no token ends an answer", why="neither tokenizer nor generation_config.json names eos")
    return tuple(ids)


def check_template(tokenizer: Any) -> None:
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's, or what the template itself raises
        raise UserError("the chat template does not work", why=" ".join(str(error).split())[:200]) from error


def token_of(tokenizer: Any, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        raise UserError(f"the tokenizer has no token {token_id}", why="config.json names it as a visual mark")
    return str(token)
