"""The demo's stand-in: a real Qwen3-VL network of half a million parameters and its tokenizer, made from a config.

Its vocabulary is the simulator's words and the time stamps `<0.1 seconds>` of the Qwen3-VL family, one token each.
"""

from __future__ import annotations

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen3VLConfig, Qwen3VLForConditionalGeneration

from longtake.models.pixels import Pixels
from longtake.sim.scenes import COLOURS, FRIENDS, GIFTS, LETTERS, NOBODY, PLACES, SECONDS, SWAPS

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
WORDS = (
    "user", "assistant", "<think>", "</think>", "<answer>", "</answer>",
    "so", "none", "same", "new", "old", "start", "?",
    *(f"s{second}" for second in range(SECONDS)), *(str(number) for number in range(SECONDS)),
    *LETTERS, *PLACES, *COLOURS, *FRIENDS, NOBODY, *SWAPS, *GIFTS,
    "where", "is", "the", "ball", "at", "end", "which", "flash", "was", "number", "how", "many", "flashes", "were",
    "there", "room", "guard", "heading", "for", "who", "last", "gave", "gem", "apple", "to", "what", "happens",
    "story", "one", "two", "yes", "no", "better", "tie", "score", "in",
)  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|> {{ m['role'] }} {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for c in m['content'] %}{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif c['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %} {{ c['text'] }} {% endif %}{% endfor %}{% endif %} <|im_end|>{% endfor %}"
    "{% if add_generation_prompt %} <|im_start|> assistant{% endif %}"
)
PIXELS = 32 * 32  # a frame as the stand-in sees it
# mean and deviation of the dark films: with 0.5 and 0.5 the sprites drown and learning takes 2-4 times as long
PROCESSOR = Pixels(
    16,
    2,
    2,
    mean=(38 / 255,) * 3,
    std=(64 / 255,) * 3,
    shortest_edge=PIXELS // 2,
    longest_edge=PIXELS * 4096,
    cap_pixels_per_frame=True,
    max_video_tokens=1,  # any film is looked at in 32 x 32 pixels
)


def tokenizer() -> PreTrainedTokenizerFast:
    """Word level; decoding joins words with spaces."""
    words = {word: number for number, word in enumerate([*SPECIAL, *dict.fromkeys(WORDS)])}
    core = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.add_special_tokens([AddedToken(word, special=True) for word in SPECIAL])
    core.add_tokens([AddedToken(f"<{tenth / 10:.1f} seconds>", normalized=False) for tenth in range(10 * SECONDS + 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


def network(
    words: PreTrainedTokenizerFast, seed: int, *, width: int = 96, layers: int = 3
) -> Qwen3VLForConditionalGeneration:
    """Random weights that depend on `seed` alone; 32 x 32 pixels of two frames become one token."""

    def place(word: str) -> int:
        return int(words.convert_tokens_to_ids(word))  # type: ignore[arg-type]  # one word, one id

    head = width // 4
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(words), "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": head, "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10_000.0, "mrope_interleaved": True,
                "mrope_section": [head // 2 - 2 * (head // 6), head // 6, head // 6],
            },
            "pad_token_id": place("<|endoftext|>"), "bos_token_id": place("<|im_start|>"),
            "eos_token_id": place("<|im_end|>"), "initializer_range": 0.04,
        },
        vision_config={
            "depth": 1, "hidden_size": 64, "intermediate_size": 192, "num_heads": 4, "patch_size": 16,
            "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": width,
            "num_position_embeddings": 4, "deepstack_visual_indexes": [], "initializer_range": 0.04,
        },
        image_token_id=place("<|image_pad|>"), video_token_id=place("<|video_pad|>"),
        vision_start_token_id=place("<|vision_start|>"), vision_end_token_id=place("<|vision_end|>"),
        tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Qwen3VLForConditionalGeneration(config)
