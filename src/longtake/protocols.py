"""The four seams. Arguments, not registries; conformance tests, not base classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn
    from transformers import PreTrainedModel

    from longtake.records import Draw, Features, Group, Prompt, Question, Receipt


class Model(Protocol):
    """One device's network of one family: everything that differs between families is behind these methods."""

    tokenizer: Any  # transformers tokenizer
    end_ids: tuple[int, ...]  # tokens that end an answer
    temporal_patch: int  # frames that become one temporal position
    stills: bool  # whether a picture is encoded otherwise than a film of one frame
    pixels: Any  # the processor's constants, on which features depend as well
    adapter: Any  # models.adapters.Adapter: what is trained instead of the network's own weights; None = these
    heads: dict[str, Any]  # models.heads.ScalarHead by the name of the adapter it reads
    context: Any  # models.context_file.Kept: how its context was made larger
    reduction: Any  # models.reduce.Reduction: how visual tokens of a frame are made fewer; None = not

    @property
    def net(self) -> PreTrainedModel:
        """The transformers class."""

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers, first to last; each calls the registered attention function once."""

    @property
    def norm(self) -> nn.Module:
        """What the last layer's output goes through."""

    @property
    def header(self) -> tuple[int, ...]:
        """The assistant header: the tokens that end every prompt."""

    @property
    def tower(self) -> nn.Module:
        """The vision tower inside it: all that features depend on."""

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized; frames None = a picture."""

    def encode(self, films: Sequence[np.ndarray]) -> list[Features]:
        """Vision tower over several films of uint8 [F, H, W, 3]; every film gives the same as alone.

        A picture is a film of one frame, or [H, W, 3] for a family with `stills`. It is `read` of all that is `seen`.
        """

    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """What the tower makes of films, pictures, or whole temporal patches of a film: rows [., …] of each, in order.

        Rows behind one another, from whatever parts of a film, are those of the whole; they are of one shape.
        """

    def read(self, seen: Tensor, shape: tuple[int, ...]) -> Features:
        """What the language model reads of a film or picture of that shape; `seen`: all its rows, no pixels."""

    def shown(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """What of decoded frames (not of a picture) the tower sees, for people to look at."""

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header."""

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """[3, P] by the family's reference rule."""

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token embeddings [T, E]."""

    def hidden(
        self, embed_TE: Tensor, position_3T: Tensor, visual_T: Tensor, deepstack: Tensor | None, attention: Any
    ) -> Tensor:
        """Decoder over one packed row → last hidden states [T, E] after the final norm.

        embed_TE already holds the visual features at visual_T; deepstack is [levels, visual tokens, E] or None.
        `attention` travels to the registered attention function (maths.attention.Context).
        """

    def head(self, hidden_TE: Tensor) -> Tensor:
        """Logits [T, V] in float32 (float64 for a float64 model)."""

    def save(self, folder: Path) -> None:
        """Writes what `runtime.load.load_model` and transformers read."""


class Engine(Protocol):
    """Something that answers prompts."""

    def generate(self, prompts: Sequence[Prompt], draws: Sequence[Sequence[Draw]], max_tokens: int) -> list[Group]:
        """[N] groups; answer g of prompt n follows draws[n][g]."""


class Reward(Protocol):
    """Something that scores an answer's text against its row."""

    def __call__(self, text: str, row: dict[str, Any]) -> float: ...


class Reader(Protocol):
    """Something that reads a file of rows."""

    def __call__(self, path: Path) -> Iterator[Question]: ...
