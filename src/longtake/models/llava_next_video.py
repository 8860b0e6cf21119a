"""LLaVA-NeXT-Video behind the Model protocol: frames through CLIP, pooled and projected; positions that count tokens.

And LLaVA-NeXT, the image model of the same design, which reads films without having learned any: N frames are a 1 x N
grid of tiles, pooled. Pictures are tiled as transformers does (AnyRes).

F frames, T tiles, S edge of a square in pixels, P prompt tokens, N visual tokens, D width of the tower, E model width.
Source: LLaVA-NeXT-Video (blog of 2024-04-30), transformers' llava_next_video.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.models.checkpoint import network, read_tokenizer
from longtake.models.llava_pixels import LlavaPixels, llava_files, read_llava
from longtake.models.network import Network, runs, token_of
from longtake.models.pixels import FILES
from longtake.models.reduce import Reduction, reduce
from longtake.records import Features, Prompt, Question, Receipt

SLAB = 16  # frames in one call of the tower, which gives all its layers' outputs: bounds its memory


class Eyes(nn.Module):
    """All of a LLaVA network that features depend on; the modules stay where they are."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_tower, self.multi_modal_projector = model.vision_tower, model.multi_modal_projector
        self.image_newline: nn.Parameter = model.image_newline


class LlavaNextVideo(Network):
    """A LLaVA-NeXT-Video network with its tokenizer and the constants of its processor (see protocols.Model).

    Example: model = load_model("llava-hf/LLaVA-NeXT-Video-7B-hf"); model.set_reduction("pool:4").
    """

    family = "llava_next_video"
    classes: ClassVar[str] = "LlavaNextVideoForConditionalGeneration"  # transformers' class
    stills = True
    pixels: LlavaPixels
    reduction: Reduction  # of films; pictures are never reduced

    def __init__(self, net: Any, tokenizer: Any, pixels: LlavaPixels, reduction: Reduction) -> None:
        layers, depth = net.config.vision_feature_layer, net.config.vision_config.num_hidden_layers
        if not all(-depth - 1 <= layer <= depth for layer in ([layers] if isinstance(layers, int) else layers)):
            why = f"vision_feature_layer is {layers}, the tower has {depth} layers"
            raise UserError("config.json is wrong", why=why)
        super().__init__(net, net.model.language_model, tokenizer, pixels, rope_rows=1)
        self._tower = Eyes(net.model)
        self.film_pad = self.pad(net.config)
        self.picture_pad: int = net.config.image_token_id
        self._reduce(reduction)

    @classmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Self:
        """Weights of `base`; tokenizer and processor of `folder` where it has them. Raises UserError."""
        import transformers

        net = network(getattr(transformers, cls.classes), base, dtype)
        words = folder if (folder / "tokenizer.json").is_file() else base
        constants = folder if any((folder / name).is_file() for name in FILES) else base
        pixels, reduction = read_llava(constants, net.config)
        return cls(net, read_tokenizer(words), pixels, reduction or cls.learned(net.config))

    @staticmethod
    def pad(config: Any) -> int:
        """The token that stands for what is seen of a film."""
        return int(config.video_token_id)

    @staticmethod
    def learned(config: Any) -> Reduction:
        """The reduction that the checkpoint was trained with."""
        if config.spatial_pool_mode == "conv":
            raise UserError("unsupported model", why="its frames are pooled by a convolution (spatial_pool_mode: conv)")
        return Reduction(stride=config.spatial_pool_stride, mode=config.spatial_pool_mode, before=True)

    @property
    def tower(self) -> nn.Module:
        """Vision tower, projector and newline: all that features depend on, with `pixels`."""
        return self._tower

    def set_reduction(self, spec: str) -> None:
        """What becomes of a film's frames from here on; it is saved with the model. Raises UserError."""
        self._reduce(Reduction.parse(spec, like=self.reduction))

    def _reduce(self, how: Reduction) -> None:
        how.tokens(2, self.pixels.grid, self.pixels.grid)
        if how.newline != "no_token" and self._newline() is None:
            why = f"the reduction asks for {how.newline}"
            raise UserError("this model has learned no newline", why=why, fix="no_token")
        self.reduction = how

    def _newline(self) -> Tensor | None:
        """The learned newline; checkpoints that never had one are loaded with zeros."""
        newline_E: Tensor = self.net.model.image_newline
        return newline_E if bool(newline_E.any()) else None

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized, before `encode` takes the middle of each
        as the processor does; None = a picture. Raises UserError."""
        return self.pixels.fit(width, height, frames, max_pixels)

    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """[F, grid, grid, D] of each film of uint8 [F, H, W, 3], [T, …] of each picture [H, W, 3]: the tower's patches,
        or their projections [., E] where frames are reduced behind the projector.

        The tower sees every square alone, so every film gives the same as alone, to float tolerance.
        """
        if not films:
            return []
        squares = [self._squares(film) for film in films]
        return list(self._seen(np.concatenate(squares)).split([len(each) for each in squares]))

    def _squares(self, film: np.ndarray) -> np.ndarray:
        """uint8 [F, S, S, 3]."""
        tiled = film.ndim == 3 and bool(self.pixels.pinpoints)
        return self.pixels.tiles(film) if tiled else self.pixels.squares(film if film.ndim == 4 else film[None])

    def _seen(self, squares_FSSC: np.ndarray) -> Tensor:
        """[F, grid, grid, D]: what the tower's layers of config.json say of every patch; [., E] if projected first."""
        config, grid, slabs = self.net.config, self.pixels.grid, []
        layers = config.vision_feature_layer
        for start in range(0, len(squares_FSSC), SLAB):
            x = self.pixels.normalised(squares_FSSC[start : start + SLAB], self.net.device).to(self.net.dtype)
            states = self.net.model.vision_tower(x, output_hidden_states=True).hidden_states
            z = torch.cat([states[layer] for layer in ([layers] if isinstance(layers, int) else layers)], -1)
            z = z[:, 1:] if config.vision_feature_select_strategy == "default" else z
            slabs.append(z if self.reduction.before else self.net.model.multi_modal_projector(z))
        return torch.cat(slabs).unflatten(1, (grid, grid))

    def read(self, seen: Tensor, shape: tuple[int, ...]) -> Features:
        project = self.net.model.multi_modal_projector if self.reduction.before else lambda z: z
        if len(shape) == 4:
            return Features(reduce(seen, self.reduction, project, self._newline())[None])
        z_TggE = project(seen)
        if not self.pixels.pinpoints:
            return Features(z_TggE.flatten(0, 2)[None])
        how = self.pixels.tiling(shape[1], shape[0])
        whole_NE, tiles = z_TggE[0].flatten(0, 1), z_TggE[1:].unflatten(0, (how.rows, how.columns))
        plane_hwE = tiles.transpose(1, 2).flatten(2, 3).flatten(0, 1)
        plane_hwE = plane_hwE[how.top : how.top + how.high, how.left : how.left + how.wide]
        newline_hE = self.net.model.image_newline.to(plane_hwE.dtype).expand(how.high, 1, -1)
        return Features(torch.cat([whole_NE, torch.cat([plane_hwE, newline_hE], 1).flatten(0, 1)])[None])

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header. Text only when receipt is None.

        A picture's receipt makes it one, not a film of one frame. Raises UserError if the question's own text holds a
        visual token.
        """
        pads = {self.film_pad: "video", self.picture_pad: "image"}
        pad = self.picture_pad if receipt is None or receipt.image else self.film_pad
        part = [] if receipt is None else [{"type": pads[pad]}]
        message = {"role": "user", "content": [*part, {"type": "text", "text": question.text}]}
        text, mark = self._text([message]), token_of(self.tokenizer, pad)
        expected, seen = [], None
        if receipt is not None:
            if mark not in text:
                raise UserError(f"the chat template shows no {pads[pad]}", why=f"it never writes {mark}")
            expected, seen = [self.tokens(receipt)], self._cropped(receipt)
            seen, text = replace(seen, tokens=expected[0]), text.replace(mark, mark * expected[0], 1)
        ids = self._ids(text)
        visual = runs(np.isin(ids, list(pads)))
        if [stop - start for start, stop in visual] != expected:
            what = (
                f"question {question.id}: its text holds {' or '.join(token_of(self.tokenizer, each) for each in pads)}"
            )
            raise UserError(what, fix="take that token out of the row")
        return Prompt(question.id, tuple(ids), visual, self.positions(ids, []), features, seen)

    def _cropped(self, receipt: Receipt) -> Receipt:
        """The receipt of what the tower sees of the frames that were decoded."""
        width, height = receipt.width, receipt.height
        size = min(width, self.pixels.size), min(height, self.pixels.size)
        tiled = receipt.image and self.pixels.pinpoints
        if tiled or self.pixels.shape != "crop" or size == (width, height):
            return receipt
        cut = f"the middle {size[0]} x {size[1]} pixels of {width} x {height}"
        return replace(receipt, width=size[0], height=size[1], cut=f"{receipt.cut}, {cut}".removeprefix(", "))

    def shown(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Their middle, or all."""
        return self.pixels.shown(frames_FHWC)

    def tokens(self, receipt: Receipt) -> int:
        """Visual tokens of what a receipt saw."""
        grid = self.pixels.grid
        if not receipt.image:
            return self.reduction.tokens(len(receipt.indices), grid, grid)
        if not self.pixels.pinpoints:
            return grid * grid
        how = self.pixels.tiling(receipt.width, receipt.height)
        return grid * grid + how.high * (how.wide + 1)

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P], three times the same: every token is one step, whatever it shows.

        Raises ValueError if the visual tokens are not what becomes of the films in `grids`.
        """
        count = int(np.isin(ids, [self.film_pad, self.picture_pad]).sum())
        if grids and count != sum(self.reduction.tokens(*grid) for grid in grids):
            raise ValueError(f"{count} visual tokens do not fill the grids {list(grids)}")
        return torch.arange(len(ids)).expand(3, -1)

    @cached_property
    def header(self) -> tuple[int, ...]:
        """The assistant header that ends every prompt: the tokens by which one is longer than without it."""
        message = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        without, whole = (self._ids(self._text(message, add)) for add in (False, True))
        same = next((i for i, (a, b) in enumerate(zip(without, whole, strict=False)) if a != b), len(without))
        return tuple(whole[same:])

    def _text(self, messages: list[dict[str, Any]], add: bool = True) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        return text

    def _ids(self, text: str) -> list[int]:
        """As transformers' processors: with the tokenizer's own beginning, unless the template wrote it."""
        written = self.tokenizer.bos_token is not None and text.startswith(self.tokenizer.bos_token)
        ids: list[int] = self.tokenizer(text, add_special_tokens=not written)["input_ids"]
        return ids

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """The processor's JSON files by name, as transformers reads them."""
        default = self.net.config.vision_feature_select_strategy == "default"
        processor = {
            "processor_class": f"{self.classes.removesuffix('ForConditionalGeneration')}Processor",
            "patch_size": self.pixels.patch,
            "vision_feature_select_strategy": self.net.config.vision_feature_select_strategy,
            "num_additional_image_tokens": int(default),
            "image_token": token_of(self.tokenizer, self.picture_pad),
            "video_token": token_of(self.tokenizer, self.film_pad),
        }
        return llava_files(self.pixels, self.reduction, processor)


class LlavaNext(LlavaNextVideo):
    """A LLaVA-NeXT image network, reading films as pictures of 1 x N tiles: the AnyRes view of the blog.

    Example: load_model("llava-hf/llava-v1.6-mistral-7b-hf").encode([frames_FHWC]).
    """

    family = "llava_next"
    classes: ClassVar[str] = "LlavaNextForConditionalGeneration"

    @staticmethod
    def pad(config: Any) -> int:
        """A picture's: it has no other."""
        return int(config.image_token_id)

    @staticmethod
    def learned(config: Any) -> Reduction:
        """A quarter of the tokens, as the blog's; it has learned none."""
        return Reduction(stride=2)
