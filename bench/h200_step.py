"""A decoder of some size with random weights, one film of random features, and a step on them in every mode.

It imports torch, transformers, peft and of longtake what these need, so that it runs where nothing else is installed.

    encode_once         a row of its own for every answer, through transformers' sdpa and activation checkpointing, on
                        features that were encoded once (MR-SP stage 1, LongVILA-R1)
    exact               one prefix forward whose graph is kept, answers on its keys and values, one backward through it
    exact_layers        the same, keeping layers' inputs alone: each layer is computed again in the backward
    exact_host          the same, keeping them in the host's memory
    no_prefix_gradient  answers learn on the prefix's keys and values, no gradient goes through the prefix
    alora               an adapter on answer tokens only, on keys and values that an earlier step left behind

P prompt tokens, R answer tokens, G answers, N visual tokens, T = P + R - 1, E width.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

from longtake.engines.decode import Decode
from longtake.maths.algorithms import ALGORITHMS
from longtake.maths.logprob import score_tokens
from longtake.maths.pack import answer_rows, pack, stem
from longtake.models import attention as registered
from longtake.models.adapters import add_adapter
from longtake.models.decoder import Decoder
from longtake.models.tiled import pointwise, tile
from longtake.records import Features, PrefixRow, Prompt
from longtake.runtime.inputs import fill
from longtake.runtime.prefix import Keep, Prefill, extend, finish, prefill

KEEPS: dict[str, Keep] = {
    "exact": "graph",
    "exact_layers": "layers",
    "exact_host": "host",
    "no_prefix_gradient": "nothing",
    "alora": "nothing",
}
MODES = ("encode_once", *KEEPS)
LOSS = ALGORITHMS["longtake"].loss
RANK, ALPHA, RATE, NORM = 32, 64.0, 1e-6, 1.0
HEADER = 4  # tokens of the assistant header
TILE = 8192
ON_DEVICE = ("position_3A", "target_R", "weight_R", "old_logprob_R", "answer_R")


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

    def tokens(self, frames: int) -> int:
        """P"""
        return frames // 2 * self.grid[0] * self.grid[1] + self.question


SEVEN = Size("qwen2.5-vl-7b", 28, 3584, 28, 4, 18944, 152064, (10, 14), 256, 768, 8)
TINY = Size("tiny", 3, 64, 4, 2, 96, 300, (2, 3), 12, 6, 3)


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
    tile(pointwise(net.layers, net.norm), TILE)
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


def compute(here: Scene, keep: Keep) -> Prefill:
    """The prefix; by the base model alone under an activated LoRA."""
    net, row = here.net, stem(here.row)
    row = replace(row, position_3T=row.position_3T.to(net.device), visual_T=row.visual_T.to(net.device))
    inputs = partial(fill, net, row.ids_T, row.visual_T, [here.features])
    with net.adapter.off() if net.adapter is not None and net.adapter.kind == "alora" else nullcontext():
        return prefill(net, row, inputs, keep)


def learn_answers(here: Scene, made: Prefill, answer_tokens: int) -> None:
    """Forward and backward of all answers on a prefix, at most `answer_tokens` at once."""
    for part in answer_rows(here.row, answer_tokens):
        part = replace(part, **{name: getattr(part, name).to(here.net.device) for name in ON_DEVICE})
        hidden_RE = extend(here.net, made, part)
        logprob_R = score_tokens(here.net.head, hidden_RE, part.target_R).logprob_R
        LOSS(logprob_R, logprob_R.detach(), part.weight_R, part.answer_R).total.backward()


def step(here: Scene, mode: str, answer_tokens: int, limit: float = float("inf")) -> tuple[dict[str, float], int]:
    """Seconds by phase of one update, and how many answers were run (`rows`). The adapter's kind is set."""
    clock, count = Clock(here.net.device), len(here.answers)
    here.net.acting("alora" if mode == "alora" else "lora")
    if mode == "encode_once":
        count = rows(here, clock, limit)
    else:
        with clock("prefill"):
            made = compute(here, KEEPS[mode])
        with clock("answers"):
            learn_answers(here, made, answer_tokens)
        if made.keep != "nothing":
            with clock("prefix_backward"):
                finish(here.net, made)
    with clock("optimizer"):
        learned = here.optimizer.param_groups[0]["params"]
        nn.utils.clip_grad_norm_([p for p in learned if p.grad is not None], NORM)
        here.optimizer.step()
        here.optimizer.zero_grad(set_to_none=True)
    return clock.seconds, count


@contextmanager
def as_transformers(net: Net) -> Iterator[None]:
    """The decoder under transformers' own attention and activation checkpointing."""
    net.text.set_attn_implementation("sdpa")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that all versions know
        net.text.gradient_checkpointing_enable({"use_reentrant": False})
        net.text.train()
        try:
            yield
        finally:
            net.text.eval()
            net.text.gradient_checkpointing_disable()
            net.text.set_attn_implementation(registered.TEXT)


def rows(here: Scene, clock: Clock, limit: float = float("inf")) -> int:
    """A row and a backward for every answer. After `limit` seconds no other is begun, and the time of all is that of
    those run times G / run: as long as the last one, they cost the same. Returns how many were run.
    """
    count = 0
    with as_transformers(here.net):
        for answer, weight in zip(here.answers, here.weights, strict=True):
            with clock("policy"):
                _one_row(here, answer, weight)
            count += 1
            if clock.seconds["policy"] > limit:
                break
    clock.seconds["policy"] *= len(here.answers) / count
    return count


def _one_row(here: Scene, answer: list[int], weight: list[float]) -> None:
    net, device = here.net, here.net.device
    row = pack([here.prompt], [[answer]], [[weight]])
    embed_TE, _ = fill(net, row.ids_T, row.visual_T.to(device), [here.features])
    out: Tensor = net.text(
        inputs_embeds=embed_TE[None], position_ids=row.position_3T[:, None].to(device), use_cache=False
    ).last_hidden_state
    logprob_R = score_tokens(net.head, out[0, row.predict_R.to(device)], row.target_R.to(device)).logprob_R
    LOSS(logprob_R, logprob_R.detach(), row.weight_R.to(device), row.answer_R.to(device)).total.backward()


@torch.no_grad()
def generate(here: Scene, clock: Clock) -> None:
    """Greedy answers of full length to the question, on a prefix that is computed for them."""
    net, group, length = here.net, len(here.answers), len(here.answers[0])
    net.acting("lora")
    with clock("prefill"):
        made = compute(here, "nothing")
    with clock("generate"):
        decode = Decode([made], group, length)
        logits_GV = net.head(made.tips_NE.to(net.text.dtype)).repeat_interleave(group, 0)
        begin = int(here.prompt.position_3P.max()) + 1
        none = torch.zeros(group, dtype=torch.bool, device=net.device)
        for place in range(length - 1):
            position_3G = torch.full((3, group), begin + place, device=net.device)
            hidden_GE = net.hidden(net.embed(logits_GV.argmax(-1)), position_3G, none, None, decode)
            decode.at += 1
            logits_GV = net.head(hidden_GE)
