"""Random LLaVA networks (CLIP tower, Llama or Qwen2 decoder), saved and loaded as real checkpoints are."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tests.models import tiny
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    SiglipVisionConfig,
)

from longtake.maths.attention import Row
from longtake.models.llava_next_video import LlavaNext, LlavaNextVideo
from longtake.models.llava_pixels import LlavaPixels
from longtake.models.reduce import Reduction
from longtake.records import Layout
from longtake.runtime.inputs import fill

SIZE, PATCH = 24, 4  # 6 x 6 patches
POINTS = ((24, 48), (48, 24), (48, 48), (72, 24), (24, 72))
PIXELS = LlavaPixels(SIZE, PATCH, tiny.MEAN, tiny.STD, SIZE, "crop", POINTS)
MARKS = ("<image>", "<video>")
TEMPLATE = (
    "{% for m in messages %}{{ m.role.upper() }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }} "
    "{% else %}<{{ c.type }}>\n{% endif %}{% endfor %}{% if m.role == 'assistant' %}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(marks=MARKS):
    words = tiny.tokenizer()
    words.add_special_tokens({"additional_special_tokens": list(marks)})
    words.chat_template = TEMPLATE
    return words


def config(words, kind=LlavaNextVideoConfig, decoder="llama", **more):
    place = words.convert_tokens_to_ids
    marks = {"image_token_index": place("<image>")}
    if kind is LlavaNextVideoConfig:
        marks |= {"video_token_index": place("<video>")}
    return kind(
        text_config={
            "model_type": decoder, "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 48,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "pad_token_id": place("<|endoftext|>"), "bos_token_id": place("<|im_start|>"),
            "eos_token_id": place("<|im_end|>"), "initializer_range": 0.3,
        }
        | ({"sliding_window": None} if decoder == "mistral" else {}),
        vision_config={
            "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3,
            "num_attention_heads": 2, "image_size": SIZE, "patch_size": PATCH, "projection_dim": 16,
            "initializer_range": 0.3,
        },
        image_grid_pinpoints=[list(point) for point in POINTS],
        **marks | more,
    )  # fmt: skip


def network(made, seed=0):
    kinds = {
        LlavaNextVideoConfig: LlavaNextVideoForConditionalGeneration,
        LlavaNextConfig: LlavaNextForConditionalGeneration,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = kinds[type(made)](made)
        for x in net.parameters():  # CLIP's own scales leave nothing to see
            torch.nn.init.normal_(x, std=0.3)
        return net


def checkpoint(folder, decoder="llama", **more):
    """Saves the tiny video model there."""
    words = tokenizer()
    net = network(config(words, decoder=decoder, **more))
    LlavaNextVideo(net, words, PIXELS, LlavaNextVideo.learned(net.config)).save(folder)
    return folder


def picture_checkpoint(folder):
    """Saves the tiny image model there."""
    words = tokenizer()
    LlavaNext(network(config(words, LlavaNextConfig)), words, PIXELS, Reduction(stride=2)).save(folder)
    return folder


def plain(folder: Path):
    net = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    tiny.exact_norms(net)
    return net.eval()


def processed(folder: Path, film: np.ndarray) -> torch.Tensor:
    """[1, F, 3, S, S] by transformers' own resize, crop and normalisation, with what the file says."""
    said = json.loads((folder / "video_preprocessor_config.json").read_text())
    names = ("size", "crop_size", "image_mean", "image_std", "do_center_crop")
    made = CLIPImageProcessorPil(**{name: said[name] for name in names})(list(film), return_tensors="pt")
    return made["pixel_values"].double()[None]


def seen(still_HWC: np.ndarray):
    return replace(tiny.receipt(still_HWC[None], step=0.0), image=True)


def edit(folder: Path, name: str, **changes) -> None:
    content = json.loads((folder / name).read_text())
    content = {key: value for key, value in (content | changes).items() if value is not None}
    (folder / name).write_text(json.dumps(content))


def logits(model, prompt, films):
    """[P, V] of a prompt on encoded films."""
    ids_T, visual_T = torch.tensor(prompt.ids), torch.zeros(len(prompt.ids), dtype=torch.bool)
    for start, stop in prompt.visual:
        visual_T[start:stop] = True
    embed_TE, _ = fill(model, ids_T, visual_T, films)
    row = Row(Layout(((len(ids_T), ()),)))
    return model.head(model.hidden(embed_TE, prompt.position_3P, visual_T, None, row))


def original(folder, *, tower="clip", inside=True, decoder="llama", newline=True, marks=(), **keys):
    """Writes a checkpoint in the layout of the original code; returns the network that it is in transformers.

    inside: the tower's weights lie in the checkpoint (as those that trained it), else in vision_tower/ alone.
    """
    words = tokenizer(marks)
    words.chat_template = None
    words.unk_token = "<|vision_start|>"
    made = config(tokenizer(), decoder=decoder)
    if tower == "siglip":
        made.vision_config = SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=27,
            patch_size=4, vision_use_head=False,
        )  # fmt: skip
        made.vision_feature_select_strategy = "full"
    net = network(made)
    folder.mkdir(exist_ok=True)
    weights = {}
    for name, x in net.state_dict().items():
        for old, new in THEIRS:
            name = name.replace(old, new)  # noqa: PLW2901 — its name there
        weights[name] = x[: len(words)].clone() if x.shape[0] == len(tokenizer()) else x
    own = {name: x for name, x in weights.items() if "vision_tower" in name}
    if not newline:
        del weights["model.image_newline"]
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file({name: x for name, x in weights.items() if inside or name not in own}, folder / "model.safetensors")
    (folder / "vision_tower").mkdir()
    net.config.vision_config.save_pretrained(folder / "vision_tower")
    bare = {name.removeprefix("model.vision_tower.vision_tower."): x for name, x in own.items()}
    save_file(bare | {"text_model.x": torch.ones(1)}, folder / "vision_tower" / "model.safetensors")
    (folder / "vision_tower" / "preprocessor_config.json").write_text(
        json.dumps({"image_mean": tiny.MEAN, "image_std": tiny.STD})
    )
    text = net.config.text_config.to_dict() | {"vocab_size": len(words)}
    said = {"mm_vision_tower": "openai/tiny", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    said |= {"image_aspect_ratio": "anyres", "image_grid_pinpoints": [list(point) for point in POINTS]}
    said |= {"model_type": {"qwen2": "llava_qwen"}.get(decoder, "llava_llama")}
    content = {key: value for key, value in (text | said | keys).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content, default=str))
    words.save_pretrained(folder)
    return net


THEIRS = (
    ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
    ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
    ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
    ("model.language_model.", "model."),
)
