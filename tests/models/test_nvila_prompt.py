"""NVILA's prompts: the reference's text, each frame's run of tokens and newline, positions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.models import tiny as any_tiny
from tests.models import tiny_nvila as tiny

from longtake.errors import UserError
from longtake.models.nvila import NVILA
from longtake.records import Span
from longtake.train.turns import asked_between


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> NVILA:
    folder: Path = tmp_path_factory.mktemp("nvila")
    tiny.model().save(folder)
    return any_tiny.exact(folder)


def test_prompt_is_the_references(exact) -> None:
    film = tiny.film(0, 2)
    start = "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\n"
    end = "<|im_end|>\n<|im_start|>assistant\n"
    frame = "<vila/video>" * 9 + "\n"
    prompt = exact.prompt(any_tiny.ask("Which cup? \n"), any_tiny.receipt(film), "f")
    assert tiny.said(exact, prompt) == start + frame * 2 + "Which cup?" + end
    assert [prompt.ids[stop] for _, stop in prompt.visual] == exact.tokenizer("\n")["input_ids"] * 2
    assert torch.equal(prompt.position_3P, torch.arange(len(prompt.ids)).expand(3, -1))
    assert (prompt.receipt.tokens, prompt.features) == (18, "f")
    text = exact.prompt(any_tiny.ask(" Which cup?\n"), None, None)
    assert (tiny.said(exact, text), text.visual) == (start + "Which cup?" + end, ())
    shown = exact.prompt(any_tiny.ask(), tiny.still(tiny.picture(70, 70)), "f")
    assert tiny.said(exact, shown) == start + "<image>" * 9 + "\nWhich cup?" + end
    assert exact.tokenizer.decode(exact.header) == "<|im_start|>assistant\n"


def test_a_newline_is_its_own_token_whatever_follows() -> None:
    words = tiny.tokenizer()
    words.add_tokens(["\n\n"])  # as Qwen2's vocabulary has it
    model = tiny.model(words=words)
    prompt = model.prompt(any_tiny.ask("\nWhich?"), any_tiny.receipt(tiny.film(0, 1)), "f")
    stop = prompt.visual[0][1]
    assert prompt.ids[stop : stop + 2] == tuple(words("\n")["input_ids"] * 2)


def test_encoders_say_what_stands_around_a_frame() -> None:
    around = tiny.TSP | {"pool_sizes": [[2, 1, 1], [4, 1, 1]], "start_tokens": "<", "end_tokens": None}
    model = tiny.model(
        video_encoder=around | {"sep_tokens": "|"}, image_encoder={"_target_": "Basic", "end_tokens": "!"}
    )
    frame = "<" + "<vila/video>" * 9
    prompt = model.prompt(any_tiny.ask(), any_tiny.receipt(tiny.film(0, 4)), "f")
    assert f"user\n{frame * 2}|{frame}|Which cup?" in tiny.said(model, prompt)
    shown = model.prompt(any_tiny.ask(), tiny.still(tiny.picture(70, 70)), "f")
    assert "user\n" + "<image>" * 9 + "!Which cup?" in tiny.said(model, shown)


@pytest.mark.parametrize("token", ["<vila/video>", "<image>"])
def test_media_tokens_in_a_question_are_refused(exact, token) -> None:
    for receipt in (None, any_tiny.receipt(tiny.film(0, 1)), tiny.still(tiny.picture(70, 70))):
        with pytest.raises(UserError, match=r"its text holds"):
            exact.prompt(any_tiny.ask(f"Which {token}?"), receipt, "f")


def test_a_template_without_the_users_parts_is_refused() -> None:
    words = tiny.tokenizer()
    words.chat_template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    model = tiny.model(words=words)
    with pytest.raises(UserError, match="shows no film or picture"):
        model.prompt(any_tiny.ask(), any_tiny.receipt(tiny.film(0, 1)), "f")


def test_positions_refuse_what_does_not_fit(exact) -> None:
    ids = exact.prompt(any_tiny.ask(), any_tiny.receipt(tiny.film(0, 2)), "f").ids
    assert exact.positions(ids, [(2, 5, 5)]).shape == (3, len(ids))
    for grids in ([], [(1, 5, 5)], [(2, 5, 5), (1, 5, 5)]):
        with pytest.raises(ValueError, match="do not fill"):
            exact.positions(ids, grids)


def test_a_conversation_goes_on_behind_the_answers(exact) -> None:
    turns = [(Span("Left."),), (Span("And now?", 0.0, "user"),), (Span("Right."),)]
    between = asked_between(exact.tokenizer, exact.end_ids[0], turns)
    want = "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n"
    assert [exact.tokenizer.decode(ids) for ids in between] == [want]
