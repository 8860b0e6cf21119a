"""Shapes of networks for the cost model: out of a config.json, or by name where no checkpoint is at hand.

E model width, H heads, K key/value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

TEXT = {  # fields of transformers' text configs, by the names they have here
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "inner": "intermediate_size",
    "vocab": "vocab_size",
}
NORMED = ("qwen3", "gemma3")  # model types whose queries and keys go through a norm
GATED_TOWERS = ("qwen2_5_vl",)  # model types whose vision MLPs have three matrices


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder with gated MLPs, and the size of its vision tower.

    Example: PRESETS["qwen2.5-vl-7b"].kv == 28_672.
    """

    layers: int
    width: int  # E
    heads: int  # H
    kv_heads: int  # K
    head_width: int  # D
    inner: int  # of the MLP
    vocab: int
    tied: bool  # embedding and head are one matrix
    tower: int = 0  # weights of the vision tower that multiply patches
    merger: int = 0  # and of what makes tokens of them
    merge: int = 4  # patches of the tower that become one token
    levels: int = 0  # DeepStack levels beside the merged tokens
    normed: bool = False  # queries and keys go through a norm (Qwen3)

    @property
    def projections(self) -> int:
        """Weights of one layer that make queries, keys and values."""
        return self.width * (self.heads + 2 * self.kv_heads) * self.head_width

    @property
    def layer(self) -> int:
        """Weights of one layer that multiply tokens."""
        return self.projections + self.width * self.heads * self.head_width + self.mlp

    @property
    def mlp(self) -> int:
        """Those of its MLP."""
        return 3 * self.width * self.inner

    @property
    def head(self) -> int:
        return self.vocab * self.width

    @property
    def params(self) -> int:
        """All of them, norms and biases aside."""
        return self.layers * self.layer + self.head * (1 if self.tied else 2) + self.tower + self.merger

    @property
    def kv(self) -> int:
        """Numbers that one token leaves behind as keys and values, all layers."""
        return 2 * self.layers * self.kv_heads * self.head_width

    def matrices(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the linear layers of a decoder layer, by their usual names."""
        heads, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        into = dict.fromkeys(("gate_proj", "up_proj"), (self.width, self.inner))
        into |= dict.fromkeys(("k_proj", "v_proj"), (self.width, keys)) | {"q_proj": (self.width, heads)}
        return into | {"o_proj": (heads, self.width), "down_proj": (self.inner, self.width)}

    def adapter(self, rank: int, targets: Sequence[str] | None = None) -> int:
        """Parameters of LoRA on these linear layers of every decoder layer (default: all seven)."""
        sizes = self.matrices()
        return self.layers * rank * sum(sum(sizes[name]) for name in (sizes if targets is None else targets))


class UnknownShape(ValueError):
    """A config that does not say how large the network is."""


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a config.json describes (text_config nested or not). Raises UnknownShape with the missing name."""
    nested = config.get("text_config")
    nested = nested if isinstance(nested, dict) else {}
    text = {**config, **nested}
    missing = [name for name in TEXT.values() if not isinstance(text.get(name), int) or text[name] < 1]
    if missing:
        raise UnknownShape(missing[0])
    sizes = {ours: int(text[theirs]) for ours, theirs in TEXT.items()}
    kv_heads = int(text.get("num_key_value_heads") or sizes["heads"])
    head_width = int(text.get("head_dim") or sizes["width"] // sizes["heads"])
    kind = str(config.get("model_type", ""))
    tied = bool(config.get("tie_word_embeddings", nested.get("tie_word_embeddings", False)))
    vision = config.get("vision_config")
    bare = Shape(**sizes, kv_heads=kv_heads, head_width=head_width, tied=tied, normed=kind.startswith(NORMED))
    return _with_tower(bare, vision, kind) if isinstance(vision, dict) else bare


def _with_tower(shape: Shape, vision: Mapping[str, Any], kind: str) -> Shape:
    """The shape with a Qwen-style vision tower: every DeepStack level has a merger of its own."""
    own, inner = int(vision.get("hidden_size", 0)), int(vision.get("intermediate_size", 0))
    merge = int(vision.get("spatial_merge_size", 2)) ** 2
    levels = len(vision.get("deepstack_visual_indexes") or ())
    depth = int(vision.get("depth") or vision.get("num_hidden_layers") or 0)
    tower = depth * (4 * own**2 + (3 if kind.startswith(GATED_TOWERS) else 2) * own * inner)
    merger = (own * merge) ** 2 + own * merge * int(vision.get("out_hidden_size", shape.width))
    return replace(shape, tower=tower, merger=(1 + levels) * merger, merge=merge, levels=levels)


def _qwen2_5(layers: int, width: int, heads: int, kv_heads: int, inner: int, vocab: int, tower: int = 3420) -> Shape:
    """Qwen2.5-VL (arXiv 2502.13923, table 1)."""
    vision = {"depth": 32, "hidden_size": 1280, "intermediate_size": tower, "out_hidden_size": width}
    bare = Shape(layers, width, heads, kv_heads, 128, inner, vocab, tied=width == 2048)
    return _with_tower(bare, vision, "qwen2_5_vl")


def _qwen3(layers: int, width: int, heads: int, inner: int, *, large: bool, tied: bool) -> Shape:
    """Qwen3-VL (arXiv 2511.21631): SigLIP-2 large or SO-400M as the tower, DeepStack on three levels."""
    depth, own, tower = (27, 1152, 4304) if large else (24, 1024, 4096)
    vision = {"depth": depth, "hidden_size": own, "intermediate_size": tower, "deepstack_visual_indexes": [0, 0, 0]}
    bare = Shape(layers, width, heads, 8, 128, inner, 151936, tied, normed=True)
    return _with_tower(bare, vision, "qwen3_vl")


PRESETS: Mapping[str, Shape] = MappingProxyType(
    {
        "qwen2.5-vl-3b": _qwen2_5(36, 2048, 16, 2, 11008, 151936),
        "qwen2.5-vl-7b": _qwen2_5(28, 3584, 28, 4, 18944, 152064),
        "qwen2.5-vl-32b": _qwen2_5(64, 5120, 40, 8, 27648, 152064, 3456),
        "qwen2.5-vl-72b": _qwen2_5(80, 8192, 64, 8, 29568, 152064, 3456),
        "qwen3-vl-2b": _qwen3(28, 2048, 16, 6144, large=False, tied=True),
        "qwen3-vl-4b": _qwen3(36, 2560, 32, 9728, large=False, tied=True),
        "qwen3-vl-8b": _qwen3(36, 4096, 32, 12288, large=True, tied=False),
    }
)
