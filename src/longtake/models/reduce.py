"""Fewer visual tokens from a film's frames: pooled, averaged over time, near-identical neighbours joined.

F frames, h x w patch tokens of a frame (rows, columns), E width, N tokens that the language model reads.
Source: LLaVA-NeXT-Video and LLaVA-Video (`get_2dPool`, `mm_newline_position`, slow and fast frames), VLM-RLAIF
(arXiv 2402.03746: temporal and spatial means of projected features).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, cosine_similarity, interpolate, max_pool2d

from longtake.errors import UserError

MODES = ("average", "max", "bilinear")
NEWLINES = ("grid", "frame", "one_token", "no_token")
WORDS: dict[str, dict[str, object]] = {
    **{name: {"newline": name} for name in NEWLINES},
    "before": {"before": True},
    "after": {"before": False},
    "temporal+spatial": {"apart": True},
}
NUMBERS = {"time": "time", "merge": "merge", "pool": "stride", "slowfast": "slow"}
GRAMMAR = 'parts like "pool:2:bilinear", "slowfast:10", "temporal+spatial", "time:4", "merge:0.5", with commas between'
ALIKE = 4  # digits of a similarity that count: rounding must not choose between frames that are the same


@dataclass(frozen=True, slots=True)
class Reduction:
    """What becomes of a film's frames. First frames are averaged (time or merge), then every frame is pooled.

    Example: Reduction.parse("merge:0.5,pool:2,before") halves the frames and quarters their tokens.
    """

    time: int = 1  # so many neighbouring frames become one
    merge: float = 0.0  # frames that are left when the most similar neighbours are joined; below 1 a share; 0 = all
    stride: int = 1  # patches along one edge of a pool
    mode: Literal["average", "max", "bilinear"] = "average"
    slow: int = 1  # every so many frames one is pooled so, the others by twice the stride (and no faster_token)
    apart: bool = False  # a mean of each frame, then a mean of each patch over all frames
    before: bool = False  # the projector
    newline: Literal["grid", "frame", "one_token", "no_token"] = "no_token"  # after rows, frames, the film, nowhere

    @classmethod
    def parse(cls, spec: str, like: Reduction | None = None) -> Self:
        """The reduction of a spec; pool, side of the projector and newlines are those of `like` where it does not say.

        Raises UserError.
        """
        said: dict[str, object] = {}
        for part in spec.split(","):
            found = _part(part.strip(), spec)
            if twice := [name for name in found if name in said]:
                raise _wrong(spec, f"{part.strip()!r} says {twice[0]} a second time")
            said |= found
        if said.get("slow") and "stride" not in said:
            said |= {"stride": 2}
        made = cls()
        if like is not None and not said.get("apart"):
            made = replace(made, before=like.before, newline=like.newline, stride=like.stride, mode=like.mode)
        made = replace(made, **said)  # type: ignore[arg-type]  # _part checked them
        if made.time > 1 and made.merge:
            raise _wrong(spec, "time and merge both choose frames")
        if made.apart and (made.stride > 1 or made.newline in ("grid", "frame")):
            raise _wrong(spec, "temporal+spatial leaves no grid of rows")
        return made

    @property
    def spec(self) -> str:
        """What `parse` makes it of again."""
        left = int(self.merge) if self.merge >= 1 else self.merge
        parts = [f"time:{self.time}"] * (self.time > 1) + [f"merge:{left}"] * (left > 0)
        parts += ["temporal+spatial"] * self.apart + [f"pool:{self.stride}:{self.mode}"] * (not self.apart)
        parts += [f"slowfast:{self.slow}"] * (self.slow > 1) + ["before" if self.before else "after", self.newline]
        return ",".join(parts)

    @property
    def strides(self) -> tuple[int, int]:
        """Of slow frames and of the others."""
        return self.stride, self.stride * (2 if self.slow > 1 else 1)

    def left(self, frames: int) -> int:
        """Frames after time or merge."""
        if self.merge >= 1:
            return min(frames, int(self.merge))
        return max(1, round(self.merge * frames)) if self.merge else -(-frames // self.time)

    def blocks(self, frames: int, h: int, w: int) -> list[tuple[int, int]]:
        """Rows and columns of each block of tokens, in order. Raises UserError if nothing of a frame is left."""
        left = self.left(frames)
        if self.apart:
            return [(1, left), (h, w)]
        kinds = [pooled_size(h, w, stride, self.mode) for stride in self.strides]
        if not min(min(kind) for kind in kinds):
            why = f"a pool is larger than the {h} x {w} tokens of a frame"
            raise UserError(f"the reduction {self.spec!r} leaves no tokens", why=why, fix="a smaller stride")
        return [kinds[frame % self.slow > 0] for frame in range(left)]

    def tokens(self, frames: int, h: int, w: int) -> int:
        """N of that many frames, newlines included."""
        per_row, per_block = self.newline == "grid", self.newline == "frame"
        blocks = self.blocks(frames, h, w)
        return sum(rows * (wide + per_row) + per_block for rows, wide in blocks) + (self.newline == "one_token")


def reduce(z_FhwE: Tensor, how: Reduction, project: Callable[[Tensor], Tensor], newline_E: Tensor | None) -> Tensor:
    """[N, E] that the language model reads of the vision tower's tokens. `project`: the projector, pointwise over
    tokens; newline_E: the learned newline, None where there is none. Raises UserError, as `Reduction.blocks`."""
    frames, h, w = z_FhwE.shape[:3]
    blocks = how.blocks(frames, h, w)
    z_FhwE = _averaged(z_FhwE if how.before else project(z_FhwE), how)
    if how.apart:
        parts = [z_FhwE.mean((1, 2)), z_FhwE.mean(0).flatten(0, 1)]
    else:
        pooled = {stride: pool(z_FhwE, stride, how.mode) for stride in {*how.strides}}
        parts = [pooled[how.strides[i % how.slow > 0]][i].flatten(0, 1) for i in range(len(blocks))]
    if how.before:
        parts = list(project(torch.cat(parts)).split([rows * wide for rows, wide in blocks]))
    return torch.cat(_with_newlines(parts, blocks, how.newline, newline_E))


def pool(z_FhwE: Tensor, stride: int, mode: str) -> Tensor:
    """Every frame's tokens pooled, as LLaVA-NeXT's `get_2dPool`."""
    if stride == 1:
        return z_FhwE
    x_FEhw = z_FhwE.permute(0, 3, 1, 2)
    if mode == "bilinear":
        size = pooled_size(z_FhwE.shape[1], z_FhwE.shape[2], stride, mode)
        x_FEhw = interpolate(x_FEhw, size=size, mode="bilinear")
    else:
        x_FEhw = (max_pool2d if mode == "max" else avg_pool2d)(x_FEhw, stride)
    return x_FEhw.permute(0, 2, 3, 1)


def pooled_size(h: int, w: int, stride: int, mode: str) -> tuple[int, int]:
    """Rows and columns that are left: pools that are not full are left out, but not by bilinear."""
    return (-(-h // stride), -(-w // stride)) if mode == "bilinear" else (h // stride, w // stride)


def joined(z_FhwE: Tensor, left: int) -> list[int]:
    """Where segments of neighbouring frames end: the two neighbours whose means are most alike (by cosine) are joined
    until so many are left; of several the first."""
    ends, sizes = list(range(1, len(z_FhwE) + 1)), [1] * len(z_FhwE)
    with torch.no_grad():
        means = [frame.flatten().to(torch.promote_types(frame.dtype, torch.float32)) for frame in z_FhwE]
        alike = [_alike(means[i], means[i + 1]) for i in range(len(means) - 1)]
        while len(ends) > left:
            i = alike.index(max(alike))
            a, b = sizes[i], sizes[i + 1]
            means[i : i + 2], sizes[i : i + 2] = [(a * means[i] + b * means[i + 1]) / (a + b)], [a + b]
            del ends[i], alike[i]
            for border in (i - 1, i):
                if 0 <= border < len(alike):
                    alike[border] = _alike(means[border], means[border + 1])
    return ends


def _alike(a: Tensor, b: Tensor) -> float:
    return round(float(cosine_similarity(a, b, dim=0)), ALIKE)


def _averaged(z_FhwE: Tensor, how: Reduction) -> Tensor:
    frames = len(z_FhwE)
    if how.left(frames) == frames:
        return z_FhwE
    ends = joined(z_FhwE, how.left(frames)) if how.merge else [*range(how.time, frames, how.time), frames]
    return torch.stack([z_FhwE[start:end].mean(0) for start, end in zip([0, *ends], ends, strict=False)])


def _with_newlines(
    parts: list[Tensor], blocks: list[tuple[int, int]], newline: str, newline_E: Tensor | None
) -> list[Tensor]:
    """`parts`: [rows * columns, E] of each block."""
    if newline == "no_token":
        return parts
    if newline_E is None:
        raise UserError("this model has learned no newline", why=f"the reduction asks for {newline}", fix="no_token")
    one = newline_E[None].to(parts[0].dtype)
    if newline == "grid":
        rows = [part.unflatten(0, size) for part, size in zip(parts, blocks, strict=True)]
        return [torch.cat([x, one[None].expand(len(x), 1, -1)], 1).flatten(0, 1) for x in rows]
    return [*parts, one] if newline == "one_token" else [torch.cat([part, one]) for part in parts]


def _part(part: str, spec: str) -> dict[str, object]:
    """What one part of a spec says. Raises UserError."""
    name, *more = part.split(":")
    if name not in WORDS | NUMBERS:
        raise _wrong(spec, f"there is no {name!r}", _near(name, (*WORDS, *NUMBERS)))
    if name in WORDS:
        if more:
            raise _wrong(spec, f"{name} takes no number")
        return WORDS[name]
    mode = more.pop() if name == "pool" and len(more) == 2 else "average"
    if mode not in MODES:
        raise _wrong(spec, f"{mode!r} is none of {', '.join(MODES)}", _near(mode, MODES))
    text = more[0] if len(more) == 1 else ""
    if text.isascii() and text.isdigit() and int(text) > 0:
        return {NUMBERS[name]: int(text)} | ({"mode": mode} if name == "pool" else {})
    if name == "merge" and 0 < _number(text) < 1:
        return {"merge": _number(text)}
    what = "a number of frames, or a share between 0 and 1" if name == "merge" else "a whole number above 0"
    raise _wrong(spec, f"{part!r}: after {name}: comes {what}")


def _near(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, names, 1)
    return f"did you mean {near[0]}?" if near else ""


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _wrong(spec: str, why: str, fix: str = "") -> UserError:
    return UserError(f"no reduction {spec!r}", why=why, fix=fix or GRAMMAR)
