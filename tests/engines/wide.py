"""Tiny networks whose heads have the 32 numbers that vLLM needs on a CPU, saved and loaded as real checkpoints are."""

import torch
from tests.models import tiny, tiny_llava
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from longtake.models.llava_next_video import LlavaNextVideo
from longtake.models.pixels import FramePixels
from longtake.models.qwen2_5_vl import Qwen25VL
from longtake.models.qwen3 import Qwen3
from longtake.models.qwen3_vl import Qwen3VL
from longtake.runtime.load import load_model

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_next_video", "qwen3")
FRAME_PIXELS = FramePixels(4, 2, 2, tiny.MEAN, tiny.STD, 64, 4096, image_shortest_edge=64, image_longest_edge=4096)


def build(family, seed=0, tied=True):
    """A random network with its tokenizer and processor."""
    words = tiny_llava.tokenizer() if family == "llava_next_video" else tiny.tokenizer()
    place = words.convert_tokens_to_ids
    text = {
        "vocab_size": len(words), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": place("<|endoftext|>"),
        "bos_token_id": place("<|im_start|>"), "eos_token_id": place("<|im_end|>"), "initializer_range": 0.2,
    }  # fmt: skip
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "initializer_range": 0.2}
    rope = {"rope_type": "default", "rope_theta": 1e4}
    parts = rope | {"mrope_section": [8, 4, 4]}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family == "qwen2_5_vl":
            text |= {"hidden_size": 128, "rope_parameters": parts}  # heads are a share of the width
            tower |= {"depth": 2, "out_hidden_size": 128, "window_size": 16, "fullatt_block_indexes": [1]}
            tower |= {"tokens_per_second": 2}
            config = Qwen2_5_VLConfig(
                text_config=text, vision_config=tower, **tiny.marks(words), tie_word_embeddings=tied
            )
            return Qwen25VL(Qwen2_5_VLForConditionalGeneration(config), words, FRAME_PIXELS)
        if family == "qwen3_vl":
            text |= {"head_dim": 32, "rope_parameters": parts | {"mrope_interleaved": True}}
            tower |= {"depth": 3, "out_hidden_size": 64, "num_position_embeddings": 16}
            tower |= {"deepstack_visual_indexes": [0, 1]}
            config = Qwen3VLConfig(text_config=text, vision_config=tower, **tiny.marks(words), tie_word_embeddings=tied)
            return Qwen3VL(Qwen3VLForConditionalGeneration(config), words, tiny.PIXELS)
        if family == "qwen3":
            config = Qwen3Config(**text, head_dim=32, rope_parameters=rope, tie_word_embeddings=tied)
            return Qwen3(Qwen3ForCausalLM(config), words)
        config = tiny_llava.config(words)
        config.text_config.head_dim = 32
    net = tiny_llava.network(config, seed)
    return LlavaNextVideo(net, words, tiny_llava.PIXELS, LlavaNextVideo.learned(net.config))


def model(folder, family, seed=0, dtype="float32"):
    """The same, saved and loaded."""
    build(family, seed).save(folder)
    return load_model(folder, dtype, "cpu")
