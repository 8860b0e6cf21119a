"""Conversations as tokens: what the chat template writes, weights on answers alone."""

from __future__ import annotations

from typing import Any

import pytest
from tests.models import tiny as bytes_level
from transformers import PreTrainedTokenizerFast

from longtake.errors import UserError
from longtake.records import Span
from longtake.sim import tiny as words_level
from longtake.train.turns import tokens_of

# as Qwen3-VL's instruct template: content in parts or as text, vision marks, one block a turn
QWEN = (
    "{%- for message in messages %}{%- if message.role == 'user' %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for content in message.content %}"
    "{%- if content.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif content.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- elif 'text' in content %}{{- content.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- elif message.role == 'assistant' %}{{- '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for item in message.content %}"
    "{%- if 'text' in item %}{{- item.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
# as Qwen3's: reasoning of all answers but the last is taken out
FORGETS = QWEN.replace(
    "{{- item.text }}", "{{- item.text if loop.last and loop.length > 9 else item.text.split('</think>')[-1] }}"
)


def words(template: str) -> PreTrainedTokenizerFast:
    if template == "words":
        return words_level.tokenizer()
    made = bytes_level.tokenizer()
    made.chat_template = {"tiny": bytes_level.TEMPLATE, "qwen": QWEN, "forgets": FORGETS}.get(template, template)
    return made


def said(role: str, *texts: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


TALKS = {
    "one": (("user", "where is the ball ?"), ("assistant", "left")),
    "two": (("user", "where ?"), ("assistant", "<think> s0 </think> left"), ("user", "was"), ("assistant", "right")),
    "three": (
        ("user", "where ?"), ("assistant", "left"), ("user", "how many flashes ?"), ("assistant", "2 2"),
        ("user", "who gave the gem to the guard ?"), ("assistant", "nobody"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", ["tiny", "qwen", "words"])
@pytest.mark.parametrize("name", list(TALKS))
def test_the_sequence_is_the_templates(template: str, name: str) -> None:
    """Prompt and what follows it are the whole conversation as the template writes it, up to the last end token."""
    tokenizer, talk = words(template), TALKS[name]
    spans = tuple(Span(text, 0.0, "user") if role == "user" else Span(text) for role, text in talk[1:])  # type: ignore[arg-type]
    ids, weights = tokens_of(tokenizer, tokenizer.eos_token_id, spans)
    first = tokenizer.apply_chat_template([said(*talk[0])], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([said(*turn) for turn in talk], tokenize=False)
    want = tokenizer(whole, add_special_tokens=False)["input_ids"]
    last = len(want) - want[::-1].index(tokenizer.eos_token_id)
    assert [*tokenizer(first, add_special_tokens=False)["input_ids"], *ids] == want[:last]
    learned = [token for token, weight in zip(ids, weights, strict=True) if weight]
    told = [tokenizer(text, add_special_tokens=False)["input_ids"] for role, text in talk if role == "assistant"]
    assert learned == [token for answer in told for token in (*answer, tokenizer.eos_token_id)]
    assert set(weights) == {1.0} if name == "one" else {0.0, 1.0}


def test_every_turn_keeps_its_weights() -> None:
    """The end token of an answer weighs as its last span; the user turn and all that stands around it weigh nothing."""
    tokenizer = words("words")
    spans = (Span("so", 0.0), Span("left", 2.0), Span("was", 0.0, "user"), Span("right", 0.5))
    ids, weights = tokens_of(tokenizer, tokenizer.eos_token_id, spans)
    text = "so left <|im_end|> <|im_start|> user was <|im_end|> <|im_start|> assistant right <|im_end|>"
    assert tokenizer.decode(ids) == text
    assert weights == (0.0, 2.0, 2.0, *(0.0,) * 6, 0.5, 0.5)


def test_a_template_that_rewrites_earlier_answers_is_refused() -> None:
    tokenizer = words("forgets")
    end = tokenizer.eos_token_id
    plain = (Span("left"), Span("was", 0.0, "user"), Span("<think> s0 </think> right"))
    assert tokens_of(tokenizer, end, plain)[0]
    with pytest.raises(UserError, match="changes earlier answers"):
        tokens_of(tokenizer, end, (Span("<think> s0 </think> left"), Span("was", 0.0, "user"), Span("right")))


def test_a_template_without_an_end_of_turns_is_refused() -> None:
    tokenizer = words(QWEN.replace("<|im_end|>", ""))
    spans = (Span("left"), Span("was", 0.0, "user"), Span("right"))
    with pytest.raises(UserError, match="cannot hold several turns"):
        tokens_of(tokenizer, tokenizer.eos_token_id, spans)
    assert tokens_of(tokenizer, tokenizer.eos_token_id, spans[:1])[1]
