"""From decoded frames to the patches that a Qwen-style vision tower reads: sizes, patch order, normalisation.

F frames, H height, W width (pixels), N patches, C = channels x temporal patch x patch x patch numbers of one patch.
Source: the video processors of transformers (qwen3_vl); tests compare with a plain twin and with its image processor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longtake.errors import UserError
from longtake.models.checkpoint import Colour, colours, first_line, read_json

FILES = ("preprocessor_config.json", "video_preprocessor_config.json")  # of pictures, of films
LONGEST_ASPECT = 200  # beyond it the tower's position grid means nothing; the processors refuse too


@dataclass(frozen=True, slots=True)
class Pixels:
    """The constants of a checkpoint's video processor (and the two of its image processor that differ).

    Example: Pixels(16, 2, 2, mean=(0.5,) * 3, std=(0.5,) * 3, shortest_edge=4096, longest_edge=25165824).
    """

    patch: int  # pixels along one edge of a patch
    temporal_patch: int  # frames in one temporal patch
    merge: int  # patches along one edge of a visual token
    mean: Colour
    std: Colour
    shortest_edge: int  # least pixels of a whole film (frames x height x width)
    longest_edge: int  # most pixels of a whole film
    cap_pixels_per_frame: bool = False
    max_video_tokens: int = 768  # of one frame, read only with cap_pixels_per_frame
    image_shortest_edge: int = 65536  # least pixels of a picture
    image_longest_edge: int = 16777216  # most pixels of a picture

    @property
    def factor(self) -> int:
        """Pixels along one edge of a visual token."""
        return self.patch * self.merge

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) that `frames` frames are resized to, None = a picture.

        `max_pixels` bounds one frame or the picture. Raises UserError for a shape that no grid of patches can show.
        """
        self._check(width, height, max_pixels)
        if frames is None:
            return self._fit_picture(width, height, max_pixels)
        frames = max(frames, self.temporal_patch)
        most = self.longest_edge
        if self.cap_pixels_per_frame:
            share = min(self.max_video_tokens * self.factor**2, self.longest_edge // frames)
            most = max(share, int(self.shortest_edge * 1.05)) * frames
        wide, high = self._resize(width, height, frames, self.shortest_edge, most)
        for least in (self.shortest_edge, 0):  # the processor's least size yields to the caller's limit
            if max_pixels is not None and wide * high > max_pixels:
                wide, high = self._resize(width, height, frames, least, min(most, max_pixels * frames))
        return wide, high

    def _check(self, width: int, height: int, max_pixels: int | None) -> None:
        if max_pixels is not None and max_pixels < self.factor**2:
            why = f"one visual token is {self.factor} x {self.factor} = {self.factor**2} pixels"
            raise UserError(f"max_pixels {max_pixels} is too small", why=why, fix="raise max_pixels")
        check_aspect(width, height)

    def _fit_picture(self, width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
        return self._fit_one(width, height, self.image_shortest_edge, self.image_longest_edge, max_pixels)

    def _fit_one(self, width: int, height: int, least: int, most: int, max_pixels: int | None) -> tuple[int, int]:
        """`smart_resize` of transformers' Qwen2-VL image processor; its least size yields to `max_pixels`."""
        factor = self.factor
        wide, high = round(width / factor) * factor, round(height / factor) * factor
        if max_pixels is not None:
            most = min(most, max_pixels)
            wide, high = max(factor, wide), max(factor, high)
        if wide * high > most:
            beta = math.sqrt(width * height / most)
            wide = max(factor, math.floor(width / beta / factor) * factor)
            high = max(factor, math.floor(height / beta / factor) * factor)
        elif wide * high < least:
            beta = math.sqrt(least / (width * height))
            large = math.ceil(width * beta / factor) * factor, math.ceil(height * beta / factor) * factor
            if max_pixels is None or large[0] * large[1] <= max_pixels:
                return large
        return wide, high

    def _resize(self, width: int, height: int, frames: int, least: int, most: int) -> tuple[int, int]:
        """`smart_resize` of transformers' Qwen3-VL video processor: both edges multiples of factor, near the aspect."""
        factor = self.factor
        if height < factor or width < factor:
            scale = max(factor / height, factor / width)
            width, height = int(width * scale), int(height * scale)
        wide, high = round(width / factor) * factor, round(height / factor) * factor
        shown = round(frames / self.temporal_patch) * self.temporal_patch * wide * high
        if shown > most:
            beta = math.sqrt(frames * width * height / most)
            wide = max(factor, math.floor(width / beta / factor) * factor)
            high = max(factor, math.floor(height / beta / factor) * factor)
        elif shown < least:
            beta = math.sqrt(least / (frames * width * height))
            wide = math.ceil(width * beta / factor) * factor
            high = math.ceil(height * beta / factor) * factor
        return wide, high

    def grid(self, width: int, height: int, frames: int) -> tuple[int, int, int]:
        """Patches along (time, height, width). Raises ValueError unless the film fills its patches."""
        if frames % self.temporal_patch or width % self.factor or height % self.factor:
            rule = f"frames must be a multiple of {self.temporal_patch}, width and height of {self.factor}"
            raise ValueError(f"{rule}: got {frames} frames of {width} x {height}")
        return frames // self.temporal_patch, height // self.patch, width // self.patch

    def patchify(self, frames_FHWC: np.ndarray, device: torch.device) -> Tensor:
        """uint8 [F, H, W, 3] → float32 [N, C], patches in the tower's order: merge blocks lie together."""
        frames, height, width, channels = frames_FHWC.shape
        t, h, w = self.grid(width, height, frames)
        p, m, s = self.patch, self.merge, self.temporal_patch
        owned = np.require(
            frames_FHWC, requirements=["C", "W"]
        )  # a read-only memory map is copied: torch cannot hold one
        blocks = torch.from_numpy(owned).to(device).view(t, s, h // m, m, p, w // m, m, p, channels)
        patches = blocks.permute(0, 2, 5, 3, 6, 8, 1, 4, 7).to(torch.float32, memory_format=torch.contiguous_format)
        mean = torch.tensor(self.mean, device=device)[:, None, None, None] * 255.0
        std = torch.tensor(self.std, device=device)[:, None, None, None] * 255.0
        return patches.sub_(mean).div_(std).view(t * h * w, channels * s * p * p)


@dataclass(frozen=True, slots=True)
class FramePixels(Pixels):
    """Constants of Qwen2-VL's and Qwen2.5-VL's video processor: the edges bound one frame, whatever their number.

    Example: FramePixels(14, 2, 2, MEAN, STD, shortest_edge=3136, longest_edge=12845056).
    """

    max_video_tokens: int = 128000  # of the whole film, nine tenths of which may be seen with cap_pixels_per_frame

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """See Pixels.fit."""
        self._check(width, height, max_pixels)
        if frames is None:
            return self._fit_picture(width, height, max_pixels)
        most = self.longest_edge
        if self.cap_pixels_per_frame:
            share = int(self.max_video_tokens * self.factor**2 * 0.9) * self.temporal_patch // frames
            most = max(min(most, share), int(self.shortest_edge * 1.05))
        return self._fit_one(width, height, self.shortest_edge, most, max_pixels)


def processor_files(pixels: Pixels, processor: str, video_processor: str) -> dict[str, dict[str, Any]]:
    """The two processor files of a checkpoint by name; `processor`, `video_processor`: transformers' classes."""
    shared = {
        "patch_size": pixels.patch,
        "temporal_patch_size": pixels.temporal_patch,
        "merge_size": pixels.merge,
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "processor_class": processor,
    }
    image = {"shortest_edge": pixels.image_shortest_edge, "longest_edge": pixels.image_longest_edge}
    video = {"shortest_edge": pixels.shortest_edge, "longest_edge": pixels.longest_edge}
    caps = {"cap_pixels_per_frame": pixels.cap_pixels_per_frame, "max_video_tokens": pixels.max_video_tokens}
    return {
        "preprocessor_config.json": shared | {"image_processor_type": "Qwen2VLImageProcessorFast", "size": image},
        "video_preprocessor_config.json": shared | {"video_processor_type": video_processor, "size": video} | caps,
    }


def read_pixels(folder: Path, kind: type[Pixels] = Pixels) -> Pixels:
    """The processor's constants, from wherever this version of transformers or an earlier one has put them.

    Raises UserError for files that are missing, incomplete or wrong.
    """
    nested = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    shared = FILES[:1] if kind is FramePixels else ()  # Qwen2.5-VL's first checkpoints have one file for both
    image = nested.get("image_processor") or first_of(folder, *FILES)
    video = nested.get("video_processor") or first_of(folder, FILES[1], *shared)
    if video is None:
        fix = "copy video_preprocessor_config.json from its base model"
        raise UserError("the model has no video processor", where=str(folder), fix=fix)
    try:
        size, (mean, std) = _edges(video), colours(video)
        if image:
            _alike(image, video)
        optional = {"max_video_tokens": int(video["max_video_tokens"])} if "max_video_tokens" in video else {}
        optional |= {f"image_{edge}": int(most) for edge, most in _edges(image or {}, {}).items()}
        return kind(
            patch=int(video["patch_size"]),
            temporal_patch=int(video["temporal_patch_size"]),
            merge=int(video["merge_size"]),
            mean=mean,
            std=std,
            shortest_edge=int(size["shortest_edge"]),
            longest_edge=int(size["longest_edge"]),
            cap_pixels_per_frame=bool(video.get("cap_pixels_per_frame")),
            **optional,
        )
    except KeyError as error:
        raise UserError("the video processor's file is incomplete", where=str(folder), why=f"no {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError("the video processor's file is wrong", where=str(folder), why=first_line(error)) from error


def check_aspect(width: int, height: int) -> None:
    """Raises UserError for a film or picture that is too long and thin."""
    if max(width, height) > LONGEST_ASPECT * min(width, height):
        what = f"a film or picture of {width} x {height} pixels is too long and thin"
        raise UserError(what, why=f"the longer side is more than {LONGEST_ASPECT} times the shorter", fix="crop it")


def _edges(content: Mapping[str, Any], size: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Least and most pixels; files of 2025 call them min_pixels and max_pixels. `size`: where there is none."""
    old = {"shortest_edge": content.get("min_pixels"), "longest_edge": content.get("max_pixels")}
    named = {edge: value for edge, value in old.items() if value is not None}
    if size is None and not named:
        size = content["size"]
    found = dict(content.get("size", size) or {}) | named
    return {edge: found[edge] for edge in old if edge in found}


def _alike(image: Mapping[str, Any], video: Mapping[str, Any]) -> None:
    """Pictures go through the same patches as films. Raises ValueError."""
    if colours(image) != colours(video):
        raise ValueError("image_mean or image_std are others for pictures than for films")
    for name in ("patch_size", "temporal_patch_size", "merge_size"):
        if image.get(name) not in (None, video[name]):
            raise ValueError(f"{name} is {image[name]} for pictures, {video[name]} for films")


def first_of(folder: Path, *names: str) -> dict[str, Any] | None:
    """The first of these files that there is."""
    return next((read_json(folder / name) for name in names if (folder / name).is_file()), None)
