"""From decoded frames and pictures to the squares that a CLIP or SigLIP tower sees: crop, padding, AnyRes tiles.

F frames, H height, W width (pixels), T tiles, S edge of the square that the tower sees.
Source: the processors of transformers (llava_next, llava_next_video) and LLaVA's mm_utils; tests compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from longtake.errors import UserError
from longtake.models.checkpoint import Colour, colours, first_line, read_json
from longtake.models.pixels import FILES, check_aspect, first_of
from longtake.models.reduce import Reduction

OURS = "longtake"  # the entry of the processor's file that is ours


@dataclass(frozen=True, slots=True)
class Tiling:
    """How a picture lies on its tiles. Example: Tiling(2, 3, 24, 3, 0) of a wide one."""

    rows: int  # of tiles
    columns: int
    grid: int  # patches along one edge of a tile
    top: int  # rows of patches that are padding, above and again below
    left: int

    @property
    def high(self) -> int:
        """Rows of patches without padding."""
        return self.rows * self.grid - 2 * self.top

    @property
    def wide(self) -> int:
        return self.columns * self.grid - 2 * self.left


@dataclass(frozen=True, slots=True)
class LlavaPixels:
    """The constants of a checkpoint's processors, and what becomes of a film's frames: all that features depend on
    beside weights. Example: LlavaPixels(336, 14, MEAN, STD, 336, "crop", ((336, 672), (672, 336))).
    """

    size: int  # S
    patch: int  # pixels along one edge of a patch
    mean: Colour
    std: Colour
    shortest_edge: int  # of a frame that is then cropped
    shape: Literal["crop", "pad", "squash"]  # how a frame becomes a square
    pinpoints: tuple[tuple[int, int], ...]  # (height, width) on which pictures are tiled; () = shown as a frame is
    pictures: bool = True  # whether it is known here how this model shows them

    @property
    def grid(self) -> int:
        """Patches along one edge of the square."""
        return self.size // self.patch

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) that frames, None = a picture, are resized to before crop or padding.

        Raises UserError for a shape that cannot be shown, and for `max_pixels` below what the tower sees at least.
        """
        if max_pixels is not None and max_pixels < self.size**2:
            why = f"this vision tower sees {self.size} x {self.size} = {self.size**2} pixels, whatever a frame has"
            raise UserError(f"max_pixels {max_pixels} is too small", why=why, fix="raise max_pixels, or leave it out")
        check_aspect(width, height)
        if frames is None and not self.pictures:
            why = "it tiles them in a way that longtake does not know (anyres_max)"
            raise UserError("this model's pictures cannot be shown", why=why, fix="rows with films")
        if frames is None and self.pinpoints:
            return self._fit_picture(width, height, max_pixels)
        if self.shape == "squash":
            return self.size, self.size
        edge, by = (self.shortest_edge, min(width, height)) if self.shape == "crop" else (self.size, max(width, height))
        return max(1, int(edge * width / by)), max(1, int(edge * height / by))

    def _fit_picture(self, width: int, height: int, max_pixels: int | None) -> tuple[int, int]:
        """As large as fits its tiles. The size must say by itself how it is tiled and what of that is padding, as the
        picture's own size would: where rounding is in the way, another one nearby."""
        small = [p for p in self.pinpoints if max_pixels is None or p[0] * p[1] <= max_pixels]
        if not small:
            least = min(p[0] * p[1] for p in self.pinpoints)
            fix = "raise max_pixels, or leave it out"
            raise UserError(
                f"max_pixels {max_pixels} is too small", why=f"the least tiles have {least} pixels", fix=fix
            )
        high, wide = best(width, height, small)
        want = self._tiling(width, height, (high, wide))
        if wide / width < high / height:
            w, h = wide, min(math.ceil(height * (wide / width)), high)
        else:
            w, h = min(math.ceil(width * (high / height)), wide), high
        for less in (0, 1, 2):
            size = (w, max(1, h - less)) if wide / width < high / height else (max(1, w - less), h)
            if self.tiling(*size) == want:
                return size
        what = f"a picture of {width} x {height} pixels has no place on this model's tiles"
        raise UserError(what, why=f"image_grid_pinpoints are {[list(p) for p in self.pinpoints]}", fix="crop it")

    def tiling(self, width: int, height: int) -> Tiling:
        """Of a picture of that size."""
        return self._tiling(width, height, best(width, height, self.pinpoints))

    def _tiling(self, width: int, height: int, on: tuple[int, int]) -> Tiling:
        """`unpad_image` of transformers: what of the tiles `on` (height, width) is no picture."""
        rows, columns, grid = on[0] // self.size, on[1] // self.size, self.grid
        top = left = 0
        if width / height > columns / rows:
            top = (rows * grid - int(round(height * (columns * grid / width), 7))) // 2
        else:
            left = (columns * grid - int(round(width * (rows * grid / height), 7))) // 2
        return Tiling(rows, columns, grid, top, left)

    def shown(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """Of each frame what the tower sees: its middle, or all of it."""
        if self.shape != "crop":
            return frames_FHWC
        height, width = frames_FHWC.shape[1:3]
        top, left = max(0, (height - self.size) // 2), max(0, (width - self.size) // 2)
        return frames_FHWC[:, top : top + self.size, left : left + self.size]

    def squares(self, frames_FHWC: np.ndarray) -> np.ndarray:
        """uint8 [F, S, S, 3] of the tower; what is smaller lies between bars of black, or the mean colour."""
        shown, size = self.shown(frames_FHWC), self.size
        if max(shown.shape[1:3]) > size:
            raise ValueError(f"frames of {shown.shape[2]} x {shown.shape[1]} pixels do not go into a square of {size}")
        return _laid(shown, size, size, [int(255 * part) for part in self.mean] if self.shape == "pad" else [0, 0, 0])

    def tiles(self, picture_HWC: np.ndarray) -> np.ndarray:
        """uint8 [1 + T, S, S, 3]: the whole picture in one square, then its tiles, row by row, black where it ends."""
        size, (height, width) = self.size, picture_HWC.shape[:2]
        how = self.tiling(width, height)
        if height > how.rows * size or width > how.columns * size:
            raise ValueError(f"a picture of {width} x {height} pixels does not go on its tiles")
        whole = np.asarray(Image.fromarray(picture_HWC).resize((size, size), Image.Resampling.BICUBIC))
        laid = _laid(picture_HWC[None], how.rows * size, how.columns * size, [0, 0, 0])[0]
        tiles = laid.reshape(how.rows, size, how.columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)
        return np.concatenate([whole[None], tiles])

    def normalised(self, squares_FSSC: np.ndarray, device: torch.device) -> Tensor:
        """float32 [F, 3, S, S] as the tower reads them."""
        x = torch.from_numpy(np.require(squares_FSSC, requirements=["C", "W"])).to(device).permute(0, 3, 1, 2)
        mean, std = (torch.tensor(each, device=device)[:, None, None] * 255.0 for each in (self.mean, self.std))
        return x.to(torch.float32, memory_format=torch.contiguous_format).sub_(mean).div_(std)


def best(width: int, height: int, pinpoints: list[tuple[int, int]] | tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (height, width) that shows most of the picture's pixels, the least of several: `select_best_resolution`."""

    def rank(on: tuple[int, int]) -> tuple[int, int]:
        scale = min(on[1] / width, on[0] / height)
        shown = min(int(width * scale) * int(height * scale), width * height)
        return shown, shown - on[0] * on[1]

    return max(pinpoints, key=rank)


def _laid(frames_FHWC: np.ndarray, high: int, wide: int, colour: list[int]) -> np.ndarray:
    """In the middle of a canvas of that size and colour; what is odd goes below and to the right."""
    count, height, width, _ = frames_FHWC.shape
    made = np.broadcast_to(np.array(colour, np.uint8), (count, high, wide, 3)).copy()
    top, left = (high - height) // 2, (wide - width) // 2
    made[:, top : top + height, left : left + width] = frames_FHWC
    return made


def read_llava(folder: Path, config: Any) -> tuple[LlavaPixels, Reduction | None]:
    """The constants of the processor's files, for the network of `config`; the reduction if the files name one.

    Raises UserError for files that are missing, wrong, or another network's.
    """
    nested = read_json(folder / "processor_config.json") if (folder / "processor_config.json").is_file() else {}
    image = nested.get("image_processor") or first_of(folder, *FILES)
    video = nested.get("video_processor") or first_of(folder, *FILES[::-1])
    video = image if video is None else video  # transformers 5 nests an image model's only one
    if video is None:
        fix = "copy preprocessor_config.json from its base model"
        raise UserError("the model has no processor", where=str(folder), fix=fix)
    try:
        made = _constants(image or video, video, config)
        own = video.get(OURS, {}).get("reduction")
    except KeyError as error:
        raise UserError("the processor's file is incomplete", where=str(folder), why=f"no {error}") from error
    except (TypeError, ValueError, IndexError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError("the processor's file is wrong", where=str(folder), why=first_line(error)) from error
    vision, strategy = config.vision_config, config.vision_feature_select_strategy
    if (strategy == "default") != (vision.model_type == "clip_vision_model"):
        why = f"vision_feature_select_strategy is {strategy} of a {vision.model_type}"
        raise UserError("unsupported model", where=str(folder), why=f"{why}: a frame's tokens would be no grid")
    if made.size != vision.image_size:
        why = f"the tower sees {vision.image_size} x {vision.image_size} pixels, the processor makes {made.size}"
        raise UserError("processor and network do not belong together", where=str(folder), why=why)
    return made, Reduction.parse(own) if own else None


def _constants(image: Mapping[str, Any], video: Mapping[str, Any], config: Any) -> LlavaPixels:
    vision = config.vision_config
    (mean, std), of_pictures = colours(video), colours(image)
    if of_pictures != (mean, std):
        raise ValueError("image_mean or image_std are others for pictures than for films")
    squash, edge = _edge(video["size"])
    crop = video.get("do_center_crop", not squash)
    if not (squash or crop):
        raise ValueError("do_center_crop is off: frames would not be squares")
    size = _square(video["crop_size"]) if crop else edge
    pinpoints = points_of(image.get("image_grid_pinpoints") or config.image_grid_pinpoints, size)
    tile = _square(image["crop_size"]) if image.get("do_center_crop", True) else _edge(image["size"])[1]
    if tile != size:
        raise ValueError(f"tiles of {size} pixels are cropped to {tile}")
    if _edge(image["size"])[1] != size:
        raise ValueError(f"tiles of {size} pixels are resized to {_edge(image['size'])[1]}")
    if sorted(map(tuple, config.image_grid_pinpoints)) != sorted(pinpoints):
        raise ValueError("image_grid_pinpoints are others in config.json")
    return LlavaPixels(
        size=size,
        patch=int(vision.patch_size),
        mean=mean,
        std=std,
        shortest_edge=edge,
        shape=video.get(OURS, {}).get("shape", "squash" if squash else "crop"),
        pictures=bool(video.get(OURS, {}).get("pictures", True)),
        pinpoints=pinpoints,
    )


def points_of(said: Any, size: int) -> tuple[tuple[int, int], ...]:
    """(height, width) of each grid of tiles. Raises TypeError or ValueError."""
    points = tuple((int(high), int(wide)) for high, wide in said)
    if any(edge % size or edge < size for point in points for edge in point):
        raise ValueError(f"image_grid_pinpoints {[list(p) for p in points]} are no multiples of {size}")
    return points


def llava_files(pixels: LlavaPixels, reduction: Reduction, processor: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The processor's files by name, as transformers reads them."""
    edge = {"height": pixels.size, "width": pixels.size}
    shared = {
        "image_mean": list(pixels.mean),
        "image_std": list(pixels.std),
        "crop_size": edge,
        "do_center_crop": True,
        "processor_class": processor["processor_class"],
    }
    image: dict[str, Any] = {"image_processor_type": "LlavaNextImageProcessor", "size": {"shortest_edge": pixels.size}}
    image |= {"image_grid_pinpoints": [list(point) for point in pixels.pinpoints]}
    size = edge if pixels.shape == "squash" else {"shortest_edge": pixels.shortest_edge}
    ours = {"reduction": reduction.spec, "shape": pixels.shape, "pictures": pixels.pictures}
    video = {"video_processor_type": "LlavaNextVideoVideoProcessor", "size": size, OURS: ours}
    return {FILES[0]: shared | image, FILES[1]: shared | video, "processor_config.json": dict(processor)}


def _edge(size: Any) -> tuple[bool, int]:
    """(whether both edges are given, the edge)."""
    if isinstance(size, dict) and "shortest_edge" not in size:
        return True, _square(size)
    return False, int(size["shortest_edge"] if isinstance(size, dict) else size)


def _square(size: Any) -> int:
    if isinstance(size, dict):
        if int(size["height"]) != int(size["width"]):
            raise ValueError(f"{size['height']} x {size['width']} pixels are no square")
        size = size["height"]
    return int(size)
