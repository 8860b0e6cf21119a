"""Qwen3-VL behind the Model protocol: transformers' own class, our pixels, prompt, positions and attention.

T packed tokens, P prompt tokens, N visual tokens, L feature levels (merged tokens, then DeepStack), E model width, V
vocabulary, C numbers of one patch.
Sources: Qwen3-VL technical report (arXiv 2511.21631), DeepStack (arXiv 2406.04334), both as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import Qwen3VLForConditionalGeneration

from longtake.errors import UserError
from longtake.models import adapter_files, adapters, heads
from longtake.models import attention as registered
from longtake.models.pixels import Pixels, processor_files
from longtake.models.quiet import quiet
from longtake.records import Features, Prompt, Question, Receipt

SLAB = 65536  # patches in one call of the tower: bounds its memory; frames never see each other, so cuts are exact
_FILM, _PICTURE = {"type": "video", "video": ""}, {"type": "image", "image": ""}  # parts of a turn


class PatchEmbed(nn.Module):
    """transformers' Conv3d whose stride is its kernel, as the matrix product it is; the weights stay where they are.

    On CPU the convolution takes three (forward) to five times (backward) as long.
    """

    def __init__(self, proj: nn.Conv3d) -> None:
        super().__init__()
        self.proj = proj

    def forward(self, patches_NC: Tensor) -> Tensor:
        return linear(patches_NC.to(self.proj.weight.dtype), self.proj.weight.flatten(1), self.proj.bias)


class Qwen3VL:
    """A Qwen3-VL network with its tokenizer and the constants of its processor (see protocols.Model).

    Example: model = load_model("Qwen/Qwen3-VL-2B-Instruct"); model.encode([frames_FHWC])[0].level_LNE.
    """

    family = "qwen3_vl"

    def __init__(self, net: Qwen3VLForConditionalGeneration, tokenizer: Any, pixels: Pixels) -> None:
        config = net.config
        if not isinstance(net.lm_head, nn.Linear):
            raise ValueError(f"lm_head must be a plain nn.Linear, got {type(net.lm_head).__name__}")
        if len(tokenizer) > net.lm_head.out_features:
            why = f"the tokenizer has {len(tokenizer)} tokens, the network {net.lm_head.out_features}"
            raise UserError("tokenizer and network do not belong together", why=why)
        if not tokenizer.chat_template:
            raise UserError("the tokenizer has no chat template", fix="use an instruct checkpoint, or set one")
        _check_template(tokenizer)
        vision: Any = config.vision_config
        shape = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        if shape != (pixels.patch, pixels.temporal_patch, pixels.merge):
            why = f"patch, temporal patch and merge are {shape} in config.json, else in the video processor's file"
            raise UserError("video processor and network do not belong together", why=why)
        registered.check_shareable(config)
        registered.register()
        net.model.visual.patch_embed = PatchEmbed(net.model.visual.patch_embed.proj)
        net.set_attn_implementation({"text_config": registered.TEXT, "vision_config": registered.VISION})
        self.net, self.tokenizer, self.pixels = net, tokenizer, pixels
        self.adapter: adapters.Adapter | None = None
        self.heads: dict[str, heads.ScalarHead] = {}
        self.temporal_patch = pixels.temporal_patch
        self.end_ids = _end_ids(tokenizer, net.generation_config.eos_token_id)
        self._pads = config.video_token_id, config.image_token_id
        self._video, self._image = (_token(tokenizer, pad) for pad in self._pads)
        ends = (config.vision_start_token_id, config.vision_end_token_id)
        self._open, self._close = (_token(tokenizer, mark) for mark in ends)

    @property
    def tower(self) -> nn.Module:
        """The vision tower: all that features depend on, with `pixels`."""
        return self.net.model.visual

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers, first to last."""
        return self.net.model.language_model.layers

    @property
    def norm(self) -> nn.Module:
        """What the last layer's output goes through."""
        return self.net.model.language_model.norm

    @cached_property
    def header(self) -> tuple[int, ...]:
        """The assistant header that ends every prompt."""
        message = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
        without, whole = (
            self.tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=add)
            for add in (False, True)
        )
        return tuple(self.tokenizer(whole.removeprefix(without), add_special_tokens=False)["input_ids"])

    def fit(self, width: int, height: int, frames: int | None, max_pixels: int | None = None) -> tuple[int, int]:
        """Size in pixels (width, height) to which decoded frames are resized; None = a picture. Raises UserError."""
        return self.pixels.fit(width, height, frames, max_pixels)

    def encode(self, films: Sequence[np.ndarray]) -> list[Features]:
        """Vision tower over films of uint8 [F, H, W, 3], those of one size together; differentiable in grad mode.

        A frame attends to itself only and positions do not know the time, so films may be joined and cut between
        temporal patches: every film gives the same as alone, to float tolerance.
        """
        made: list[Features] = []
        for _, same in groupby(films, key=lambda frames_FHWC: frames_FHWC.shape[1:]):
            group = list(same)
            grids = [self.pixels.grid(film.shape[2], film.shape[1], len(film)) for film in group]
            level_LNE = self._tower(group[0] if len(group) == 1 else np.concatenate(group))
            counts = [grid[0] * self._tokens(grid) for grid in grids]
            made += [Features(part) for part in level_LNE.split(counts, dim=1)]
        return made

    def _tower(self, frames_FHWC: np.ndarray) -> Tensor:
        """[L, N, E] of frames of one size, in slabs of whole temporal patches."""
        _, h, w = self.pixels.grid(frames_FHWC.shape[2], frames_FHWC.shape[1], len(frames_FHWC))
        step = max(1, SLAB // (h * w)) * self.temporal_patch
        slabs = []
        for start in range(0, len(frames_FHWC), step):
            slab = frames_FHWC[start : start + step]
            patches = self.pixels.patchify(slab, self.net.device).to(self.net.dtype)
            grid = torch.tensor([[len(slab) // self.temporal_patch, h, w]], device=self.net.device)
            out = self.tower(patches, grid_thw=grid)
            slabs.append(torch.stack([out.pooler_output, *out.deepstack_features]))
        return torch.cat(slabs, dim=1) if len(slabs) > 1 else slabs[0]

    def prompt(self, question: Question, receipt: Receipt | None, features: str | None) -> Prompt:
        """Chat template, visual tokens and positions; ends with the assistant header. Text only when receipt is None.

        A picture's receipt makes it one, not a film of one frame. Raises UserError if the question's own text holds a
        visual token.
        """
        part = [] if receipt is None else [_PICTURE if receipt.image else _FILM]
        message = {"role": "user", "content": [*part, {"type": "text", "text": question.text}]}
        text = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        grids = []
        if receipt is not None:
            grids.append(self.pixels.grid(receipt.width, receipt.height, len(receipt.indices)))
            text = self._shown(text, receipt, self._tokens(grids[0]))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        visual = _runs(np.isin(ids, self._pads))
        expected = [self._tokens(grid) for grid in grids for _ in range(grid[0])]
        if [stop - start for start, stop in visual] != expected:
            what = f"question {question.id}: its text holds {self._video} or {self._image}"
            raise UserError(what, fix="take that token out of the row")
        seen = receipt and replace(receipt, tokens=sum(expected))
        return Prompt(question.id, tuple(ids), visual, self.positions(ids, grids), features, seen)

    def _tokens(self, grid: tuple[int, int, int]) -> int:
        """Visual tokens of one temporal patch."""
        return grid[1] * grid[2] // self.pixels.merge**2

    def _shown(self, text: str, receipt: Receipt, tokens: int) -> str:
        """The template's one video mark becomes time and marks of every temporal patch; an image mark its tokens.

        As Qwen's reference processor (transformers 4.57) and vLLM: the whole mark is replaced. transformers 5 replaces
        the pad alone and so leaves a second pair of marks around it all, which the checkpoints never saw in training.
        """
        kind, pad = ("image", self._image) if receipt.image else ("video", self._video)
        mark = f"{self._open}{pad}{self._close}"
        if mark not in text:
            raise UserError(f"the chat template shows no {kind}", why=f"it never writes {mark}")
        patch = f"{self._open}{pad * tokens}{self._close}"
        if receipt.image:
            return text.replace(mark, patch, 1)
        seconds, stride = receipt.seconds, self.temporal_patch
        middles = [(seconds[k] + seconds[k + stride - 1]) / 2 for k in range(0, len(seconds), stride)]
        return text.replace(mark, "".join(f"<{middle:.1f} seconds>{patch}" for middle in middles), 1)

    def positions(self, ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Tensor:
        """int64 [3, P], rows (time, height, width): text counts on in all three rows; a temporal patch stands still in
        time, spreads over its merged grid, and takes as many positions as its longer side.

        `grids` are patches along (time, height, width) of each film or picture. Raises ValueError if they do not match
        `ids`.
        """
        is_visual_P = np.isin(ids, self._pads)
        place_N = np.flatnonzero(is_visual_P)
        if len(place_N) != sum(t * self._tokens((t, h, w)) for t, h, w in grids):
            raise ValueError(f"{len(place_N)} visual tokens do not fill the grids {list(grids)}")
        step_P = (~is_visual_P).astype(np.int64)
        spread_3P = np.zeros((3, len(step_P)), np.int64)
        at = 0
        for t, h, w in grids:
            high, wide = h // self.pixels.merge, w // self.pixels.merge
            place_TN = place_N[at : at + t * high * wide].reshape(t, -1)
            spread_3P[1, place_TN] = np.repeat(np.arange(high), wide)
            spread_3P[2, place_TN] = np.tile(np.arange(wide), high)
            step_P[place_TN[:, -1]] = max(high, wide)
            at += place_TN.size
        return torch.from_numpy(spread_3P + (np.cumsum(step_P) - step_P))

    def embed(self, ids_T: Tensor) -> Tensor:
        """Token embeddings [T, E]."""
        return self.net.model.language_model.embed_tokens(ids_T.to(self.net.device))

    def hidden(
        self, embed_TE: Tensor, position_3T: Tensor, visual_T: Tensor, deepstack: Tensor | None, attention: Any
    ) -> Tensor:
        """Decoder over one packed row → last hidden states [T, E] after the final norm.

        embed_TE already holds the visual features at visual_T (bool); deepstack is [L - 1, visual tokens, E] or None.
        `attention` is what models.attention accepts; it decides who sees whom. Raises ValueError for anything else.
        """
        device = embed_TE.device
        out = self.net.model.language_model(
            inputs_embeds=embed_TE[None],
            position_ids=position_3T[:, None].to(device),
            visual_pos_masks=visual_T[None].to(device),
            deepstack_visual_embeds=deepstack,
            use_cache=False,
            attention=attention,
        )
        return out.last_hidden_state[0]

    def head(self, hidden_TE: Tensor) -> Tensor:
        """Logits [T, V] in float32 (float64 for a float64 model): half precision loses what RL ratios are made of."""
        if hidden_TE.dtype in (torch.float32, torch.float64):
            return self.net.lm_head(hidden_TE)
        return linear(hidden_TE.float(), self.net.lm_head.weight.float())

    def save(self, folder: Path) -> None:
        """Writes what `load_model` and transformers' AutoModel, AutoTokenizer and AutoProcessor read."""
        with quiet():
            if self.adapter is None:
                self.net.save_pretrained(folder)
            else:
                adapter_files.save(self.adapter, folder)
            heads.save(self.heads, folder)
        self.tokenizer.save_pretrained(folder)
        for name, content in processor_files(self.pixels).items():
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def _runs(mask_P: np.ndarray) -> tuple[tuple[int, int], ...]:
    """(start, stop) of each run of True."""
    edge = np.flatnonzero(np.diff(mask_P.astype(np.int8), prepend=0, append=0))
    return tuple(zip(edge[::2].tolist(), edge[1::2].tolist(), strict=True))


def _end_ids(tokenizer: Any, generation: int | list[int] | None) -> tuple[int, ...]:
    """Tokens that end an answer: the tokenizer's and the generation config's, in that order, each once."""
    more = [] if generation is None else [generation] if isinstance(generation, int) else generation
    ids = dict.fromkeys([tokenizer.eos_token_id, *more])
    ids.pop(None, None)
    if not ids:
        raise UserError("no token ends an answer", why="neither tokenizer nor generation_config.json names eos")
    return tuple(ids)


def _check_template(tokenizer: Any) -> None:
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja's, or what the template itself raises
        raise UserError("the chat template does not work", why=" ".join(str(error).split())[:200]) from error


def _token(tokenizer: Any, token_id: int) -> str:
    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None:
        raise UserError(f"the tokenizer has no token {token_id}", why="config.json names it as a visual mark")
    return str(token)
