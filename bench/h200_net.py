"""A decoder of some size with random weights, and one question on one film of random features.

Imports torch, transformers, peft and of longtake what these need, so that it runs where nothing else is installed.

P prompt tokens, R answer tokens, G answers, N visual tokens, E model width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from longtake.maths.pack import pack
from longtake.models.adapters import add_adapter
from longtake.models.decoder import Decoder
from longtake.models.tiled import pointwise, tile
from longtake.records import Features, PrefixRow, Prompt

RANK, ALPHA = 32, 64.0
RATE = 0.0  # AdamW does all its work, and every mode meets the same weights
HEADER = 4  # tokens of the assistant header


@dataclass(frozen=True, slots=True)
class Size:
    """A decoder and what it is asked. Example: SEVEN.tokens(64) == 4480 + 256."""

    family: str
    layers: int
    width: int  # E
    heads: int
    kv_heads: int
    inner: int
    vocab: int
    grid: tuple[int, int]  # tokens of two frames, down and across
    question: int  # tokens after the film, the header included
    answer: int  # R
    group: int  # G
    tile: int = 8192  # tokens of an MLP at once

    def tokens(self, frames: int) -> int:
        """P"""
        return frames // 2 * self.grid[0] * self.grid[1] + self.question


SEVEN = Size("qwen2.5-vl-7b", 28, 3584, 28, 4, 18944, 152064, (10, 14), 256, 768, 8)
TINY = Size("tiny", 3, 64, 4, 2, 96, 300, (2, 3), 12, 6, 3, tile=16)


class Net(Decoder):
    """A decoder as prefixes, adapters and this benchmark need it."""

    header = tuple(range(HEADER))
    adapter: Any = None

    @property
    def net(self) -> nn.Module:
        return self.text

    @property
    def device(self) -> torch.device:
        return self.text.device

    def acting(self, kind: str) -> None:
        """The adapter as a "lora" or an "alora"."""
        self.adapter = replace(self.adapter, kind=kind)


def network(size: Size, device: str, dtype: torch.dtype, *, adapter: bool = True) -> Net:
    """Random weights; without an adapter all of them learn."""
    half = size.width // size.heads // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]  # 16, 24, 24 of 64
    config = Qwen2_5_VLTextConfig(
        vocab_size=size.vocab,
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": section},
        bos_token_id=None,
        eos_token_id=None,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            torch.manual_seed(0)
            text = Qwen2_5_VLTextModel(config)
            head = nn.Linear(size.width, size.vocab, bias=False)
    finally:
        torch.set_default_dtype(before)
    net = Net(text, head, rope_rows=3)
    head.requires_grad_(False)
    if adapter:
        text.requires_grad_(False)
        add_adapter(net, "lora", RANK, ALPHA)
        for name, weight in text.named_parameters():
            if "lora_B" in name:  # zero in the beginning, which would hide half of the gradients
                nn.init.normal_(weight, std=0.01)
    tile(pointwise(net.layers, net.norm), size.tile)
    return net


@dataclass(slots=True)
class Clock:
    """Seconds by phase. Example: with clock("prefill"): …."""

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + self.now() - start


@dataclass(frozen=True, slots=True)
class Scene:
    """One question on one film, and the answers to learn from. Example: scene(net, TINY, frames=4)."""

    net: Net
    prompt: Prompt
    features: Features
    answers: list[list[int]]  # [G][R]
    weights: list[list[float]]
    optimizer: torch.optim.Optimizer

    @property
    def learned(self) -> list[nn.Parameter]:
        return list(self.optimizer.param_groups[0]["params"])

    @property
    def row(self) -> PrefixRow:
        """Under an activated LoRA the header begins the answers."""
        lead = HEADER if self.net.adapter is not None and self.net.adapter.kind == "alora" else 0
        return pack([self.prompt], [self.answers], [self.weights], lead=lead)


def scene(net: Net, size: Size, frames: int, group: int = 0, answer: int = 0) -> Scene:
    """`group` and `answer`: 0 = as the size says."""
    generator = torch.Generator().manual_seed(frames)
    visual, prompt = size.tokens(frames) - size.question, size.tokens(frames)
    down, across = size.grid
    place_N = torch.arange(visual)
    position_3N = torch.stack([place_N // (down * across) * 2, place_N // across % down, place_N % across])
    after = int(position_3N.max()) + 1 + torch.arange(size.question)
    ids = torch.randint(0, size.vocab, (prompt,), generator=generator).tolist()
    position_3P = torch.cat([position_3N, after.expand(3, -1)], 1)
    noise = torch.Generator(net.device).manual_seed(frames)
    level_1NE = torch.randn(1, visual, size.width, generator=noise, device=net.device, dtype=net.text.dtype) * 0.02
    count, length = group or size.group, answer or size.answer
    answers = torch.randint(0, size.vocab, (count, length), generator=generator).tolist()
    learned = [p for p in net.text.parameters() if p.requires_grad]
    return Scene(
        net,
        Prompt("film", tuple(ids), ((0, visual),), position_3P, "film", None),
        Features(level_1NE),
        answers,
        [[1.0 if place % 2 else -1.0] * length for place in range(count)],
        torch.optim.AdamW(learned, lr=RATE, betas=(0.9, 0.95), weight_decay=0.0, foreach=True),
    )
