"""LLaVA checkpoints in the layout of the original code (LLaVA-NeXT-Video, LLaVA-Video, LLaVA-1.5 and so VLM-RLAIF).

Their weights go into transformers' LLaVA-NeXT-Video by name; the mm_… keys of config.json say how it was trained.
Frames are pooled behind the projector, as that code does. Saved, such a model is in transformers' layout.

E model width. Source: LLaVA-NeXT's llava_arch.py, multimodal_encoder, conversation.py; yonseivnl/vlm-rlaif.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from safetensors.torch import load_file
from torch import Tensor

from longtake.errors import UserError
from longtake.models.checkpoint import AGAIN, check_weights, colours, first_line, network, read_json, read_tokenizer
from longtake.models.llava_next_video import LlavaNextVideo
from longtake.models.llava_pixels import LlavaPixels, points_of, read_llava
from longtake.models.pixels import FILES
from longtake.models.reduce import MODES, NEWLINES, Reduction

DECODERS = {"llama": "llama", "mistral": "mistral", "qwen": "qwen2"}  # in model_type or architectures → transformers'
RENAMED = (  # to the names of the checkpoints that transformers' own conversion reads
    (re.compile(r"^model\.vision_tower\.vision_tower\."), "vision_tower."),
    (re.compile(r"^model\.mm_projector\.0\."), "multi_modal_projector.linear_1."),
    (re.compile(r"^model\.mm_projector\.2\."), "multi_modal_projector.linear_2."),
    (re.compile(r"^model\.image_newline$"), "image_newline"),
    (re.compile(r"^(model\.(?:layers|embed_tokens|norm)\.|lm_head\.)"), r"language_model.\1"),
)
UNUSED = re.compile(r"inv_freq$|position_ids$|faster_token$|vision_model\.head\.")  # buffers; what no forward reads
EMBED = "language_model.model.embed_tokens.weight"
TOWER = "vision_tower"  # folder beside the weights
CLIP = {"model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
CLIP |= {"num_attention_heads": 16, "patch_size": 14, "projection_dim": 768}
SIGLIP = {"model_type": "siglip_vision_model", "hidden_size": 1152, "intermediate_size": 4304, "image_size": 384}
SIGLIP |= {"num_hidden_layers": 27, "num_attention_heads": 16, "patch_size": 14}
TOWERS = {
    "clip-vit-large-patch14-336": CLIP | {"image_size": 336},
    "clip-vit-large-patch14": CLIP | {"image_size": 224},
    "siglip-so400m-patch14-384": SIGLIP,
}
COLOURS = {  # mean and deviation where no processor's file says them
    "clip_vision_model": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip_vision_model": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
PARTS = (
    "{% macro said(m) %}{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'text' %}{{ c.text }}{% else %}MARK\n{% endif %}{% endfor %}{% endif %}{% endmacro %}"
)
VICUNA = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions.{% for m in messages %}{% if m.role == 'user' %} USER: {{ said(m) }} "
    "{% else %}ASSISTANT: {{ said(m) }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
MISTRAL = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST] {{ said(m) }} [/INST]{% else %} {{ said(m) }}"
    "{{ eos_token }}{% endif %}{% endfor %}"
)
QWEN = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ said(m) }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"llama": VICUNA, "mistral": MISTRAL, "qwen2": QWEN}


class LlavaOriginal(LlavaNextVideo):
    """A LLaVA network read from the original layout. Example: load_model("lmms-lab/LLaVA-NeXT-Video-7B")."""

    family = "llava_original"  # model_type is llava, llava_llama, llava_qwen, …

    @classmethod
    def reads(cls, config: Mapping[str, Any]) -> bool:
        """By the name of its vision tower: transformers' own LLaVA has none, VILA keeps its parts in folders."""
        kind = str(config.get("model_type"))
        return kind.startswith("llava") and "mm_vision_tower" in config and "llm_cfg" not in config

    @classmethod
    def load(cls, base: Path, folder: Path, dtype: torch.dtype | str) -> Self:
        """Weights of `base`; tokenizer and processor of `folder` where it has them. Raises UserError."""
        from transformers import GenerationConfig, LlavaNextVideoForConditionalGeneration

        root = read_json(base / "config.json")
        refuse(root)
        weights = renamed(tensors(base))
        vision = read_tower(base, root, weights)
        words = read_tokenizer(folder if (folder / "tokenizer.json").is_file() else base)
        config = transformers_config(root, vision, weights)
        pad = dress(words, config.text_config.model_type, config.text_config.vocab_size)
        config.image_token_index = config.video_token_index = pad
        width = config.text_config.hidden_size
        weights.setdefault("image_newline", torch.zeros(width, dtype=weights[EMBED].dtype))  # zeros: it has none
        net = network(LlavaNextVideoForConditionalGeneration, base, dtype, config, weights)
        if (base / "generation_config.json").is_file():
            net.generation_config = GenerationConfig.from_pretrained(base)
        if any((folder / name).is_file() for name in FILES):
            pixels, reduction = read_llava(folder, net.config)
        else:
            pixels, reduction = constants(base, root, vision), None
        return cls(net, words, pixels, reduction or trained_with(root))


def refuse(root: Mapping[str, Any]) -> None:
    """Raises UserError for what this reader would read wrongly."""
    odd = {
        "mm_projector_type": root.get("mm_projector_type") != "mlp2x_gelu",
        "mm_resampler_type": root.get("mm_resampler_type") not in (None, "spatial_pool"),
        "mm_spatial_pool_mode": root.get("mm_spatial_pool_mode", "average") not in MODES,
        "mm_newline_position": root.get("mm_newline_position", "one_token") not in NEWLINES,
        "mm_vision_select_feature": root.get("mm_vision_select_feature", "patch") != "patch",
        "mm_use_im_start_end": bool(root.get("mm_use_im_start_end")),
        "add_faster_video": bool(root.get("add_faster_video")),  # a learned token behind every frame
        "s2": bool(root.get("s2")),
    }
    for name in (name for name, is_odd in odd.items() if is_odd):
        why = f"{name} is {root.get(name)!r} in config.json: its visual tokens would not be those it was trained on"
        raise UserError("unsupported LLaVA checkpoint", why=why, fix="use its conversion to transformers, if any")


def whole_number(root: Mapping[str, Any], name: str, default: int) -> int:
    """A number of config.json. Raises UserError for what is none."""
    said = root.get(name)
    if said is not None and type(said) is not int:
        raise UserError("config.json is wrong", why=f"{name} is {said!r}, no whole number", fix=AGAIN)
    return default if said is None else said


def trained_with(root: Mapping[str, Any]) -> Reduction:
    """What the original code makes of a film's frames: pooled behind the projector; newlines if they are spatial."""
    merge = str(root.get("mm_patch_merge_type", "flat"))
    newline: Literal["grid", "frame", "one_token", "no_token"] = "no_token"
    if merge.startswith("spatial"):
        newline = root.get("mm_newline_position", "one_token")
    if newline == "one_token" and "unpad" not in merge:
        newline = "no_token"
    stride = whole_number(root, "mm_spatial_pool_stride", 1)
    return Reduction(stride=stride, mode=root.get("mm_spatial_pool_mode") or "average", newline=newline)


def tensors(folder: Path) -> dict[str, Tensor]:
    """All weights of a folder: safetensors, or pickles without code. Raises UserError."""
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if any(folder.glob("*.safetensors")) or not pickles:
        check_weights(folder)
        index = folder / "model.safetensors.index.json"
        names = set(read_json(index)["weight_map"].values()) if index.is_file() else {"model.safetensors"}
        return {name: x for file in sorted(names) for name, x in load_file(folder / file).items()}
    found: dict[str, Tensor] = {}
    for file in pickles:
        try:
            found |= torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # what a damaged zip or pickle raises
            raise UserError("weights are damaged", where=str(file), why=first_line(error), fix=AGAIN) from error
    return found


def renamed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By the names of transformers' checkpoints, without what no forward reads."""
    found = {name: x for name, x in weights.items() if not UNUSED.search(name)}
    for old, new in RENAMED:
        found = {old.sub(new, name): x for name, x in found.items()}
    return found


def read_tower(base: Path, root: Mapping[str, Any], weights: dict[str, Tensor]) -> dict[str, Any]:
    """The vision tower's config; its weights are added where the checkpoint lacks them.

    It lies in `vision_tower/`, or where mm_vision_tower says, seen from the checkpoint. Raises UserError.
    """
    folder, name = tower_folder(base, root), str(root["mm_vision_tower"])
    said: Mapping[str, Any] | None = TOWERS.get(name.rpartition("/")[2])
    if folder:
        said = read_json(folder / "config.json")
    own = [key for key in weights if key.startswith("vision_tower.")]
    if said is None or (folder is None and not own):
        part = "config.json" if own else "weights"
        fix = f"hf download {name} --local-dir {base / TOWER}"
        why = f"mm_vision_tower is {name!r}: its {part} are not in this folder"
        raise UserError("the model's vision tower is missing", where=str(base), why=why, fix=fix)
    vision = dict(said.get("vision_config", said)) | {"vision_use_head": False}
    if str(vision.get("model_type")) not in COLOURS:
        kinds = " and ".join(COLOURS)
        raise UserError("unsupported vision tower", where=name, why=f"it is {vision.get('model_type')}, not {kinds}")
    if folder and not own:
        lost = {f"vision_tower.{key}": x for key, x in tensors(folder).items() if key.startswith("vision_model.")}
        weights |= {key: x for key, x in lost.items() if not UNUSED.search(key)}
    layers = {int(key.split(".")[4]) for key in weights if key.startswith("vision_tower.vision_model.encoder.layers.")}
    return vision | {"num_hidden_layers": len(layers), "whole": vision.get("num_hidden_layers", len(layers))}


def tower_folder(base: Path, root: Mapping[str, Any]) -> Path | None:
    """Where the vision tower lies beside the checkpoint, if it does."""
    named = [base / TOWER, base / str(root["mm_vision_tower"])]
    return next((path for path in named if (path / "config.json").is_file()), None)


def transformers_config(root: Mapping[str, Any], vision: Mapping[str, Any], weights: Mapping[str, Tensor]) -> Any:
    """LlavaNextVideoConfig; the pads come with the tokenizer."""
    from transformers import CONFIG_MAPPING, LlavaNextVideoConfig

    named = f"{root['model_type']} {root.get('architectures')}".lower()
    kind = next((ours for theirs, ours in DECODERS.items() if theirs in named), None)
    if kind is None:
        raise UserError("unsupported LLaVA checkpoint", why=f"its decoder is none of {', '.join(DECODERS)}: {named}")
    known = {*CONFIG_MAPPING[kind]().to_dict(), "rope_theta", "rope_scaling"} - {"model_type", "architectures"}
    text = {key: value for key, value in root.items() if key in known} | {"vocab_size": len(weights[EMBED])}
    layer = whole_number(root, "mm_vision_select_layer", -2)
    gone = int(vision["whole"]) - int(vision["num_hidden_layers"])  # some checkpoints leave out layers behind it
    if (gone and layer + gone >= 0) or not -vision["whole"] - 1 <= layer <= vision["whole"]:
        why = f"its vision tower has {vision['num_hidden_layers']} layers, mm_vision_select_layer is {layer}"
        raise UserError("unsupported LLaVA checkpoint", why=why)
    points = root.get("image_grid_pinpoints")
    tiled = isinstance(points, list) and root.get("image_aspect_ratio") == "anyres"
    stride = trained_with(root).stride
    try:
        return LlavaNextVideoConfig(
            text_config={"model_type": kind} | text,
            vision_config={key: value for key, value in vision.items() if key != "whole"},
            vision_feature_layer=layer + gone,
            vision_feature_select_strategy="default" if vision["model_type"] == "clip_vision_model" else "full",
            image_grid_pinpoints=points if tiled else [],
            spatial_pool_stride=stride,
            tie_word_embeddings=bool(root.get("tie_word_embeddings", False)),
        )
    except Exception as error:  # its checks raise what they like
        raise UserError("config.json is wrong", why=first_line(error)) from error


def dress(words: Any, decoder: str, rows: int) -> int:
    """Gives the tokenizer a place for what is seen, and the template of the original code where its own shows nothing;
    returns the place's token id. `rows`: of the embeddings. Raises UserError."""
    mark = "<image>"
    if mark not in words.get_vocab():
        if len(words) < rows:
            words.add_tokens([mark], special_tokens=True)
        elif words.unk_token is not None:
            mark = words.unk_token  # which no text becomes; adding rows would change every probability
        else:
            raise UserError("the tokenizer has no token for what is seen", why=f"no <image>, and all {rows} are taken")
    if "image" not in (words.chat_template or ""):
        words.chat_template = PARTS.replace("MARK", mark) + TEMPLATES[decoder]
    return int(words.convert_tokens_to_ids(mark))


def constants(base: Path, root: Mapping[str, Any], vision: Mapping[str, Any]) -> LlavaPixels:
    """How the original code looks at frames and pictures."""
    folder = tower_folder(base, root)
    mean, std = COLOURS[vision["model_type"]]
    if folder and (folder / FILES[0]).is_file():
        said = read_json(folder / FILES[0])
        try:
            mean, std = colours(said)
        except (TypeError, ValueError) as error:
            file, why = str(folder / FILES[0]), first_line(error)
            raise UserError("the processor's file is wrong", where=file, why=why) from error
    ratio, size = root.get("image_aspect_ratio"), int(vision["image_size"])
    points = root.get("image_grid_pinpoints")
    tiled = ratio == "anyres" and isinstance(points, list)
    try:
        pinpoints = points_of(points, size) if tiled else ()
    except (TypeError, ValueError) as error:
        raise UserError("config.json is wrong", why=first_line(error)) from error
    return LlavaPixels(
        size=size,
        patch=int(vision["patch_size"]),
        mean=mean,
        std=std,
        shortest_edge=size,
        shape="pad" if ratio == "pad" else "squash" if vision["model_type"] == "siglip_vision_model" else "crop",
        pinpoints=pinpoints,
        pictures=tiled or not str(ratio).startswith("anyres"),
    )
