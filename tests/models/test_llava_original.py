"""Checkpoints in the layout of the original LLaVA code against the network that they are, and loops of that code."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.models import tiny, tiny_llava
from tests.plain import reduce as plain
from torch.testing import assert_close

from longtake.errors import UserError
from longtake.models.adapters import add_adapter
from longtake.models.llava_next_video import LlavaNextVideo
from longtake.models.llava_original import TOWERS, LlavaOriginal, dress, trained_with
from longtake.models.reduce import Reduction
from longtake.runtime.load import load_model

ROUNDED = 1e-5  # float64, but pixels and transformers' softmax are float32
SPATIAL = {"mm_patch_merge_type": "spatial_unpad", "mm_spatial_pool_stride": 2}
QWEN = {"decoder": "qwen2", "tower": "siglip", "image_aspect_ratio": "anyres_max_9", "image_grid_pinpoints": "(1x1),"}
KINDS = {
    "llava-1.5": ({"newline": False, "image_aspect_ratio": "pad"}, "pool:1:average,after,no_token"),
    "next-video": (SPATIAL, "pool:2:average,after,one_token"),
    "next-video-frame": (SPATIAL | {"mm_newline_position": "frame", "inside": False}, "pool:2:average,after,frame"),
    "flat": ({"mm_spatial_pool_stride": 2, "mm_spatial_pool_mode": "max"}, "pool:2:max,after,no_token"),
    "llava-video": (
        SPATIAL | QWEN | {"mm_spatial_pool_mode": "bilinear", "mm_newline_position": "grid"},
        "pool:2:bilinear,after,grid",
    ),
}


@pytest.fixture(params=KINDS)
def kind(request, tmp_path: Path):
    keys, spec = KINDS[request.param]
    folder = tmp_path / "model"
    net = tiny_llava.original(folder, **keys).double().eval()
    tiny.exact_norms(net)
    return folder, net, spec


def squares(model, film: np.ndarray) -> torch.Tensor:
    """[F, 3, S, S] of frames at their fit, a number at a time."""
    size, (count, height, width, _) = model.pixels.size, film.shape
    top, left = (size - height) // 2, (size - width) // 2  # negative: cropped
    made = torch.empty(count, 3, size, size, dtype=torch.float64)
    for y in range(size):
        for x in range(size):
            for c in range(3):
                inside = 0 <= y - top < height and 0 <= x - left < width
                values = film[:, y - top, x - left, c] if inside else int(255 * tiny.MEAN[c])
                made[:, c, y, x] = (torch.as_tensor(values) / 255 - tiny.MEAN[c]) / tiny.STD[c]
    return made


@torch.no_grad()
def test_logits_are_those_of_the_network_on_frames_as_the_original_code_pools_them(kind) -> None:
    folder, net, spec = kind
    model = tiny.exact(folder)
    assert type(model) is LlavaOriginal
    assert model.reduction.spec == spec
    shapes = {"siglip_vision_model": "squash", "clip_vision_model": "pad" if not model.pixels.pinpoints else "crop"}
    assert model.pixels.shape == shapes[net.config.vision_config.model_type]
    film = tiny.film(0, 3, *model.fit(40, 24, 3))
    prompt = model.prompt(tiny.ask(), tiny.receipt(film), "f")
    states = net.model.vision_tower(squares(model, film), output_hidden_states=True).hidden_states[-2]
    states = states[:, 1:] if net.config.vision_feature_select_strategy == "default" else states
    grids = states.unflatten(1, (6, 6))
    want = plain.reduce(grids, model.reduction, net.model.multi_modal_projector, net.model.image_newline)
    made = model.encode([film])
    assert_close(made[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    (start, stop), ids = prompt.visual[0], torch.tensor(prompt.ids)
    embed = net.get_input_embeddings()(ids)
    embed = torch.cat([embed[:start], want, embed[stop:]])
    logits = net.lm_head(net.model.language_model(inputs_embeds=embed[None]).last_hidden_state[0])
    got = tiny_llava.logits(model, prompt, made)
    assert_close(got, logits[:, : got.shape[1]], rtol=ROUNDED, atol=ROUNDED)
    assert len(model.tokenizer) == got.shape[1]  # no row was added: every probability is the checkpoint's


@torch.no_grad()
def test_saved_it_is_transformers_layout_and_the_same_model(kind, tmp_path) -> None:
    folder, _, _ = kind
    model = load_model(folder, device="cpu")
    film = tiny.film(0, 3, *model.fit(40, 24, 3))
    model.save(tmp_path / "saved")
    again = load_model(tmp_path / "saved", device="cpu")
    assert type(again) is LlavaNextVideo
    assert (again.pixels, again.reduction) == (model.pixels, model.reduction)
    first, second = (
        tiny_llava.logits(m, m.prompt(tiny.ask(), tiny.receipt(film), "f"), m.encode([film])) for m in (model, again)
    )
    assert torch.equal(first, second)
    add_adapter(model, "lora", 4, 8.0)
    (tmp_path / "adapter").mkdir()
    model.save(tmp_path / "adapter")
    adapted = load_model(tmp_path / "adapter", device="cpu")
    assert (type(adapted), adapted.pixels, adapted.reduction) == (LlavaOriginal, model.pixels, model.reduction)


@torch.no_grad()
def test_vlm_rlaif_sees_means_of_frames_then_means_of_patches(tmp_path) -> None:
    folder = tmp_path / "model"
    net = tiny_llava.original(folder, newline=False, image_aspect_ratio="pad").double().eval()
    model = load_model(folder, "float64", "cpu", reduce="temporal+spatial")
    film = tiny.film(0, 5, *model.fit(40, 24, 5))
    states = net.model.vision_tower(squares(model, film), output_hidden_states=True).hidden_states[-2][:, 1:]
    z_FPE = net.model.multi_modal_projector(states)
    want = torch.cat([z_FPE.mean(1), z_FPE.mean(0)])
    assert_close(model.encode([film])[0].level_LNE[0], want, rtol=ROUNDED, atol=ROUNDED)
    assert model.prompt(tiny.ask(), tiny.receipt(film), "f").receipt.tokens == len(want) == 5 + 36
    with pytest.raises(UserError, match="learned no newline"):
        model.set_reduction("pool:2,grid")


@torch.no_grad()
def test_pictures_are_tiled_or_shown_as_a_frame_or_refused(tmp_path) -> None:
    tiled, padded, refused = (tmp_path / name for name in ("tiled", "padded", "refused"))
    net = tiny_llava.original(tiled).double().eval()
    tiny_llava.original(padded, newline=False, image_aspect_ratio="pad")
    tiny_llava.original(refused, **QWEN)
    still = tiny.film(0, 1, 48, 30)[0]
    seen = replace(tiny.receipt(still[None], step=0.0), image=True)
    model = load_model(tiled, "float64", "cpu")
    tiles = model.pixels.normalised(model.pixels.tiles(still), torch.device("cpu")).double()
    want = net.model.get_image_features(tiles[None], image_sizes=torch.tensor([still.shape[:2]])).pooler_output[0]
    made = model.encode([still])[0].level_LNE[0]
    assert_close(made, want, rtol=ROUNDED, atol=ROUNDED)
    assert model.prompt(tiny.ask(), seen, "f").receipt.tokens == len(made)
    model = load_model(padded, device="cpu")
    small = tiny.film(0, 1, *model.fit(48, 30, None))[0]
    seen = replace(tiny.receipt(small[None], step=0.0), image=True)
    made = model.encode([small, small[None]])
    assert_close(made[0].level_LNE, made[1].level_LNE, rtol=ROUNDED, atol=ROUNDED)
    assert model.prompt(tiny.ask(), seen, "f").receipt.tokens == 36
    with pytest.raises(UserError, match="pictures cannot be shown"):
        load_model(refused, device="cpu").fit(48, 30, None)


@torch.no_grad()
def test_a_tower_without_its_last_layer_is_read_from_the_layer_before(tmp_path) -> None:
    """As LLaVA-Video's SigLIP is saved: 26 of 27 layers."""
    whole, short = tmp_path / "whole", tmp_path / "short"
    tiny_llava.original(whole, **QWEN)
    shutil.copytree(whole, short)
    weights = load_file(short / "model.safetensors")
    save_file({k: x for k, x in weights.items() if "encoder.layers.2." not in k}, short / "model.safetensors")
    models = [load_model(folder, device="cpu") for folder in (whole, short)]
    assert [model.net.config.vision_feature_layer for model in models] == [-2, -1]
    film = tiny.film(0, 2, 27, 27)
    first, second = (model.encode([film])[0].level_LNE for model in models)
    assert torch.equal(first, second)
    tiny_llava.edit(short, "config.json", mm_vision_select_layer=-1)
    with pytest.raises(UserError, match="has 2 layers"):
        load_model(short, device="cpu")


@pytest.mark.parametrize(
    "odd",
    [
        {"mm_projector_type": "linear"}, {"mm_resampler_type": "qformer"}, {"mm_spatial_pool_mode": "conv"},
        {"mm_vision_select_feature": "cls_patch"}, {"mm_use_im_start_end": True}, {"add_faster_video": True},
        {"mm_newline_position": "rows"}, {"s2": True},
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused(tmp_path, odd) -> None:
    tiny_llava.original(tmp_path / "model", **odd)
    with pytest.raises(UserError, match=next(iter(odd))):
        load_model(tmp_path / "model", device="cpu")


def test_a_missing_tower_is_named_with_the_command_that_fetches_it(tmp_path) -> None:
    folder = tmp_path / "model"
    tiny_llava.original(folder, inside=False)
    (folder / "vision_tower").rename(folder / "aside")
    with pytest.raises(UserError, match=r"openai/tiny[\s\S]*weights are not[\s\S]*hf download openai/tiny") as caught:
        load_model(folder, device="cpu")
    assert len(str(caught.value).splitlines()) <= 6
    (folder / "openai").mkdir()
    (folder / "aside").rename(folder / "openai" / "tiny")
    load_model(folder, device="cpu")  # where mm_vision_tower says
    (folder / "openai" / "tiny" / "model.safetensors").write_bytes(b"0" * 64)
    with pytest.raises(UserError, match="damaged"):
        load_model(folder, device="cpu")
    (folder / "openai" / "tiny" / "config.json").write_text(json.dumps({"model_type": "eva"}))
    with pytest.raises(UserError, match="unsupported vision tower"):
        load_model(folder, device="cpu")


def test_a_tower_inside_whose_config_is_known_needs_no_folder(tmp_path, monkeypatch) -> None:
    folder = tmp_path / "model"
    net = tiny_llava.original(folder)
    shutil.rmtree(folder / "vision_tower")
    with pytest.raises(UserError, match=r"config\.json are not in this folder"):
        load_model(folder, device="cpu")
    monkeypatch.setitem(TOWERS, "tiny", net.config.vision_config.to_dict())
    model = load_model(folder, device="cpu")
    assert model.pixels.mean[0] == pytest.approx(0.48145466)  # CLIP's own
    heads = [(TOWERS[name]["hidden_size"] // TOWERS[name]["num_attention_heads"]) for name in list(TOWERS)[:3]]
    assert heads == [64, 64, 72]


def test_weights_as_pickles_are_read_and_damaged_ones_named(tmp_path) -> None:
    folder = tmp_path / "model"
    tiny_llava.original(folder)
    want = load_model(folder, device="cpu").net.state_dict()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    got = load_model(folder, device="cpu").net.state_dict()
    assert all(torch.equal(got[name], x) for name, x in want.items())
    (folder / "pytorch_model.bin").write_bytes(b"0" * 64)
    with pytest.raises(UserError, match="damaged"):
        load_model(folder, device="cpu")
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match=r"model\.safetensors is missing"):
        load_model(folder, device="cpu")


def test_missing_weights_are_named(tmp_path) -> None:
    folder = tmp_path / "model"
    tiny_llava.original(folder)
    weights = load_file(folder / "model.safetensors")
    del weights["model.mm_projector.2.bias"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing keys[\s\S]*linear_2\.bias"):
        load_model(folder, device="cpu")


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions."
)


@pytest.mark.parametrize(
    ("decoder", "said"),
    [
        ("llama", SYSTEM + " USER: <|vision_start|>\nA? ASSISTANT: b<|im_end|> USER: C? ASSISTANT:"),
        ("mistral", "[INST] <|vision_start|>\nA? [/INST] b<|im_end|>[INST] C? [/INST]"),
        (
            "qwen2",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>\nA?"
            "<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nC?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_prompts_are_the_original_codes(decoder, said) -> None:
    words = tiny.tokenizer()
    words.chat_template, words.unk_token = None, "<|vision_start|>"
    pad = dress(words, decoder, len(words))
    turns = [("user", [{"type": "video"}, {"type": "text", "text": "A?"}]), ("assistant", "b"), ("user", "C?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert words.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == said
    assert words.convert_ids_to_tokens(pad) == "<|vision_start|>"


def test_the_place_of_what_is_seen_is_a_token_that_no_text_becomes() -> None:
    known, free, full = tiny_llava.tokenizer(("<image>",)), tiny.tokenizer(), tiny.tokenizer()
    known.chat_template, full.unk_token = tiny_llava.TEMPLATE.replace("<{{ c.type }}>", "<image>"), None
    template = known.chat_template
    assert known.convert_ids_to_tokens(dress(known, "llama", len(known))) == "<image>"
    assert known.chat_template == template  # it shows pictures
    rows = len(free)
    assert dress(free, "qwen2", rows + 100) == rows
    with pytest.raises(UserError, match="no token for what is seen"):
        dress(full, "llama", len(full))


@pytest.mark.parametrize(
    ("config", "ours"),
    [
        ({"model_type": "llava_llama", "mm_vision_tower": "a"}, True), ({"model_type": "llava_llama"}, False),
        ({"model_type": "llava", "mm_vision_tower": "a"}, True), ({"model_type": "llava"}, False),
        ({"model_type": "llava_qwen", "mm_vision_tower": "a"}, True), ({"model_type": "llava_next_video"}, False),
        ({"model_type": "llava_llama", "mm_vision_tower": "a", "llm_cfg": {}}, False), ({}, False),
    ],
)  # fmt: skip
def test_which_folders_are_in_that_layout(config, ours) -> None:
    assert LlavaOriginal.reads(config) == ours


def test_newlines_are_those_of_the_original_code() -> None:
    spatial = {"mm_patch_merge_type": "spatial"}
    assert trained_with({}) == Reduction()
    assert trained_with(spatial) == Reduction()  # one_token only where it is unpadded
    assert trained_with(spatial | {"mm_newline_position": "grid"}) == Reduction(newline="grid")
    assert trained_with(SPATIAL) == Reduction(stride=2, newline="one_token")
    assert trained_with(SPATIAL | {"mm_newline_position": "no_token"}) == Reduction(stride=2)
    assert trained_with({"mm_newline_position": "grid"}) == Reduction()  # flat
