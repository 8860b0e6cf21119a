"""Qwen3 without eyes against transformers; films are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import tiny
from torch.testing import assert_close
from transformers import Qwen3Config, Qwen3ForCausalLM

from longtake.errors import UserError
from longtake.maths.attention import Row
from longtake.maths.pack import pack
from longtake.models.qwen3 import Qwen3
from longtake.records import Layout

EXACT = 1e-12
SINGLE = 1e-5  # float32, numbers of size 1
TEXT = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}" + (
    "{{ m.content[0].text }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made, words = tmp_path_factory.mktemp("tiny"), tiny.tokenizer()
    words.chat_template = TEXT
    place = words.convert_tokens_to_ids
    config = Qwen3Config(
        vocab_size=len(words), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, pad_token_id=place("<|endoftext|>"), bos_token_id=place("<|im_start|>"),
        eos_token_id=place("<|im_end|>"), initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen3(Qwen3ForCausalLM(config), words).save(made)
    return made


@pytest.fixture(scope="module")
def exact(folder: Path) -> Qwen3:
    model = tiny.load_model(folder, dtype="float64", device="cpu")
    for parent in list(model.net.modules()):
        for name, child in parent.named_children():
            if type(child).__name__ == "Qwen3RMSNorm":
                norm = torch.nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
    return model


def logits(model: Qwen3, row) -> torch.Tensor:
    none = torch.zeros(len(row.ids_T), dtype=torch.bool)
    return model.head(model.hidden(model.embed(row.ids_T), row.position_3T, none, None, Row(row.layout)))


@torch.no_grad()
def test_logits_equal_transformers(folder: Path) -> None:
    model = tiny.load_model(folder, device="cpu")
    prompt = model.prompt(tiny.ask("2 + 2?"), None, None)
    net = Qwen3ForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    want = net(input_ids=torch.tensor([prompt.ids]), use_cache=False).logits[0]
    row = pack([prompt], [[]], [[]])
    assert row.layout == Layout(((len(prompt.ids), ()),))
    assert_close(logits(model, row), want, rtol=SINGLE, atol=SINGLE)


@torch.no_grad()
def test_a_shared_prefix_is_a_row_per_answer(exact: Qwen3) -> None:
    prompt = exact.prompt(tiny.ask("2 + 2?"), None, None)
    answers = [[40, 41, 42], [50], [60, 61]]
    shared = pack([prompt], [answers], [[[1.0] * len(one) for one in answers]], dtype=torch.float64)
    got = logits(exact, shared)[shared.predict_R]
    want = []
    for answer in answers:
        alone = pack([prompt], [[answer]], [[[1.0] * len(answer)]], dtype=torch.float64)
        want.append(logits(exact, alone)[alone.predict_R])
    assert_close(got, torch.cat(want), rtol=EXACT, atol=EXACT)


def test_the_prompt_is_the_template(exact: Qwen3) -> None:
    prompt = exact.prompt(tiny.ask("2 + 2?"), None, None)
    assert exact.tokenizer.decode(prompt.ids) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert prompt.ids[-len(exact.header) :] == exact.header
    assert (prompt.visual, prompt.receipt, prompt.features) == ((), None, None)


def test_films_are_refused(exact: Qwen3) -> None:
    film = tiny.film(0, 2)
    for refused in (
        lambda: exact.prompt(tiny.ask(), tiny.receipt(film), "f"),
        lambda: exact.fit(16, 8, 4),
        lambda: exact.encode([film]),
    ):
        with pytest.raises(UserError, match="reads text only"):
            refused()
    assert exact.encode([]) == []
    with pytest.raises(ValueError, match="text alone"):
        exact.positions([1, 2], [(1, 2, 2)])
