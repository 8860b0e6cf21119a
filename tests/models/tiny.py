"""A random Qwen3-VL with DeepStack and a byte-level tokenizer, saved and loaded as a real checkpoint is."""

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as kinds
from torch import nn
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from longtake.maths.attention import Row
from longtake.models.pixels import Pixels
from longtake.models.qwen3_vl import Qwen3VL
from longtake.records import Layout, Question, Receipt
from longtake.runtime.inputs import fill
from longtake.runtime.load import load_model

VISUAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *VISUAL)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for c in m.content %}"
    "{% if c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NORMS = ("Qwen3VLTextRMSNorm", "Qwen2RMSNorm", "Qwen2_5_VLRMSNorm", "LlamaRMSNorm")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PIXELS = Pixels(4, 2, 2, MEAN, STD, 64, 64 * 1024, image_shortest_edge=64, image_longest_edge=4096)


def tokenizer():
    core = Tokenizer(kinds.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(["user assistant seconds"], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    wrapped.chat_template = TEMPLATE
    return wrapped


def marks(words):
    names = {"image_token_id": "image_pad", "video_token_id": "video_pad"}
    names |= {"vision_start_token_id": "vision_start", "vision_end_token_id": "vision_end"}
    return {key: words.convert_tokens_to_ids(f"<|{name}|>") for key, name in names.items()}


def network(words, seed=0, layers=2):
    place = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rope_parameters": rope,
            "pad_token_id": place("<|endoftext|>"), "initializer_range": 0.3,
        },
        vision_config={
            "depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
            "initializer_range": 0.3,
        },
        **marks(words),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(config)


def network_2_5(words, seed=0):
    """A Qwen2.5-VL whose tower has windows (2 x 2 tokens) in its first layer."""
    place = words.convert_tokens_to_ids
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope,
            "pad_token_id": place("<|endoftext|>"), "bos_token_id": place("<|im_start|>"),
            "eos_token_id": place("<|im_end|>"), "initializer_range": 0.3,
        },
        vision_config={
            "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4,
            "out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1], "tokens_per_second": 2,
            "initializer_range": 0.3,
        },
        **marks(words),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen2_5_VLForConditionalGeneration(config)


def checkpoint(folder, layers=2):
    """Saves the tiny model there."""
    words = tokenizer()
    Qwen3VL(network(words, layers=layers), words, PIXELS).save(folder)
    return folder


def exact(folder):
    """The checkpoint in float64 with RMS norms of full width: transformers' own pass through float32."""
    model = load_model(folder, dtype="float64", device="cpu")
    exact_norms(model.net)
    return model


def exact_norms(net):
    for parent in list(net.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ in NORMS:
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)


def film(seed, frames, width=16, height=8):
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def receipt(frames_FHWC, step=0.37):
    count, height, width, _ = frames_FHWC.shape
    seconds = tuple(0.05 + step * i for i in range(count))
    return Receipt("a.mp4", "9f", tuple(range(count)), seconds, width, height, "none", 0, 0, "")


def ask(text="Which cup?", name="q"):
    return Question(name, "a.mp4", text)


def logits(model, prompt, films):
    """[P, V] of a prompt on encoded films."""
    ids_T = torch.tensor(prompt.ids)
    visual_T = ids_T == model.net.config.video_token_id
    embed_TE, deepstack = fill(model, ids_T, visual_T, films)
    row = Row(Layout(((len(ids_T), ()),)))
    return model.head(model.hidden(embed_TE, prompt.position_3P, visual_T, deepstack, row))
