"""NVILA, LongVILA and LongVILA-R1 behind the Model protocol: frames of one size, each a run of tokens and a newline.

T packed tokens, P prompt tokens, F frames, N visual tokens, E model width.
Source: NVILA (arXiv 2412.04468), LongVILA-R1 (arXiv 2507.07966), their released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from longtake.errors import UserError
from longtake.models import nvila_files as files
from longtake.models.checkpoint import read_json, read_tokenizer
from longtake.models.network import Network, runs
from longtake.models.nvila_network import SLAB, Composed, Eyes
from longtake.models.nvila_projector import pooled
from longtake.models.reduce import Reduction, reduce
from longtake.records import Features, Prompt, Question, Receipt

IMAGE, VIDEO = "<image>", "<vila/video>"
MEDIA = ("<vila/sentinel>", IMAGE, VIDEO)  # in the order in which the released code adds them
QWEN2 = (  # the released code's template of that name
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant<|im_end|>\n' }}{% endif %}"
    "{% for message in messages if message['content'] is not none %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PARTS = (  # makes one text of a turn's parts, for templates that know texts only
    "{% set told = namespace(messages=[]) %}{% for m in messages %}{% if m['content'] is string %}"
    "{% set told.messages = told.messages + [m] %}{% else %}{% set text = namespace(text='') %}"
    "{% for part in m['content'] %}{% set text.text = text.text + ('" + VIDEO + "' if part['type'] == 'video'"
    " else '" + IMAGE + "' if part['type'] == 'image' else part['text']) %}{% endfor %}"
    "{% set told.messages = told.messages + [dict(m, content=text.text)] %}{% endif %}{% endfor %}"
    "{% set messages = told.messages %}"
)


class NVILA(Network):
    """An NVILA network with its tokenizer and the constants of its eyes (see protocols.Model).

    Example: model = load_model("Efficient-Large-Model/LongVILA-R1-7B"); model.encode([frames_FHWC])[0].level_LNE.
    """

    family = "vila"
    words = files.LLM
    stills = True

    def __init__(self, net: Composed, tokenizer: Any) -> None:
        """`tokenizer` gets the media tokens, and the network their embeddings, where they lack them."""
        dress(tokenizer, net.root.get("chat_template"))
        widen(net.llm, len(tokenizer))
        super().__init__(net, net.llm.model, tokenizer, net.eyes.pixels, rope_rows=1)
        self.temporal_patch = self.pixels.frames
        self.media = {name: int(tokenizer.convert_tokens_to_ids(name)) for name in (IMAGE, VIDEO)}
        keys = {IMAGE: "image_encoder", VIDEO: "video_encoder"}
        self.around = {name: files.read_encoder(net.root, key) for name, key in keys.items()}

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """vila, and of llava_llama what keeps its parts in folders: LLaVA's own has no llm_cfg."""
        kind = config.get("model_type")
        return kind == cls.family or (kind == "llava_llama" and "llm_cfg" in config)

    @classmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Self:
        """Weights of `base`; tokenizer and processor of `folder` where it has them. Raises UserError."""
        root = read_json(base / "config.json")
        llm = files.read_llm(base, root, dtype)
        tower = files.read_tower(base, root, llm.dtype)
        channels, width = files.channels_of(root, tower), llm.config.hidden_size
        projector = files.read_projector(base, root, channels, width, llm.dtype)
        constants = folder if (folder / files.TOWER / files.PROCESSOR).is_file() else base
        pixels = files.read_pixels(constants, root, tower, projector)
        own = any((folder / files.LLM / name).is_file() for name in ("tokenizer.json", "vocab.json"))
        tokenizer = read_tokenizer((folder if own else base) / files.LLM)
        return cls(Composed(llm, Eyes(tower, projector, pixels), root), tokenizer)

    @property
    def tower(self) -> nn.Module:
        """Vision tower and projector: all that features depend on, with `pixels`."""
        return self.net.eyes

    def set_reduction(self, spec: str) -> None:
        """Reduces a film's projected tokens as `spec` says, in place of the checkpoint's own pools; the newlines stay
        what they are, text behind each block. Raises UserError.
        """
        how = Reduction.parse(spec)
        if how.before or how.newline != "no_token" or self.pixels.first:
            why = "its tokens are reduced behind the projector, its newlines are text"
            raise UserError(f"NVILA's frames cannot be reduced by {spec!r}", why=why, fix="parts like time:4, pool:2")
        self.reduction, self.temporal_patch = how, 1
        self.pixels = replace(self.pixels, pools=())

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized; None = a picture. Raises UserError."""
        return self.pixels.fit(width, height, frames, max_pixels)

    def seen(self, films: Sequence[np.ndarray]) -> list[Tensor]:
        """Projected tokens [., E] of films of uint8 [F, H, W, 3] and pictures [H, W, 3], all frames and tiles together.

        A frame attends to itself only, so every film gives the same as alone, to float tolerance.
        """
        shots = [self.pixels.cut(film) if film.ndim == 3 else film for film in films if not self._at_scales(film)]
        token_FNE = self._seen(np.concatenate(shots) if len(shots) > 1 else shots[0]) if shots else torch.empty(0)
        parts = iter(token_FNE.split([len(shot) for shot in shots]))
        return [self._whole(film) if self._at_scales(film) else next(parts).flatten(0, 1) for film in films]

    def read(self, seen: Tensor, shape: tuple[int, ...]) -> Features:
        """Pooled, if it is a film and the checkpoint or a reduction says so."""
        if len(shape) == 3 or not (self.reduction or self.pixels.pools):
            return Features(seen[None])
        token_FNE = seen.unflatten(0, (shape[0], -1))
        if self.reduction:
            square = self.pixels.side, self.pixels.side
            return Features(reduce(token_FNE.unflatten(1, square), self.reduction, lambda token: token, None)[None])
        return Features(pooled(token_FNE, self.pixels.pools)[None])

    def _at_scales(self, film: np.ndarray) -> bool:
        """It is a picture, of which the tower sees one map."""
        return film.ndim == 3 and self.pixels.aspect == "dynamic_s2"

    def _seen(self, frames_FHWC: np.ndarray) -> Tensor:
        """[F, N, E], in slabs."""
        step = max(1, SLAB // self.pixels.grid**2)
        slabs = (frames_FHWC[start : start + step] for start in range(0, len(frames_FHWC), step))
        return torch.cat([self.tower(self._normal(slab)) for slab in slabs])

    def _normal(self, frames_FHWC: np.ndarray) -> Tensor:
        return self.pixels.normal(frames_FHWC, self.net.device).to(self.net.dtype)

    def _whole(self, picture_HWC: np.ndarray) -> Tensor:
        scaled = [(self._normal(tiles), shape) for tiles, shape in self.pixels.scaled(picture_HWC)]
        return self.net.eyes.whole(scaled)

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header. Text only when receipt is None.

        A picture's receipt makes it one, not a film of one frame. Raises UserError if the question's own text holds a
        media token.
        """
        part, mark, patches = [], VIDEO, None
        if receipt is not None:
            part, mark = [{"type": "image" if receipt.image else "video"}], IMAGE if receipt.image else VIDEO
            frames = None if receipt.image else len(receipt.indices)
            patches = self.pixels.patches(receipt.width, receipt.height, frames)
        said = question.text.rstrip() if part else question.text.strip()
        message = {"role": "user", "content": [*part, {"type": "text", "text": said}]}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        blocks = self._tokens(patches) if patches else []
        if receipt and mark not in text:
            raise UserError("the chat template shows no film or picture", why=f"it never writes {mark}")
        if receipt and receipt.image and self.pixels.aspect == "dynamic":
            text = text.replace(mark, f"{mark}\n" * len(blocks), 1)
        shown = [self._shown(mark, [block]) for block in blocks] if mark == IMAGE else [self._shown(mark, blocks)]
        words = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if [i for i in words if i in self.media.values()] != [self.media[mark]] * (len(shown) if patches else 0):
            what = f"question {question.id}: its text holds {VIDEO} or {IMAGE}"
            raise UserError(what, fix="take that token out of the row")
        stand = iter(shown)
        ids = [i for word in words for i in (next(stand) if word in self.media.values() else [word])]
        visual = runs(np.isin(ids, list(self.media.values())))
        seen = receipt and replace(receipt, tokens=sum(map(sum, blocks)))
        position_3P = self.positions(ids, [patches] if patches else [])
        return Prompt(question.id, tuple(ids), visual, position_3P, features, seen)

    def _tokens(self, patches: tuple[int, int, int]) -> list[list[int]]:
        """Visual tokens of each block of a film, pool by pool, or of each of a picture's tiles."""
        if self.reduction is None or patches[0] == 0:
            return self.pixels.tokens(patches)
        return [[rows * wide for rows, wide in self.reduction.blocks(patches[0], self.pixels.side, self.pixels.side)]]

    def _shown(self, mark: str, blocks: Sequence[Sequence[int]]) -> list[int]:
        """Token ids of a film's pools, or of one picture or tile: every frame between its marks."""
        own, encoder = self.media[mark], self.around[mark]
        start, end, between = (
            self.tokenizer(text, add_special_tokens=False)["input_ids"]
            for text in (encoder.start, encoder.end, encoder.between)
        )
        ids: list[int] = []
        for lengths in blocks:
            for length in lengths:
                ids += [*start, *[own] * length, *end]
            ids += between
        return ids

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P], three times the same: plain positions. Raises ValueError if the grids do not match `ids`."""
        count = int(np.isin(ids, list(self.media.values())).sum())
        if count != sum(sum(map(sum, self._tokens(grid))) for grid in grids):
            raise ValueError(f"{count} visual tokens do not fill the grids {list(grids)}")
        return torch.arange(len(ids)).expand(3, -1)

    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """The vision tower's processor."""
        size = {"height": self.pixels.size, "width": self.pixels.size}
        shared = {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3, "rescale_factor": 1 / 255}
        means = {"image_mean": list(self.pixels.mean), "image_std": list(self.pixels.std)}
        content = {"image_processor_type": "SiglipImageProcessor", "size": size} | shared | means
        return {f"{files.TOWER}/{files.PROCESSOR}": content}


def dress(tokenizer: Any, template: str | None) -> None:
    """Gives the tokenizer its media tokens and a chat template for parts. Raises UserError for a template by name."""
    if template not in (None, "qwen2"):
        fix = "put the template into llm/tokenizer_config.json and null into config.json"
        raise UserError(f"no chat template {template!r}", why="chat_template in config.json names it", fix=fix)
    tokenizer.add_tokens(list(MEDIA), special_tokens=True)
    said = QWEN2 if template else tokenizer.chat_template
    if said and not said.startswith(PARTS):
        tokenizer.chat_template = PARTS + said


def widen(llm: Any, size: int) -> None:
    """Embeddings for tokens that the stored vocabulary lacks: the mean of those there, as transformers' resize gives
    them but for its noise, so that every loading gives the same network.
    """
    have = llm.lm_head.out_features
    if size <= have:
        return
    llm.resize_token_embeddings(size, mean_resizing=False)
    with torch.no_grad():
        for weight_VE in {llm.get_input_embeddings().weight, llm.lm_head.weight}:
            weight_VE[have:] = weight_VE[:have].double().mean(0).to(weight_VE)
