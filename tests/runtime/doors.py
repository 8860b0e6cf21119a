"""Tiny networks by transformers alone, rows for the door, and the same answers in rows of their own."""

import copy
import warnings
from contextlib import contextmanager
from functools import cache

import peft
import pytest
import torch
from tests.models import tiny
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Config,
    Qwen2ForCausalLM,
)

EXACT = 1e-12  # of the largest number compared
TOWER = 1e-6  # transformers' vision towers turn queries and keys in float32
TEXT = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": True, "pad_token_id": 0,
}  # fmt: skip
VISION = {
    "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "window_size": 16, "fullatt_block_indexes": [1], "initializer_range": 0.3,
}  # fmt: skip
PATCHES, GRID = 16, [[1, 4, 4]]  # of the one film, 4 tokens
LENGTHS = (5, 1, 3)


@cache
def network(kind):
    """Made once; every test leaves it as it was, which is what it tests."""
    torch.manual_seed(1)
    if kind == "qwen3_vl":
        net = tiny.network(tiny.tokenizer(), layers=3)
    elif kind == "qwen2_5_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
        net = Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config=TEXT | {"rope_parameters": rope},
                vision_config=VISION,
                video_token_id=50,
                image_token_id=51,
                vision_start_token_id=52,
                vision_end_token_id=53,
                tie_word_embeddings=True,
            )
        )
    else:
        net = LlamaForCausalLM(LlamaConfig(**TEXT)) if kind == "llama" else Qwen2ForCausalLM(Qwen2Config(**TEXT))
    net.double()
    tiny.exact_norms(net)
    return net.train()


def asked(net):
    """Prompt ids, its positions [3, P] (None: counted), and what else goes into model(…)."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 40, (12,), generator=generator)
    if "vision_config" not in net.config.sub_configs:
        return ids, None, {}
    ids[3:7] = net.config.video_token_id
    positions = torch.tensor([[0, 1, 2, 3, 3, 3, 3, 5, 6, 7, 8, 9]] * 3)
    positions[1, 3:7], positions[2, 3:7] = torch.tensor([3, 3, 4, 4]), torch.tensor([3, 4, 3, 4])
    vision = net.config.vision_config
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.randn(PATCHES, width, generator=generator, dtype=torch.float64)
    return ids, positions, {"pixel_values_videos": pixels, "video_grid_thw": torch.tensor(GRID)}


def answered(lengths=LENGTHS, seed=3):
    generator = torch.Generator().manual_seed(seed)
    answers = [torch.randint(1, 40, (n,), generator=generator) for n in lengths]
    return answers, [torch.randn(n, generator=generator, dtype=torch.float64) for n in lengths]


def gradients(model):
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def every_answer(model, ids, positions, other, answers, weights):
    """Losses and gradients, a row of its own and a backward for every answer."""
    losses = []
    for answer, weight in zip(answers, weights, strict=True):
        if not len(answer):
            losses.append(0.0)
            continue
        row = torch.cat([ids, answer[:-1]])
        if positions is None:
            position = torch.arange(len(row))[None]
        else:
            after = positions.max() + 1 + torch.arange(len(answer) - 1)
            position = torch.cat([positions, after.expand(3, -1)], 1)[:, None]
        logits = model(input_ids=row[None], position_ids=position, **other).logits[0, len(ids) - 1 :]
        loss = -(logits.log_softmax(-1)[torch.arange(len(answer)), answer] * weight).sum()
        loss.backward()
        losses.append(loss.item())
    return losses, gradients(model)


def packed_loss(model, row, other, weights):
    out = model(input_ids=row.ids_1T, position_ids=row.position_ids, logits_to_keep=row.predict_R, **other)
    losses = [-(own * w).sum() for own, w in zip(row.per_answer(row.score(out.logits).logprob_R), weights, strict=True)]
    return torch.stack(losses)


def same(got, want):
    assert got[0] == pytest.approx(want[0], rel=0, abs=EXACT * max(map(abs, want[0])))
    assert got[1].keys() == want[1].keys()
    for name, grad in want[1].items():
        near = TOWER if "visual" in name else EXACT
        assert (got[1][name] - grad).abs().max() <= near * max(1.0, grad.abs().max().item()), name


@contextmanager
def checkpointing(net, reentrant=False):
    """transformers' own, which runs every layer again in the backward."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the name that all versions know
        net.gradient_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:  # needs an input that learns
            net.enable_input_require_grads()
        try:
            yield
        finally:
            net.gradient_checkpointing_disable()
            if reentrant:
                net.disable_input_require_grads()


def untouched(net):
    """What a block must leave as it was."""
    hooks = {name: (len(m._forward_pre_hooks), len(m._forward_hooks)) for name, m in net.named_modules()}
    attributes = {name: sorted(vars(m)) for name, m in net.named_modules()}
    return hooks, attributes, copy.deepcopy(net.config.to_dict()), net.config.get_text_config()._attn_implementation


def lora(net, dropout=0.0):
    torch.manual_seed(7)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=dropout)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        model = peft.get_peft_model(copy.deepcopy(net), config)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    return model.double().train()
