"""The stand-in of `bench.reductions`: a LLaVA-NeXT-Video network of half a million parameters, and films with a clock.

Its prompt holds no time stamps, and the simulator's films no clock: so a bar on top of every frame shows the second.
A frame of 32 x 32 pixels has 2 x 2 patches, and in training each of them is a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast

from longtake.models.llava_next_video import LlavaNextVideo
from longtake.models.llava_pixels import LlavaPixels
from longtake.sim import make, tiny
from longtake.sim.render import Picture, pictures, write_film
from longtake.sim.scenes import FPS, KINDS, SECONDS, SIZE, keyed, scene

EDGE, PATCH = 32, 16  # pixels of a frame as the tower sees it, and of a patch
PIXELS = LlavaPixels(EDGE, PATCH, tiny.PROCESSOR.mean, tiny.PROCESSOR.std, EDGE, "crop", ((EDGE, 2 * EDGE),))
MARKS = ("<image>", "<video>")
BAR = 6  # rows of pixels of the clock


def clocked(film: Picture) -> Picture:
    """The film under a bar of as many cells as it has seconds; that of the second is lit. uint8 [F, H, W, 3]."""
    film[:, :BAR] = 0
    cell = SIZE // SECONDS
    for tick, picture in enumerate(film):
        left = tick // FPS * cell
        picture[:BAR, left : left + cell] = 255
    return film


def make_films(folder: Path, seed: int, counts: Mapping[str, int], workers: int) -> None:
    """Renders what is missing of the demo's films, with clocks."""
    jobs = [(make.film_path(folder, split, n), seed, split, n) for split, count in counts.items() for n in range(count)]
    missing = [job for job in jobs if not job[0].exists()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        list(pool.map(_film, missing, chunksize=16))


def _film(job: tuple[Path, int, str, int]) -> None:
    path, seed, split, number = job
    told = scene(KINDS[number % len(KINDS)], keyed(seed, make.SPLITS.index(split), number))
    write_film(clocked(pictures(told)), path)


def tokenizer() -> PreTrainedTokenizerFast:
    """The demo's words and LLaVA's marks."""
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(MARKS)})
    for kind, mark in zip(("image", "video"), MARKS, strict=True):
        words.chat_template = words.chat_template.replace(f"<|vision_start|><|{kind}_pad|><|vision_end|>", mark)
    return words


def stand_in(seed: int, *, width: int = 96, layers: int = 3, deep: int = 96) -> LlavaNextVideo:
    """Random weights that depend on `seed` alone; `deep`: width of the tower's one layer."""
    words = tokenizer()
    place = words.convert_tokens_to_ids
    config = LlavaNextVideoConfig(
        text_config={
            "model_type": "llama", "vocab_size": len(words), "hidden_size": width, "intermediate_size": 3 * width,
            "num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": width // 4,
            "max_position_embeddings": 4096, "initializer_range": 0.04, "tie_word_embeddings": True,
            "pad_token_id": place("<|endoftext|>"), "bos_token_id": place("<|im_start|>"),
            "eos_token_id": place("<|im_end|>"),
        },
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": deep, "intermediate_size": 3 * deep,
            "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": EDGE, "patch_size": PATCH,
            "projection_dim": deep, "initializer_range": 0.04,
        },
        vision_feature_layer=-1, spatial_pool_stride=1,
        image_grid_pinpoints=[list(point) for point in PIXELS.pinpoints],
        image_token_index=place("<image>"), video_token_index=place("<video>"), tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = LlavaNextVideoForConditionalGeneration(config)
        places = next(x for name, x in net.named_parameters() if name.endswith("position_embedding.weight"))
        torch.nn.init.normal_(places, std=0.3)  # CLIP's own scale drowns in the pixels
        for layer in (net.model.multi_modal_projector.linear_1, net.model.multi_modal_projector.linear_2):
            torch.nn.init.normal_(layer.weight, std=0.1)  # frames as loud as words
    return LlavaNextVideo(net, words, PIXELS, LlavaNextVideo.learned(config))
