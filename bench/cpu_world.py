"""What every mode of the CPU benchmark shares: one film, one question on it, one small Qwen3-VL network.

A picture is one temporal patch in this network (temporal_patch_size 1), so that TRL's pictures and our film give the
same patches, the same features and the same number of tokens. A frame of 128 x 96 pixels is 12 visual tokens, two marks
and its time; the question's length is chosen so that the prompt has exactly TOKENS tokens a frame.

F frames, P prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longtake.log import read_json, write_json_atomic
from longtake.models.pixels import Pixels
from longtake.protocols import Model
from longtake.records import FramePolicy, Question, Receipt
from longtake.sim.make import scenes
from longtake.sim.render import pictures, write_film
from longtake.sim.scenes import FPS, SECONDS

TOKENS = 16  # of the prompt for each frame
WIDE, HIGH = 128, 96  # pixels of a frame
VISUAL = 12  # tokens of it, among them
PIXELS = Pixels(16, 1, 2, mean=(0.5,) * 3, std=(0.5,) * 3, shortest_edge=4096, longest_edge=WIDE * HIGH * 8192)
SEED = 0
FILLER = "there was a red flash at the end "


@dataclass(frozen=True, slots=True)
class Shape:
    """Size of the network. Example: Shape(layers=4, width=256)."""

    layers: int = 4
    width: int = 256
    inner: int = 5  # MLP width over model width, as in Qwen2.5-VL-7B
    heads: int = 8
    kv_heads: int = 2
    tower_width: int = 96
    tower_layers: int = 3


@dataclass(frozen=True, slots=True)
class World:
    """A folder that holds the network and the films. Example: World(Path("out/bench/cpu")).film(128)."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def film(self, frames: int) -> Path:
        return self.folder / "films" / f"{frames}.mp4"

    def policy(self, frames: int) -> FramePolicy:
        return FramePolicy(frames=frames)

    def question(self, frames: int) -> Question:
        """Text of as many words as fill the prompt."""
        text = read_json(self.folder / "questions.json")[str(frames)]
        return Question(f"film-{frames}", str(self.film(frames)), text)


def build(folder: Path, shape: Shape, frames: tuple[int, ...]) -> World:
    """Saves the network and renders the films that are missing."""
    import bench.cpu_torchvision  # noqa: F401  # before transformers meets torchvision
    from longtake.models.qwen3_vl import Qwen3VL
    from longtake.sim import tiny

    world = World(folder)
    tokenizer = tiny.tokenizer()
    model = Qwen3VL(network(tokenizer, shape), tokenizer, PIXELS)
    model.save(world.model)
    texts = {str(count): fitted(model, count) for count in frames}
    write_json_atomic(folder / "questions.json", texts)
    for count in frames:
        if not world.film(count).exists():
            write_film(film(count), world.film(count), fps=max(1, count // SECONDS))
    return world


def film(frames: int) -> np.ndarray:
    """uint8 [F, HIGH, WIDE, 3]: stories behind one another; a film shorter than one leaves pictures out."""
    a_story = FPS * SECONDS
    told = scenes(SEED, "test", max(1, frames // a_story))
    shown = np.concatenate([pictures(scene) for scene in told])[:: max(1, a_story // frames)][:frames]
    return np.ascontiguousarray(shown.repeat(2, 1).repeat(2, 2)[:, 16 : 16 + HIGH])


def fitted(model: Model, frames: int) -> str:
    """A question with which a prompt on that many frames has TOKENS tokens for each of them."""
    seconds = tuple(i * SECONDS / frames for i in range(frames))
    receipt = Receipt("", "", tuple(range(frames)), seconds, WIDE, HIGH, "", 0, 0, "")
    return words(TOKENS * frames - len(model.prompt(Question("", "", ""), receipt, None).ids))


def words(count: int) -> str:
    """That many words of one token each. Raises ValueError for less than one."""
    if count < 1:
        raise ValueError(f"the frames leave no room for a question: {1 - count} tokens too many")
    return " ".join((FILLER.split() * (1 + count // 8))[:count])


def network(tokenizer: Any, shape: Shape) -> Any:
    """A Qwen3-VL network with random weights that depend on SEED and the shape alone; DeepStack on two levels."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    def place(word: str) -> int:
        return int(tokenizer.convert_tokens_to_ids(word))

    head = shape.width // shape.heads
    section = [head // 2 - 2 * (head // 6), head // 6, head // 6]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_interleaved": True, "mrope_section": section}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": shape.width, "intermediate_size": shape.inner * shape.width,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.kv_heads, "head_dim": head, "max_position_embeddings": 65536,
            "rope_parameters": rope, "pad_token_id": place("<|endoftext|>"), "bos_token_id": place("<|im_start|>"),
            "eos_token_id": place("<|im_end|>"),
        },
        vision_config={
            "depth": shape.tower_layers, "hidden_size": shape.tower_width, "intermediate_size": 4 * shape.tower_width,
            "num_heads": 4, "patch_size": PIXELS.patch, "spatial_merge_size": PIXELS.merge,
            "temporal_patch_size": PIXELS.temporal_patch, "out_hidden_size": shape.width,
            "num_position_embeddings": 64, "deepstack_visual_indexes": list(range(min(2, shape.tower_layers - 1))),
        },
        image_token_id=place("<|image_pad|>"), video_token_id=place("<|video_pad|>"),
        vision_start_token_id=place("<|vision_start|>"), vision_end_token_id=place("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        return Qwen3VLForConditionalGeneration(config)
